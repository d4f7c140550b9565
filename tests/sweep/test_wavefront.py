"""The wavefront against the naive path, which shares no sweep code with it.

On a CPU in FP32 a matrix product of 16 rows or more gives a row the same bits whatever the other
rows are, if its widths are multiples of 16. There the two paths must agree bit for bit, although
quantizing activations magnifies any difference. Elsewhere (short windows, BF16) they agree to
rounding, which only quantized weights leave small.
"""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from fp4scope.design import NOTHING, Run
from fp4scope.models import find_layout, find_parts
from fp4scope.operands import Injector
from fp4scope.study import Parts
from fp4scope.sweep.shape import TILE_ROWS, Shape
from fp4scope.sweep.wavefront import FEWEST_ROWS, tiles

EVERYTHING = {
    "formats": "mxfp4:floor,nvfp4",
    "operands": "weights+activations,weights,activations",
    "direction": "keep,only",
    "sweep": "projections,blocks,layers",
    "replicas": 2,
    "jitter": 1,
}


def sample(asked, runs, seed):
    """The W4A4 controls, and a run of each operands, direction and level: any format and unit.

    Every other one is a second realisation.
    """
    dice = random.Random(seed)
    kinds = {}
    for contrast in asked:
        kind = tuple(contrast.labels[name] for name in ("precision", "direction", "level"))
        kinds.setdefault(kind, []).append(contrast.own)
    weights = {s.precision for run in runs for s in run.recipe.settings} - {"W4A4"}
    controls = [
        run
        for run in runs
        if not run.recipe.edits and not any(s.precision in weights for s in run.recipe.settings)
    ]
    units = []
    for i, kind in enumerate(kinds.values()):
        units.append(Run(dice.choice(kind), i % 2))
    return controls + units


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    different = {k: (found[k], expected[k]) for k in expected if found[k] != expected[k]}
    assert different == {}


def assert_close(found, expected, nats_per_token):
    assert found.keys() == expected.keys()
    for key, (tokens, value) in expected.items():
        assert found[key][0] == tokens
        if key[2] == "kl_bins" or key[2].startswith("strata_"):
            continue  # a token beside an edge may go to either side
        allowed = 1 if key[2].endswith("top1") else nats_per_token * tokens
        assert abs(found[key][1] - value) <= allowed, key


def test_equal_to_the_bit(
    family,
    adopted,
    ids,
    planned,
    units,
    calibrated,
    open_sweep,
    numbers_of,
    naive_numbers,
    unchanged,
):
    """Every family, with every kind of variant."""
    loaded = adopted(family)
    injector = calibrated(loaded, ids)
    study = {"patterns": ["*.mlp.*"], **EVERYTHING}
    variants = sample(units(loaded, **study), planned(loaded, **study), family)
    formats = {s.format for run in variants for s in run.recipe.settings}
    assert formats == {"mxfp4:floor", "nvfp4"}
    # Two realisations and a control; each all-quantized model has a replica besides.
    assert len(variants) == 2 + 2 * (3 + 1) + 3 * 2 * 4
    sweep = open_sweep(loaded, ids, variants, injector)
    assert sweep.worker.check.difference == 0
    assert sweep.shape.windows == 2
    assert sweep.shape.block > 2
    with unchanged(loaded.model):
        sweep.run()
    found = numbers_of(sweep)
    keys = {key for run in variants for key in run.keys}
    told = {"kl_max", "kl_bins", "strata_tokens", "strata_nll", "strata_kl"}
    told |= {"strata_reference"}
    assert len([key for key in found if key[2] not in told]) == 2 * len(keys)
    assert told < {key[2] for key in found}
    assert_same(found, naive_numbers(loaded, ids, variants, injector))


@pytest.mark.parametrize("block", [1, 3, 42])
def test_dynamic_scales_are_of_a_window_not_of_a_batch(
    block, adopted, ids, planned, open_sweep, numbers_of, naive_numbers
):
    """NVFP4 without calibration: every window has its own tensor scale, whatever shares a batch."""
    loaded = adopted("llama")
    injector = Injector(loaded.model)
    variants = planned(
        loaded, formats="nvfp4", activation_scale="dynamic", sweep="blocks", replicas=2
    )
    shape = Shape(windows=2, groups=1, block=block, head=4)
    sweep = open_sweep(loaded, ids, variants, injector, shape=shape)
    sweep.run()
    assert_same(numbers_of(sweep), naive_numbers(loaded, ids, variants, injector))


@pytest.mark.parametrize("past", [False, True], ids=["", "past what counts versions"])
def test_blocks_that_write_into_what_they_get(
    past, adopted, ids, planned, calibrated, open_sweep, numbers_of, naive_numbers
):
    """A state that other recipes go on from is not the one that a block has changed."""
    loaded = adopted("llama")
    injector = calibrated(loaded, ids)
    for layer in loaded.model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, args: ((args[0].data if past else args[0]).mul_(0.5), *args[1:])
        )
    variants = planned(loaded, formats="nvfp4", sweep="layers", direction="keep,only")
    sweep = open_sweep(loaded, ids, variants, injector)
    assert loaded.stack.overwrites
    sweep.run()
    assert_same(numbers_of(sweep), naive_numbers(loaded, ids, variants, injector))


def test_several_tiles_of_rows(adopted, planned, calibrated, open_sweep, numbers_of, naive_numbers):
    """Windows of more tokens than a tile, with a rest too short to be one and a rest that is."""
    loaded = adopted("smollm2", max_position_embeddings=512)
    most = TILE_ROWS
    for tokens in (most + FEWEST_ROWS - 1, 2 * most + FEWEST_ROWS + 5):
        ids = torch.randint(4, 96, (2, tokens), generator=torch.Generator().manual_seed(tokens))
        injector = calibrated(loaded, ids)
        variants = planned(loaded, formats="mxfp4", sweep="blocks")
        sweep = open_sweep(loaded, ids, variants, injector)
        sweep.run()
        assert_same(numbers_of(sweep), naive_numbers(loaded, ids, variants, injector))


def test_tiles_cover_every_row_once_and_none_is_short():
    most = TILE_ROWS
    for rows in (*range(1, 3 * most + 2), 2048):
        found = list(tiles(rows, most))
        assert [r for tile in found for r in range(rows)[tile]] == list(range(rows))
        sizes = [tile.stop - tile.start for tile in found]
        assert len(sizes) == 1 or min(sizes) >= FEWEST_ROWS
        assert max(sizes) < most + FEWEST_ROWS


@pytest.mark.parametrize(
    "family", ["mixtral", "gpt-oss", "deepseek-v3", "nemotron-h", "llama4", "qwen2-moe"]
)
def test_experts_are_equal_to_the_bit(
    family, adopted, ids, planned, calibrated, open_sweep, numbers_of, naive_numbers, unchanged
):
    """An expert's tokens come from all states of a batch, and none of them sees the others.

    Qwen2's shared expert has a gate of one output, a product that rounds differently by its rows.
    """
    loaded = adopted(family)
    injector = calibrated(loaded, ids)
    variants = planned(loaded, formats="nvfp4", sweep="blocks")
    alone = Shape(2, 1, block=1, head=1) if family == "qwen2-moe" else None
    sweep = open_sweep(loaded, ids, variants, injector, shape=alone)
    assert sweep.worker.check.batches
    with unchanged(loaded.model):
        sweep.run()
    assert_same(numbers_of(sweep), naive_numbers(loaded, ids, variants, injector))


def test_single_experts_are_equal_to_the_bit(
    adopted, ids, planned, calibrated, open_sweep, numbers_of, naive_numbers, unchanged
):
    """Kept and quantized alone, by turns with all of them in another format."""
    loaded = adopted("gpt-oss")
    layout = find_layout(loaded.model, single=True)
    loaded = replace(loaded, layout=layout)
    injector = calibrated(loaded, ids)
    variants = planned(
        loaded, formats="nvfp4,mxfp4", sweep="experts", patterns=["experts.[12].down_proj"]
    )
    assert len(variants) > 30
    sweep = open_sweep(loaded, ids, variants, injector)
    with unchanged(loaded.model):
        sweep.run()
    assert injector.held == set()
    assert_same(numbers_of(sweep), naive_numbers(loaded, ids, variants, injector))


@pytest.mark.parametrize(
    ("family", "wanted"), [("gpt2", Parts.PROJECTIONS), ("llama", Parts.HEADS)]
)
def test_parts_are_equal_to_the_bit(
    family, wanted, adopted, ids, planned, calibrated, open_sweep, numbers_of, naive_numbers
):
    """Of outputs and of inputs, kept and quantized alone, in two formats by turns."""
    loaded = adopted(family)
    forward = partial(loaded.logits, last=1)
    parts = find_parts(loaded.model, loaded.layout, forward, wanted)
    loaded = replace(loaded, layout=find_layout(loaded.model, parts=parts))
    injector = Injector(loaded.model, calibrated(loaded, ids).calibrated, parts=parts)
    variants = planned(loaded, formats="nvfp4,mxfp4", sweep="projections", patterns=["*.0.*"])
    assert len(variants) > 30
    sweep = open_sweep(loaded, ids, variants, injector)
    sweep.run()
    assert injector.held == set()
    assert_same(numbers_of(sweep), naive_numbers(loaded, ids, variants, injector))


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_bfloat16_agrees_to_rounding(
    family, adopted, ids, planned, open_sweep, numbers_of, naive_numbers
):
    """BF16 rounds logits of about 4 to 1/64, so a window's mean NLL to some hundredths."""
    loaded = adopted(family, torch.bfloat16)
    injector = Injector(loaded.model)
    variants = planned(loaded, formats="nvfp4", operands="weights", sweep="projections")
    sweep = open_sweep(loaded, ids, variants, injector)
    sweep.run()
    assert_close(numbers_of(sweep), naive_numbers(loaded, ids, variants, injector), 0.02)


@pytest.mark.parametrize(
    ("family", "config", "tokens"),
    [("llama", {}, 12), ("llama", {}, 2), ("mistral", {"intermediate_size": 83}, 24)],
)
def test_short_windows_and_odd_widths_agree_to_rounding(
    family, config, tokens, adopted, ids, planned, open_sweep, numbers_of, naive_numbers
):
    """Fewer than 16 rows, or widths with a rest, take other code in a matrix product."""
    loaded = adopted(family, **config)
    injector = Injector(loaded.model)
    variants = planned(loaded, formats="mxfp4", operands="weights", sweep="blocks,layers")
    sweep = open_sweep(loaded, ids[:, :tokens], variants, injector)
    sweep.run()
    expected = naive_numbers(loaded, ids[:, :tokens], variants, injector)
    assert_close(numbers_of(sweep), expected, 1e-5)


def test_the_order_and_the_seed_decide_nothing_but_the_perturbation(
    adopted, ids, planned, calibrated, open_sweep, numbers_of
):
    """A window's numbers belong to the window: another order of the text, the same numbers."""
    loaded = adopted("qwen3")
    injector = calibrated(loaded, ids)
    variants = planned(loaded, formats="nvfp4", sweep="projections", replicas=2)
    one, other = (open_sweep(loaded, ids, variants, injector, seed=seed) for seed in (3, 4))
    one.run()
    other.run()
    found, changed = numbers_of(one), numbers_of(other)
    plain = [key for key in found if not key[1]]
    assert plain
    assert all(found[key] == changed[key] for key in plain)
    perturbed = {(r, n, w) for r, n, _, w in found if n and r != NOTHING}
    assert perturbed
    for recipe, number, window in perturbed:
        keys = [key for key in found if (key[0], key[1], key[3]) == (recipe, number, window)]
        assert any(found[key] != changed[key] for key in keys)


def test_a_damaged_wavefront_would_be_noticed(
    adopted, ids, planned, calibrated, open_sweep, numbers_of, naive_numbers, monkeypatch
):
    """The comparison has teeth: one ulp in one block of one window shows in some variant."""
    loaded = adopted("llama")
    injector = calibrated(loaded, ids)
    variants = planned(loaded, formats="mxfp4", sweep="blocks")
    sweep = open_sweep(loaded, ids, variants, injector)
    own = type(loaded.stack).run

    def off_by_an_ulp(self, block, state, *rest):
        out = own(self, block, state, *rest)
        if block == 1:
            out.hidden[0] = torch.nextafter(out.hidden[0], out.hidden[0] + 1)
        return out

    monkeypatch.setattr(type(loaded.stack), "run", off_by_an_ulp)
    sweep.run()
    expected = naive_numbers(loaded, ids, variants, injector)
    with pytest.raises(AssertionError):
        assert_same(numbers_of(sweep), expected)
