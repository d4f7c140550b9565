"""Exported checkpoints, read back by our own reader: every weight is what was measured."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from fp4scope.deploy import checkpoint
from fp4scope.deploy.checkpoint import divisor, write_checkpoint
from fp4scope.deploy.plan import plan_export
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.errors import FormatError, OutputError
from fp4scope.groups import scale_partners
from fp4scope.kernels import fake_quantize
from fp4scope.models import load_model, open_source
from fp4scope.operands import Injector, products

from .chosen import setting_for, written_for

FAMILIES = ["llama", "qwen3-moe"]


def expected(source, export):
    """Every weight as it is measured with served scales: those that are fused share an amax."""
    with source.opened() as tensors:
        found = {key: tensors[key] for key in source.stored}
    fused = {}
    for key in export.by_key:
        first = re.sub("(k|v)_proj", "q_proj", key.replace("up_proj", "gate_proj"))
        fused.setdefault(first, []).append(key)
    for keys in fused.values():
        largest = max(found[key].abs().max() for key in keys)
        for key in keys:
            fmt = export.by_key[key].format
            amax = largest if fmt.uses_tensor_amax else None
            found[key] = fake_quantize(found[key], fmt, amax=amax)
    return found


def without_mxfp4(name):
    """What ModelOpt stores."""
    setting = setting_for(name)
    return None if setting and "mxfp4" in setting.format else setting


def held(folder):
    """The tensors of all its files by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dialect", ["compressed-tensors", "modelopt"])
def test_every_weight_is_what_was_measured(exported, tmp_path, family, dialect):
    source, export = exported(family, without_mxfp4 if dialect == "modelopt" else setting_for)
    assert len(export.packed) > 8
    write_checkpoint(export, source, tmp_path / "packed", dialect)
    again = open_source(str(tmp_path / "packed"))
    assert {p.key for ps in again.pieces.values() for p in ps} == {
        p.key for ps in source.pieces.values() for p in ps
    }
    with again.opened() as tensors:
        for key, values in expected(source, export).items():
            assert torch.equal(tensors[key].to(values.dtype), values), key


@pytest.mark.parametrize(("family", "dtype"), [("llama", "float32"), ("qwen3-moe", "bfloat16")])
def test_what_was_measured_with_served_scales_is_stored(exported, tmp_path, family, dtype):
    """Every image that stood in the model while it was measured is what a reader finds."""
    source, export = exported(family, without_mxfp4)
    write_checkpoint(export, source, tmp_path / "packed", "modelopt")
    loaded = load_model(source.where, device="cpu", dtype=dtype)
    again = load_model(str(tmp_path / "packed"), device="cpu", dtype=dtype)
    sites = loaded.layout.sites
    settings = dict(export.written.recipe.in_block(list(sites)))
    amax = dict.fromkeys(loaded.layout.inputs, 8.0)
    injector = Injector(loaded.model, amax, fused=scale_partners(sites))
    served = dict(products(again.model))
    with injector.applied(settings):
        now = dict(products(loaded.model))
        measured = {name: now[name].weight.clone() for name in settings}
    assert len(measured) == len(settings) > 8
    for name, weight in measured.items():
        assert torch.equal(served[name].weight, weight), name


@pytest.mark.parametrize("family", FAMILIES)
def test_it_loads_as_a_model(exported, tmp_path, ids, family):
    source, export = exported(family)
    write_checkpoint(export, source, tmp_path / "packed", shard_bytes=30_000)
    loaded = load_model(str(tmp_path / "packed"), device="cpu")
    plain = load_model(source.where, device="cpu")
    assert "NVFP4" in loaded.prior_quantization
    assert loaded.logits(ids[0]).isfinite().all()
    assert loaded.logits(ids[0]).ne(plain.logits(ids[0])).any()
    index = json.loads((tmp_path / "packed/model.safetensors.index.json").read_text())
    names = {path.name for path in (tmp_path / "packed").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == names
    assert len(names) > 2
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for t in held(tmp_path / "packed").values()
    )


def test_no_more_than_a_shard_is_in_memory(exported, tmp_path, monkeypatch):
    source, export = exported("llama")
    sizes = []

    def save(tensors, path, metadata):
        sizes.append(sum(t.nbytes for t in tensors.values()))
        return real(tensors, path, metadata=metadata)

    real = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", save)
    write_checkpoint(export, source, tmp_path / "packed", shard_bytes=30_000)
    assert len(sizes) > 2
    assert max(sizes) <= 30_000


def test_what_fuses_shares_scales(exported, tmp_path):
    source, export = exported("qwen3-moe")
    write_checkpoint(export, source, tmp_path / "packed")
    tensors = held(tmp_path / "packed")
    attention = "model.layers.0.self_attn.{}_proj.{}_global_scale"
    for what in ("weight", "input"):
        q, k, v = (tensors[attention.format(leaf, what)] for leaf in "qkv")
        assert q.shape == (1,)
        assert q == k == v
    amax = export.written.input_amax
    largest = max(amax[f"model.layers.0.self_attn.{leaf}_proj"] for leaf in "qkv")
    assert q.item() == pytest.approx(2688 / largest, rel=1e-6)
    expert = "model.layers.0.mlp.experts.{}.{}_proj.weight_global_scale"
    gate, up, other, down = (
        tensors[expert.format(*which)]
        for which in ((0, "gate"), (0, "up"), (1, "gate"), (0, "down"))
    )
    assert gate == up
    assert len({gate.item(), other.item(), down.item()}) == 3


def test_experts_that_no_token_reached(folder_of, tmp_path):
    """An expert is a site each; those without an input take the largest of their layer."""
    folder = folder_of("qwen3-moe")
    named = ["model.layers.0.mlp.experts.0.gate_up_proj"]
    source = open_source(str(folder), named=named)
    written = written_for(source)
    amax = dict(written.input_amax)
    amax |= {named[0]: 0.0, "model.layers.0.mlp.experts.2.gate_up_proj": 99.0}
    written = written_for(source, input_amax=amax)
    export = plan_export(written, source)
    by_module = {each.module: each.input_amax for each in export.packed}
    assert by_module["model.layers.0.mlp.experts.0.up_proj"] == 99.0
    assert by_module["model.layers.0.mlp.experts.1.up_proj"] < 99.0


def test_all_that_lies_beside_the_weights(exported, tmp_path):
    source, export = exported("llama", dtype=torch.float32)
    write_checkpoint(export, source, tmp_path / "packed")
    folder = tmp_path / "packed"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "generation_config.json", "tokenizer.json", "README.md"}
    assert not [name for name in names if name.startswith("part-")]
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["format"] == "mixed-precision"
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    assert held(folder)["model.norm.weight"].dtype == torch.bfloat16
    card = (folder / "README.md").read_text()
    assert "| NVFP4 W4A4 |" in card
    assert "average bits" in card
    found = WrittenRecipe.read(folder / checkpoint.RECIPE, source.sites)
    assert found == export.written


def test_a_head_that_is_tied_is_named(exported, tmp_path):
    source, export = exported("smollm2", overrides={})
    write_checkpoint(export, source, tmp_path / "packed")
    config = json.loads((tmp_path / "packed/config.json").read_text())
    assert "lm_head" in config["quantization_config"]["ignore"]
    assert "lm_head.weight" not in held(tmp_path / "packed")


def test_folders_that_are_there_and_disks_that_are_full(exported, tmp_path, monkeypatch):
    source, export = exported("llama")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists; choose a folder that does not"):
        write_checkpoint(export, source, tmp_path / "there")
    with pytest.raises(OutputError, match="cannot write"):
        write_checkpoint(export, source, tmp_path / "nowhere" / "packed")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"takes about 0\.00 GB"):
        write_checkpoint(export, source, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_nothing_is_left_of_an_export_that_failed(exported, tmp_path, monkeypatch):
    source, export = exported("llama")

    def fail(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        write_checkpoint(export, source, tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite(tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model("llama", intermediate_size=128).to(torch.bfloat16)
    model.model.layers[0].self_attn.k_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    source = open_source(str(tmp_path / "model"))
    export = plan_export(written_for(source), source)
    with pytest.raises(FormatError, match="k_proj"):
        write_checkpoint(export, source, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_the_number_that_is_divided_by():
    """More scales are decoded as they were measured, those with the significand 14 first."""
    generator = torch.Generator().manual_seed(0)
    significands = torch.arange(8, 16, dtype=torch.float32)
    same = {"found": torch.zeros(8), "inverse": torch.zeros(8)}
    scales = torch.rand(400, generator=generator) / 100
    for scale in scales:
        found, inverse = divisor(scale), 1 / scale
        assert found == pytest.approx(inverse.item(), rel=1e-6)
        for name, by in (("found", found), ("inverse", inverse)):
            same[name] += significands / by == significands * scale
    assert same["found"][6] > same["inverse"][6]
    assert same["found"][6] == same["found"][same["found"] < len(scales)].max()
