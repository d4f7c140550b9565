"""Memory: how a sweep is cut to fit, that cutting changes no number, and that the bound holds."""

import json
import subprocess
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fp4scope.design import NOTHING
from fp4scope.errors import StudyError
from fp4scope.models import BlockStack
from fp4scope.sweep.memory import SIZES, Memory, free_memory, is_out_of_memory
from fp4scope.sweep.passes import passes
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.tree import build_tree


@pytest.fixture(scope="module")
def loaded(adopted):
    return adopted("qwen2-sliding")


@pytest.fixture(scope="module")
def variants(loaded, planned):
    return planned(loaded, sweep="projections,layers", replicas=2)


@pytest.fixture(params=["cpu", "cuda"])
def kind(request):
    return request.param


@pytest.fixture
def memory(loaded, variants, kind):
    """Of 2048-token windows, and without the fixed reserve, which hides what is small."""
    # Tasks of several windows, which a CPU prefers for short ones only.
    tokens = {"cpu": 1 << 14, "cuda": 1 << 15}[kind]
    sizes = replace(SIZES[kind], block_tokens=tokens, chunk_tokens=1 << 22, reserve=0)
    return Memory(loaded, variants, 2048, captured_bytes=100_000, kind=kind, sizes=sizes)


def shape_within(memory, budget):
    memory.budget = budget
    return memory.shape(64)


def shapes(memory, budgets):
    """The shape for every budget that has one."""
    found = {}
    for budget in budgets:
        try:
            found[budget] = shape_within(memory, budget)
        except StudyError:
            break
    return found


def test_a_shape_needs_no_more_than_the_budget(memory, kind):
    most = memory.needed(shape_within(memory, 10**12))
    found = shapes(memory, [int(most * 0.8**i) for i in range(60)])
    assert len(found) > 10
    for budget, shape in found.items():
        assert memory.needed(shape) <= budget, shape
        # Windows first: there is one group as long as there are several windows.
        assert shape.windows == 1 or shape.groups == 1
        assert not shape.spill or (kind, shape.windows, shape.groups) == ("cuda", 1, 1)
    windows, groups = ([getattr(s, n) for s in found.values()] for n in ("windows", "groups"))
    assert windows == sorted(windows, reverse=True)
    assert windows[0] > 4
    assert windows[-1] == 1
    assert max(groups) > 1
    assert any(s.spill for s in found.values()) == (kind == "cuda")


@pytest.mark.parametrize("family", ["qwen2-sliding", "qwen3-moe"])
def test_a_pass_has_tokens_enough_to_hide_what_it_copies(adopted, planned, family):
    """More from a disk than from memory, more where few of many experts compute."""
    plain = adopted(family)
    few = planned(plain, sweep="projections")[:3]
    assert len(plain.stack)  # made before: what copies have in place of blocks brings none
    waiting = [copy(plain), copy(plain)]
    for loaded, kind in zip(waiting, ("yes", "disk"), strict=True):
        loaded.offloaded = SimpleNamespace(kind=kind)
    found = []
    for loaded in (plain, *waiting):
        sizes = replace(SIZES["cuda"], block_tokens=1 << 12)
        memory = Memory(loaded, few, 2048, 0, budget=1 << 40, kind="cuda", sizes=sizes)
        shape = memory.shape(1000)
        found.append(shape.windows)
        tokens = shape.windows * 2048 * memory.executions(shape) / loaded.layout.blocks
        if loaded.offloaded is not None:
            held = sum(p.rows * p.cols * p.experts for p in loaded.block_products)
            rate = {"yes": 450e12 / 50e9, "disk": 450e12 / 3e9}[loaded.offloaded.kind]
            assert tokens > rate * held / loaded.active
    assert found[0] == 2 <= found[1] < found[2]


def test_less_memory_than_the_least_is_an_error_with_both_numbers(memory):
    with pytest.raises(
        StudyError,
        match=r"memory is 0\.00 GB beside the model, but .* one window of 2048 tokens at a time "
        r"takes 0\.\d\d GB; give --memory more, or use a smaller --seq-len",
    ):
        shape_within(memory, 1_000_000)


def test_more_of_anything_needs_more(memory):
    shape = Shape(windows=2, groups=4, block=4, head=4)
    needed = memory.needed(shape)
    assert memory.needed(replace(shape, windows=4)) > needed
    assert memory.needed(replace(shape, groups=1)) > needed
    assert memory.needed(replace(shape, head=4000)) > needed
    assert memory.needed(replace(shape, block=400)) > needed
    assert memory.needed(replace(shape, spill=True)) < needed


def test_halving_ends_at_the_smallest(memory, kind, variants):
    shape = shape_within(memory, 10**12)
    seen = []
    while shape is not None:
        seen.append(shape)
        shape = memory.smaller(shape)
    assert len(seen) == len(set(seen)) < 60
    assert (seen[-1].windows, seen[-1].block, seen[-1].head) == (1, 1, 1)
    assert seen[-1].groups == len(variants)
    assert seen[-1].spill == (kind == "cuda")
    first_group = next(s for s in seen if s.groups > 1)
    assert first_group.windows == 1


@pytest.mark.parametrize("groups", [1, 2, 5, 1000])
def test_passes_keep_every_variant_once_and_carry_what_is_compared_with(groups, loaded, variants):
    parts = passes(variants, groups, loaded.layout.sites)
    assert len(parts) <= groups
    assert groups < 1000 or len(parts) > 100

    def names(members):
        return [(run.recipe, run.replica, run.against) for run in members]

    kept = [name for part in parts for name in names(part.runs[part.carried :])]
    assert len(kept) == len(variants)
    assert set(kept) == set(names(variants))
    assert parts[0].carried == 0
    for part in parts:
        own = names(part.runs)
        assert len(own) == len(set(own))
        assert (NOTHING, 0, NOTHING) in own
        for run in part.runs:
            assert (run.against, 0, NOTHING) in own
        assert len(part.tree.leaves) == len(own)


def test_passes_are_of_about_the_same_number(loaded, variants):
    sizes = [len(part.runs) - part.carried for part in passes(variants, 4, loaded.layout.sites)]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 8


@pytest.fixture(scope="module")
def small(adopted, planned, calibrated, ids):
    """A W4A4 study of a model, its windows and its injector."""
    loaded = adopted("llama")
    four = torch.cat([ids, ids.flip(0).roll(1, 1)])
    variants = planned(loaded, sweep="blocks", replicas=2)
    return loaded, four, variants, calibrated(loaded, four)


@pytest.fixture(scope="module")
def expected(small, naive_numbers):
    return naive_numbers(*small)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(windows=4, groups=1, block=42, head=100),
        Shape(windows=3, groups=1, block=2, head=3),
        Shape(windows=2, groups=3, block=5, head=2),
        Shape(windows=1, groups=6, block=1, head=1),
        Shape(windows=2, groups=1, block=4, head=7, spill=True),
    ],
    ids=str,
)
def test_no_number_depends_on_the_shape(shape, small, expected, open_sweep, numbers_of):
    """Quantized activations included: whatever shares a chunk, a batch or a pass."""
    sweep = open_sweep(*small, shape=shape)
    sweep.run()
    assert numbers_of(sweep) == expected
    assert sweep.log.shapes == [shape.to_json()]


def test_trees_are_built_once(small, open_sweep, monkeypatch):
    """For the shape, and for all tasks of a sweep that has one."""
    built = []

    def build(runs, sites):
        built.append(len(runs))
        return build_tree(runs, sites)

    monkeypatch.setattr("fp4scope.sweep.passes.build_tree", build)
    sweep = open_sweep(*small, shape=Shape(windows=2, groups=1, block=4, head=4))
    sweep.run()
    assert len(sweep.log.jobs) == 2
    assert built == [len(small[2])]


def test_a_resumed_run_keeps_its_shape(small, expected, open_sweep, numbers_of):
    before = Shape(windows=3, groups=2, block=4, head=3)
    first = open_sweep(*small, shape=before)

    def stop(event):
        if event.windows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    assert len(first.log.windows) == 3
    again = open_sweep(*small, log=first.log)
    assert again.shape == before
    assert again.notes == []
    again.run()
    assert numbers_of(again) == expected
    assert again.log.shapes == [before.to_json()]


def test_a_shape_that_no_longer_fits_is_flagged(small, open_sweep):
    large = Shape(windows=4, groups=1, block=4000, head=100)
    loaded, _, variants, _ = small
    needed = Memory(loaded, variants, 24, 100_000).needed(large)
    first = open_sweep(*small, shape=large, memory=2 * needed)
    assert first.notes == []
    again = open_sweep(*small, log=first.log, memory=needed // 2)
    assert again.shape != large
    assert again.memory_bytes <= needed // 2
    assert len(again.notes) == 1
    assert again.notes[0].startswith("warning: less memory is free than when this folder was begun")


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_what_is_out_of_memory(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(KeyboardInterrupt("not enough memory"))


def failing(monkeypatch, error, calls):
    """`BlockStack.run` raises at these calls."""
    own, count = BlockStack.run, iter(range(10**9))

    def run(self, *args, **kwargs):
        if next(count) in calls:
            raise error
        return own(self, *args, **kwargs)

    monkeypatch.setattr(BlockStack, "run", run)


@pytest.mark.parametrize("error", ERRORS[:2], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("calls", [{7}, {0, 1, 2, 3}, {3, 40}], ids=str)
def test_out_of_memory_on_the_way_halves_the_chunk_and_goes_on(
    error, calls, small, expected, open_sweep, numbers_of, monkeypatch, unchanged
):
    start = Shape(windows=4, groups=1, block=2, head=8)
    sweep = open_sweep(*small, shape=start)
    failing(monkeypatch, error, calls)
    events = []
    with unchanged(small[0].model):
        sweep.run(events.append)
    assert numbers_of(sweep) == expected
    assert len(sweep.notes) == len(calls)
    assert sweep.notes[0] == (
        "out of memory with 4 windows a chunk, batches of 2; going on with 2 windows a chunk, "
        "batches of 2"
    )
    assert [e.note for e in events if e.note] == sweep.notes
    assert sweep.shape.windows == max(1, 4 >> len(calls))
    assert sweep.log.shapes[-1] == sweep.shape.to_json()
    assert events[-1].windows == 4


def test_nothing_left_to_halve_is_an_error(small, open_sweep, monkeypatch, unchanged):
    sweep = open_sweep(*small, shape=Shape(windows=4, groups=1, block=8, head=8))
    failing(monkeypatch, ERRORS[0], range(10**9))
    with (
        unchanged(small[0].model),
        pytest.raises(
            StudyError, match=r"out of memory with one window of 24 .*Tried to allocate.*--seq-len"
        ),
    ):
        sweep.run()
    assert sweep.log.windows == []


def test_another_error_is_not_taken_for_memory(small, open_sweep, monkeypatch):
    sweep = open_sweep(*small)
    failing(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), {5})
    with pytest.raises(RuntimeError, match="mat1"):
        sweep.run()
    assert sweep.notes == []


def test_free_memory_is_some_of_what_there_is():
    import psutil

    assert 0 < free_memory(torch.device("cpu")) < psutil.virtual_memory().total


BOUNDED = """
import json, sys, tempfile
from dataclasses import replace
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from fp4scope.design import design
from fp4scope.operands import Injector
from fp4scope.kernels import fake_quantize
from fp4scope.ledger import Log
from fp4scope.models import adopt
from fp4scope.study import Study
from fp4scope.sweep import Memory, Worker, memory, schedule, self_check

fake_quantize(torch.ones(16), "nvfp4")  # a compiler that is loaded for it is no part of a sweep
# Less than usual, which would be most of a model this small.
memory.SIZES["cpu"] = replace(memory.SIZES["cpu"], reserve=1 << 27)
torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=4096, max_position_embeddings=256,
)
loaded = adopt(LlamaForCausalLM(config), None, name="random")
ids = torch.randint(0, 4096, (1, 256))
options = {"sweep": "layers", "formats": "nvfp4", "activation_scale": "dynamic"}
study = Study.build(model="x", all_quantized="", **options)
runs = design(study, loaded.layout.sites).runs


def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def growth(budget):
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder) / "journal.jsonl", {})
        check = self_check(loaded, ids)
        worker = Worker(loaded, ids, Injector(loaded.model), check=check)
        taken = Memory(loaded, runs, 256, check.captured_bytes, budget)
        sweep = schedule(worker, taken, log, check)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = resident("VmRSS")
        sweep.run()
        log.close()
        return {
            "grew": resident("VmHWM") - before,
            "needed": sweep.memory_bytes,
            "nll": [log.ledger[recipe].values["nll"] for recipe in log.ledger],
        }


print(json.dumps([growth(int(sys.argv[1])), growth(10**10)]))
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc"
)
def test_a_run_stays_inside_its_memory():
    """A process' own peak, under a bound far below what it takes without one."""
    bound = 165_000_000
    run = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(bound)], capture_output=True, text=True, check=True
    )
    bounded, free = json.loads(run.stdout)
    assert bounded["needed"] <= bound < free["needed"]
    assert bounded["grew"] < bound
    assert free["grew"] < free["needed"]
    # The bound is what kept it small, and it moved no number.
    assert free["grew"] > 2 * bounded["grew"]
    assert free["nll"] == bounded["nll"]
