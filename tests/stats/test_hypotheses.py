"""The paper's hypotheses: studies that support, contradict and do not decide each of them."""

import numpy as np
import pytest

from fp4scope.records import REFERENCE, ActivationRecord, Variant, baseline
from fp4scope.stats import Verdict, hypotheses
from fp4scope.stats.depth import ALL

BOTH = "weights+activations"
MILLI = 1e-3
COMPONENTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TAILS = dict(zip(COMPONENTS, (1.6, 1.7, 1.8, 6.0, 2.0, 3.0, 50.0), strict=True))
BY_KIND = dict(zip(COMPONENTS, (40, 30, 20, 10, 70, 60, 50), strict=True))
BY_BOTH = dict(zip(COMPONENTS, (10, 20, 30, 40, 50, 60, 70), strict=True))
BY_TAIL = dict(zip(COMPONENTS, (10, 20, 30, 60, 40, 50, 70), strict=True))
BLOCKS = 9


@pytest.fixture
def study(observe, results):
    """`study(costs={...}, cells=[...])`: costs in millinats, give or take `noise` in a window.

    `costs` has the components' by (format, direction), `cells` a list of a cost for each block by
    (format, direction, component).
    """

    def build(costs=(), cells=(), *, noise=1.0, windows=16, tails=TAILS):
        rng = np.random.default_rng(0)
        text = rng.normal(3, 1, windows)
        found = [observe(REFERENCE, text)]
        costs, cells = dict(costs), dict(cells)

        def add(fmt, direction, level, name, block, cost):
            spread = rng.normal(0, noise, windows)
            shift = MILLI * (cost + spread - spread.mean() + noise * rng.normal() / windows**0.5)
            nll = text + 0.5 - shift if direction == "restore" else text + shift
            names = {"format": fmt, "direction": direction, "operands": BOTH}
            found.append(observe(Variant(level=level, unit=name, block=block, **names), nll))

        for fmt in dict.fromkeys(key[0] for key in (*costs, *cells)):
            found.append(observe(baseline(fmt, BOTH), text + 0.5))
        for (fmt, direction), by_name in costs.items():
            for name, cost in by_name.items():
                add(fmt, direction, "components", name, None, cost)
        for (fmt, direction, name), by_block in cells.items():
            for block, cost in enumerate(by_block):
                add(fmt, direction, "cells", name, block, cost)
        measured = results(*found, model={"blocks": BLOCKS})
        measured.activations = [
            ActivationRecord(component=c, block=b, max=ratio, p999=1.0, ratio=ratio, elements=9)
            for c, ratio in tails.items()
            for b in range(BLOCKS)
        ]
        return measured

    return build


def held(measured):
    return dict(zip(("mechanism", "ordering", "scale", "localization"), hypotheses(measured),
                    strict=True))  # fmt: skip


def test_mechanism(study):
    families = [("mxfp4:floor", "restore"), ("nvfp4", "isolate")]
    for costs, verdict in ((BY_TAIL, Verdict.SUPPORTED), (BY_KIND, Verdict.CONTRADICTED)):
        found = held(study({family: costs for family in families}))["mechanism"]
        assert found.verdict is verdict
        for row in found.evidence:
            assert (row["units"], row["windows"]) == (7, 16)
            assert row["delta_rho"] == pytest.approx(row["rho_tail"] - row["rho_mlp"])
            assert row["delta_full"] < row["delta_rho"]
            for name in ("delta_rho", "delta_full"):
                assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    # Max/P99.9 has o_proj two ranks too high, gate_proj and up_proj one too low: it orders
    # components better than a yes-or-no can, which in its turn says all that it can say.
    found = held(study(dict.fromkeys(families, BY_BOTH)))["mechanism"]
    assert found.verdict is Verdict.UNDECIDED
    row = found.evidence[0]
    assert row["rho_tail"] == pytest.approx(1 - 6 * (4 + 1 + 1) / (7 * 48))
    assert row["rho_mlp"] == pytest.approx(0.866, abs=5e-4)
    assert row["delta_full"] == pytest.approx(row["rho_tail"] - 1)
    assert row["delta_rho"] > 0
    mixed = study({families[0]: BY_TAIL, families[1]: BY_KIND})
    assert held(mixed)["mechanism"].verdict is Verdict.UNDECIDED
    unsure = study(dict.fromkeys(families, BY_TAIL), noise=200.0)
    assert held(unsure)["mechanism"].verdict is Verdict.UNDECIDED
    silent = held(study({families[0]: BY_TAIL}, tails={}))["mechanism"]
    assert silent.verdict is Verdict.UNDECIDED
    assert "activation statistics" in silent.sentence


def test_mechanism_needs_kinds_that_it_knows(study):
    named = {"a": 1.0, "b": 2.0, "c": 3.0}
    found = held(study({("nvfp4", "restore"): named}, tails=named))["mechanism"]
    assert found.verdict is Verdict.UNDECIDED
    assert not found.evidence


def test_ordering(study):
    families = [("mxfp4:floor", "restore"), ("nvfp4", "restore"), ("nvfp4", "isolate")]
    same = held(study({family: BY_BOTH for family in families}))["ordering"]
    assert same.verdict is Verdict.SUPPORTED
    assert [row["rho"] for row in same.evidence] == [pytest.approx(1.0)] * 3
    assert [row["separated"] for row in same.evidence] == [21] * 3
    swapped = BY_BOTH | {"up_proj": 70, "down_proj": 60}
    found = held(study({families[0]: BY_BOTH, families[1]: BY_BOTH, families[2]: swapped}))
    assert found["ordering"].verdict is Verdict.CONTRADICTED
    assert [row["reversed"] for row in found["ordering"].evidence] == [0, 1, 1]
    swap = "down_proj costs more than up_proj under mxfp4:floor, restore, and less under nvfp4"
    assert swap in found["ordering"].sentence
    unsure = held(study({family: BY_BOTH for family in families}, noise=100.0))["ordering"]
    assert unsure.verdict is Verdict.UNDECIDED
    alone = held(study({families[0]: BY_BOTH}))["ordering"]
    assert alone.verdict is Verdict.UNDECIDED
    assert not alone.evidence


def test_scale_is_never_decided_by_one_model(study):
    assert held(study())["scale"].verdict is Verdict.UNDECIDED


def test_localization(study):
    late, early = [1.0] * 8 + [40.0], [40.0] + [1.0] * 8
    rest = {("nvfp4", "restore", c): late for c in ("q_proj", "up_proj")}
    found = held(study(cells=rest))["localization"]
    assert found.verdict is Verdict.CONTRADICTED
    down = ("mxfp4:floor", "restore", "down_proj")
    found = held(study(cells=rest | {down: early}))["localization"]
    assert found.verdict is Verdict.SUPPORTED
    assert "1 of 3 curves" in found.sentence
    assert "down_proj at block 0 under mxfp4:floor, restore" in found.sentence
    rows = {(row["format"], row["component"]): row for row in found.evidence}
    summed = rows["mxfp4:floor", ALL]
    assert summed["peak_third"] == "early"
    # 42 of 48 millinats are in the first three of nine blocks.
    assert summed["share_early"] == pytest.approx(42 / 48, abs=0.03)
    assert summed["share_early_low"] < summed["share_early"] < summed["share_early_high"]
    assert rows["nvfp4", "q_proj"]["p_final"] == 1
    flat = held(study(cells={down: [1.0] * 9}))["localization"]
    assert flat.verdict is Verdict.UNDECIDED
    assert held(study())["localization"].verdict is Verdict.UNDECIDED


def test_a_peak_in_noise_is_no_peak(study):
    """Where all costs are negative the largest is no sensitivity, wherever it lies."""
    cells = {("nvfp4", "isolate", "q_proj"): [-1.0] + [-40.0] * 8}
    assert held(study(cells=cells))["localization"].verdict is Verdict.UNDECIDED


def test_too_few_windows_decide_nothing(study):
    few = study(
        {("nvfp4", d): BY_TAIL for d in ("restore", "isolate")},
        {("nvfp4", "restore", "q_proj"): [40.0] + [1.0] * 8},
        windows=7,
    )
    assert {h.verdict for h in hypotheses(few)} == {Verdict.UNDECIDED}
