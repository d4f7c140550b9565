"""`--offload disk`: weights are read from where they lie, or from a scratch file."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from fp4scope.errors import OutputError
from fp4scope.models import load_model
from fp4scope.models.ondisk import Files
from fp4scope.models.taking import taking

FAMILIES = ("llama", "qwen3-moe", "gpt2")


@pytest.fixture(params=FAMILIES)
def saved(request, tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / request.param
    tiny_model(request.param).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def host_of(loaded):
    return loaded.offloaded._host


def all_extents(loaded):
    return [extent for extents in host_of(loaded)._extents for extent in extents]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_model(saved, ids, dtype):
    options = {"device": "cpu", "dtype": dtype, "allow_partial": True}
    whole = load_model(str(saved), offload="no", **options)
    waiting = load_model(str(saved), offload="disk", **options)
    assert waiting.offloaded.kind == "disk"
    assert waiting.fingerprint == whole.fingerprint
    for _ in range(2):
        assert torch.equal(waiting.logits(ids[0]), whole.logits(ids[0]))


def test_weights_stored_as_they_are_wanted_are_read_from_the_checkpoint(saved):
    """Experts that are one tensor in the model and many in its files are written once."""
    loaded = load_model(str(saved), device="cpu", offload="disk", allow_partial=True)
    own = host_of(loaded)._files
    paths = {os.readlink(f"/proc/self/fd/{e.file}") for e in all_extents(loaded) if e}
    assert str(saved / "model.safetensors") in paths
    experts = [p for n, p in loaded.model.named_parameters() if ".experts." in n]
    large = sum(p.nbytes for p in experts)
    assert large <= own.written
    if not experts:
        assert own.written < sum(p.nbytes for p in loaded.model.parameters()) / 4


def test_what_is_made_while_loading_goes_to_a_file_at_once(saved, tmp_path, monkeypatch):
    """Before everything is loaded, or memory would have to hold it."""
    monkeypatch.setattr("fp4scope.models.taking._SMALL", 0)
    files = Files(tmp_path)
    with taking(files.kept):
        model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)
    within = [p for name, p in model.named_parameters() if any(map(str.isdigit, name.split(".")))]
    assert within
    assert all(files.extents(within))
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ


def test_nothing_is_left_behind(saved, tmp_path):
    loaded = load_model(
        str(saved), device="cpu", offload="disk", dtype="bfloat16", allow_partial=True
    )
    assert host_of(loaded)._files.written
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_file_that_changes_is_told(tiny_model, tiny_tokenizer, tmp_path, ids):
    """In a process of its own: a mapping of a file that became shorter is not to be touched."""
    folder = tmp_path / "llama"
    tiny_model("llama", num_hidden_layers=4).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    code = (
        "import sys, os, torch\n"
        "from fp4scope.models import load_model\n"
        "from fp4scope.errors import OutputError\n"
        "loaded = load_model(sys.argv[1], device='cpu', offload='disk')\n"
        "loaded.offloaded.bring(0)\n"
        "loaded.offloaded._thread.submit(int).result()\n"
        "os.truncate(sys.argv[1] + '/model.safetensors', 4096)\n"
        "try:\n"
        "    for block in (1, 2, 3, 0, 1): loaded.offloaded.bring(block)\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert "weights cannot be read any more (a file has become shorter)" in ran.stdout, ran.stderr


def test_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match=r"No space left on device.*FP4SCOPE_CACHE"):
        Files(tmp_path).stored(torch.ones(4))


@pytest.mark.parametrize("shape", [(3, 5), (0,), (), (70_000,)], ids=str)
def test_what_is_stored_is_read_back(tmp_path, shape):
    files = Files(tmp_path)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in range(3)]
    stored = [files.stored(tensor) for tensor in tensors]
    for tensor, copy, extent in zip(tensors, stored, files.extents(stored), strict=True):
        assert torch.equal(tensor, copy)
        if extent is not None:
            into = torch.zeros(tensor.nbytes, dtype=torch.uint8)
            files.read([(extent, into)])
            assert torch.equal(into.view(tensor.dtype).view(shape), tensor)
        else:
            assert not tensor.nbytes


def test_what_lies_in_memory_or_in_another_order_has_no_place(tmp_path):
    files = Files(tmp_path)
    stored = files.stored(torch.ones(8, 8))
    assert files.extents([stored.T, torch.ones(8, 8), stored])[:2] == [None, None]
    assert files.extents([stored])[0] is not None


def test_random_weights_are_the_same_wherever_they_wait(saved, ids):
    options = {"device": "cpu", "random_weights": True, "allow_partial": True}
    first, second = (load_model(str(saved), offload=where, **options) for where in ("yes", "disk"))
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.logits(ids[0]), second.logits(ids[0]))
    assert not any(p.isnan().any() for p in first.model.parameters())
