"""Projections that not every block has: where they are, and of what kind."""

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, asked, entries, rebuilt, sites_at
from fp4scope.kinds import kind_of_path
from fp4scope.report.joint import JointFindings
from fp4scope.stats import order_table, unit_table
from fp4scope.stats.findings.depth import ALL, depth_table
from fp4scope.stats.findings.projections import blocks_with, kind_of

MILLI = 1e-3
OF = {"format": "nvfp4", "direction": "only", "level": "layers"}


def mixers(blocks):
    """A hybrid's projections: up_proj everywhere, attention in even blocks, mamba in odd ones."""
    return {
        "up_proj": range(blocks),
        "q_proj": range(0, blocks, 2),
        "in_proj": range(1, blocks, 2),
    }


@pytest.fixture
def hybrid(observe, results):
    """`hybrid(costs)`: layers cost 1 millinat, but for some, give or take 0.01 in a window."""

    def build(costs=(), blocks=6, windows=16, only=None, seed=0):
        rng = np.random.default_rng(seed)
        text, costs = rng.normal(3, 1, windows), dict(costs)
        found = [observe(REFERENCE, text), observe(all_quantized(OF["format"]), text + 0.1)]
        for projection, where in mixers(blocks).items():
            for block in where:
                if only is None or (projection, block) in only:
                    cost = costs.get((projection, block), 1.0) + 0.01 * rng.normal(size=windows)
                    layer = asked(unit=projection, block=block, **OF)
                    found.append(observe(layer, text + MILLI * cost))
        return results(*found, model={"blocks": blocks})

    return build


def by_projection(results):
    return {row["projection"]: row for row in depth_table(results)}


def test_no_projection_is_dropped_from_depth(hybrid):
    """One mixer costs fifty times as much as anything else."""
    rows = by_projection(hybrid({("in_proj", 1): 50.0}))
    assert set(rows) == {ALL, "up_proj", "q_proj", "in_proj"}
    summed = rows[ALL]
    assert (summed["peak_block"], summed["projections"], summed["blocks"]) == (1, 3, 6)
    assert summed["peak_nll"] == pytest.approx(51 * MILLI, rel=0.01)
    # 52 + 1 of 61 millinats are in blocks 0 and 1.
    assert summed["share_early"] == pytest.approx(53 / 61, rel=0.01)
    mixer = rows["in_proj"]
    assert (mixer["peak_block"], mixer["blocks"]) == (1, 3)
    assert mixer["peak_nll"] == pytest.approx(50 * MILLI, rel=0.01)


def test_a_dense_first_block_keeps_its_projections(hybrid):
    results = hybrid({("up_proj", 0): 9.0})
    kept = [one for one in entries(results) if one.asked.unit != "up_proj" or one.asked.block == 0]
    rows = by_projection(rebuilt(results, kept))
    assert (rows["up_proj"]["blocks"], rows[ALL]["peak_block"]) == (1, 0)


def test_a_projection_that_was_measured_in_part_has_no_curve(hybrid):
    only = {(c, b) for c, where in mixers(6).items() for b in where} - {("in_proj", 3)}
    results = hybrid({("in_proj", 1): 50.0}, only=only)
    results.sites = sites_at((c, b, c) for c, where in mixers(6).items() for b in where)
    rows = by_projection(results)
    assert set(rows) == {ALL, "up_proj", "q_proj"}
    assert rows[ALL]["projections"] == 2


def test_orders_over_depth_hold_every_projection(hybrid):
    """Both models have a costly mixer; nothing else tells blocks apart."""
    costs = {(c, b): float(b) for c, where in mixers(6).items() for b in where}
    costs["in_proj", 1] = 50.0
    table = order_table(hybrid(costs), hybrid(costs, seed=1))
    rows = {row["level"]: row for row in table}
    assert (rows["layers"]["units"], rows["depth"]["units"]) == (12, 6)
    assert rows["depth"]["rho"] == pytest.approx(1)
    turned = {place: 6 - cost for place, cost in costs.items()} | {("in_proj", 1): 50.0}
    row = order_table(hybrid(costs), hybrid(turned, seed=1)).where(level="depth").rows[0]
    ranks = [1, 6, 2, 3, 4, 5], [5, 6, 4, 3, 2, 1]  # the mixer's block is first in both
    expected = 1 - 6 * sum((a - b) ** 2 for a, b in zip(*ranks, strict=True)) / 210
    assert row["rho"] == pytest.approx(expected)


def test_models_of_other_depth_are_compared_where_both_have_a_projection(hybrid):
    """In 4 and 8 blocks a projection that alternates is in every part of four, or in two."""
    rows = {r["level"]: r for r in order_table(hybrid(blocks=4), hybrid(blocks=8, seed=1))}
    # Of four parts: up_proj in 4, q_proj in blocks 0 and 2 of four, in_proj in 1 and 3.
    assert (rows["layers"]["parts"], rows["layers"]["units"]) == (4, 8)
    assert rows["depth"]["units"] == 4
    assert np.isfinite(rows["layers"]["rho"])


def test_results_say_where_projections_are(hybrid):
    results = hybrid()
    assert blocks_with(results) == {c: frozenset(where) for c, where in mixers(6).items()}
    results.sites = sites_at([("q_proj", 2, "a.q_proj")])
    assert blocks_with(results) == {"q_proj": frozenset({2})}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("q_proj", "attention"), ("self_attn.out_proj", "attention"), ("attn.c_attn", "attention"),
        ("self_attn.gate_proj", "attention"), ("linear_attn.in_proj_qkvz", "linear attention"),
        ("gate_up_proj", "MLP"), ("mlp.c_proj", "MLP"), ("mlp.experts.w1", "routed experts"),
        ("fc1", "MLP"), ("feed_forward.w2", "MLP"),
        ("block_sparse_moe.experts.0.w1", "routed experts"),
        ("mlp.shared_expert.up_proj", "shared expert"),
        ("q_a_proj", "attention"), ("mixer.up_proj", "MLP"), ("input_layernorm.mlp.fc1", None),
        ("mamba.in_proj", "state space"), ("mamba.gate_proj", "state space"),
        ("conv.in_proj", "convolution"), ("linear", None), ("c_proj", None),
    ],
)  # fmt: skip
def test_kinds_by_paths(name, kind):
    assert kind_of_path(name) == kind


def test_results_say_the_kind_or_the_whole_path_tells_it(results):
    measured = results(model={"blocks": 1})
    assert kind_of(measured, "w1") is None
    measured.sites = sites_at([("w1", 0, "mlp.experts.0.w1")])
    assert kind_of(measured, "w1") == "routed experts"
    measured.model["kinds"] = {"w1": "shared expert"}
    assert kind_of(measured, "w1") == "shared expert"


def test_projections_of_one_name_and_two_kinds_are_not_compared(hybrid):
    """A dense model's `up_proj` is no shared expert's, and Mamba's `in_proj` no convolution's."""
    mine, theirs = hybrid(), hybrid(seed=1)
    whole = {row["level"]: row for row in order_table(mine, theirs)}
    theirs.model["kinds"] = {"up_proj": "shared expert", "q_proj": "attention", "in_proj": None}
    rows = {row["level"]: row for row in order_table(mine, theirs)}
    assert (whole["layers"]["units"], rows["layers"]["units"]) == (12, 6)
    assert rows["depth"]["units"] == 6


def test_a_comparison_names_the_kind_where_it_differs(observe, results):
    def measured(kind):
        text = np.linspace(3, 4, 12)
        found = [observe(REFERENCE, text), observe(all_quantized("nvfp4"), text + 0.1)]
        for unit in ("up_proj", "q_proj"):
            asks = asked(unit=unit, **OF | {"level": "projections"})
            found.append(observe(asks, text + 0.01))
        kinds = {"up_proj": kind, "q_proj": "attention"}
        return results(*found, model={"blocks": 2, "kinds": kinds})

    dense, mixed = measured("MLP"), measured("shared expert")
    table = JointFindings({"dense": dense, "mixed": mixed}).projections
    assert set(table["projection"]) == {"up_proj (MLP)", "up_proj (shared expert)", "q_proj"}
    assert set(JointFindings({"a": dense, "b": dense}).projections["projection"]) == {
        "up_proj", "q_proj"
    }  # fmt: skip


def test_layers_say_the_type_of_their_block_where_blocks_differ(hybrid):
    results = hybrid(blocks=3)
    assert "layer_type" not in unit_table(results, "layers").columns
    results.model["layer_types"] = ["sliding_attention", "sliding_attention", "full_attention"]
    table = unit_table(results, "layers")
    assert {row["block"]: row["layer_type"] for row in table} == dict(
        enumerate(results.model["layer_types"])
    )
    assert "layer_type" not in unit_table(results, "projections").columns
