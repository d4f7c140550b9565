"""Blocks that several processes of a host have once."""

import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from crooked import inode_at
from fp4scope.errors import StudyError
from fp4scope.models import adopt, load_model
from fp4scope.models.pool import can_share
from fp4scope.models.shelf import Beside, Shelf

CASES = [(family, where) for family in ("llama", "qwen3-moe") for where in ("yes", "disk")]


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr("fp4scope.models.taking._SMALL", 0)
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    def build(family):
        folder = tmp_path / family
        tiny_model(family).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return str(folder)

    return build


def loaded(folder, where, **options):
    options = {"dtype": "bfloat16", "sharing": 2, "allow_partial": True} | options
    return load_model(folder, device="cpu", offload=where, **options)


def files_of(model):
    """The inodes of what shows the numbers of a model's blocks; 0 for a process's own memory."""
    named = model.model.named_parameters()
    blocks = [p for name, p in named if any(map(str.isdigit, name.split(".")))]
    return {inode_at(parameter.data_ptr()) for parameter in blocks}


def bound_to_the_host(model):
    for block in range(model.layout.blocks):
        model.offloaded._host.bind(block)
    return files_of(model)


@pytest.mark.parametrize(("family", "where"), CASES)
@pytest.mark.parametrize("random", [False, True], ids=["stored", "random"])
def test_the_second_has_what_the_first_keeps(saved, ids, family, where, random):
    folder = saved(family)
    first = loaded(folder, where, random_weights=random)
    # What is drawn where it waits is drawn in another order than on the device.
    alone = loaded(folder, "yes" if random else "no", random_weights=random, sharing=1)
    shelf = pickle.loads(pickle.dumps(first.offloaded.shelf))
    second = loaded(folder, where, random_weights=random, shelf=shelf)
    assert bound_to_the_host(second) == {shelf.identity[1]}
    assert second.offloaded.scratch_bytes == 0
    assert alone.fingerprint == first.fingerprint == second.fingerprint
    for _ in range(2):
        for row in ids:
            expected = alone.logits(row)
            assert torch.equal(first.logits(row), expected)
            assert torch.equal(second.logits(row), expected)


def test_another_process_has_it_too(saved, tmp_path):
    folder = saved("qwen3-moe")
    for where in ("yes", "disk"):
        first = loaded(folder, where)
        given = tmp_path / "shelf"
        given.write_bytes(pickle.dumps(first.offloaded.shelf))
        ran = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, folder, where, str(given)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ran.stdout.split() == [
            first.fingerprint, str(first.offloaded.shelf.identity[1])
        ], ran.stderr  # fmt: skip


ELSEWHERE = f"""
import pickle, sys
sys.path[:0] = {[os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]}
import test_shelf
from fp4scope.models import taking
taking._SMALL = 0
with open(sys.argv[3], "rb") as file:
    shelf = pickle.load(file)
found = test_shelf.loaded(sys.argv[1], sys.argv[2], shelf=shelf)
print(found.fingerprint, *test_shelf.bound_to_the_host(found))
"""


@pytest.mark.parametrize("where", ["yes", "disk"])
def test_other_weights_are_not_taken_for_these(saved, tiny_model, ids, tmp_path, where):
    """One block differs by one number: it alone is kept apart."""
    first = loaded(saved("llama"), where)
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1
    model.save_pretrained(tmp_path / "llama")
    second = loaded(str(tmp_path / "llama"), where, shelf=first.offloaded.shelf)
    assert second.fingerprint != first.fingerprint
    inodes = bound_to_the_host(second)
    assert first.offloaded.shelf.identity[1] in inodes
    assert len(inodes) == 2
    alone = loaded(str(tmp_path / "llama"), "no")
    assert torch.equal(second.logits(ids[0]), alone.logits(ids[0]))


@pytest.mark.parametrize("where", ["yes", "disk"])
def test_what_is_written_to_blocks_does_not_reach_a_shelf_that_is_a_file(saved, where):
    """Memory is shared as it is: nothing writes to blocks that wait."""
    first = loaded(saved("llama"), where)
    second = loaded(saved("llama"), where, shelf=first.offloaded.shelf)
    bound_to_the_host(first), bound_to_the_host(second)
    names = dict(first.model.named_parameters())
    parameter = dict(second.model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    before = names["model.layers.0.mlp.up_proj.weight"].clone()
    parameter.data.add_(1)
    now = names["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(now, before) == (where == "disk")


def test_one_that_is_not_there_is_done_without(tmp_path):
    (tmp_path / "file").write_bytes(b"abcd")
    file = os.open(tmp_path / "file", os.O_RDWR)
    shelf = Shelf.of(file, [(0, 4)], shared=False)
    opened = Beside.opened(shelf)
    assert opened.like(torch.tensor([97, 98, 99, 100], dtype=torch.uint8)) is not None
    assert opened.like(torch.tensor([97, 98, 99, 101], dtype=torch.uint8)) is None
    assert opened.like(torch.tensor([97, 98, 99], dtype=torch.uint8)) is None
    device, inode, size = shelf.identity
    assert Beside.opened(shelf._replace(identity=(device, inode + 1, size))) is None
    reading, writing = os.pipe()
    assert Beside.opened(Shelf.of(reading, [], shared=False)) is None
    for end in (reading, writing, file):
        os.close(end)
    assert Beside.opened(shelf) is None


@pytest.mark.parametrize("random", [False, True], ids=["stored", "random"])
def test_the_second_needs_no_room_of_its_own(saved, monkeypatch, random):
    folder = saved("llama")
    first = loaded(folder, "yes", random_weights=random)
    full = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr("fp4scope.models.placement.psutil", full)
    shelf = first.offloaded.shelf
    second = loaded(folder, "yes", random_weights=random, shelf=shelf)
    assert bound_to_the_host(second) == {shelf.identity[1]}
    device, inode, size = shelf.identity
    elsewhere = shelf._replace(identity=(device, inode + 1, size))
    with pytest.raises(StudyError, match="do not fit"):
        loaded(folder, "yes", random_weights=random, shelf=elsewhere)


def test_a_model_in_memory_needs_no_more_of_it(tiny_model, tiny_tokenizer, monkeypatch):
    full = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr("fp4scope.models.placement.psutil", full)
    model = tiny_model("llama")
    assert adopt(model, tiny_tokenizer(), device=torch.device("cpu"), offload="yes").offloaded


@pytest.mark.parametrize("call", ["os.memfd_create", "os.truncate", "os.open", "mmap.mmap"])
def test_a_system_that_shares_no_memory(saved, ids, monkeypatch, call):
    """As sandboxes and limits do: blocks are kept as by one process alone."""
    folder = saved("llama")
    expected = loaded(folder, "no").logits(ids[0])
    own = {"os.open": os.open}.get(call)

    def refused(*args, **options):
        if own is not None and not str(args[0]).startswith("/proc/self/fd"):
            return own(*args, **options)
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(call, refused)
    opened = len(os.listdir("/proc/self/fd"))
    alone = loaded(folder, "yes")
    assert alone.offloaded.shelf is None
    assert len(os.listdir("/proc/self/fd")) == opened
    assert can_share() == (call in ("os.truncate", "mmap.mmap"))
    monkeypatch.undo()
    assert torch.equal(alone.logits(ids[0]), expected)


def test_one_process_alone_shares_nothing(saved):
    assert loaded(saved("llama"), "yes", sharing=1).offloaded.shelf is None
