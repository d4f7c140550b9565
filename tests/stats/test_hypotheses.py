"""The paper's hypotheses: studies that support, contradict and do not decide each of them."""

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, asked, entries, rebuilt, sites_at
from fp4scope.ledger import ActivationRecord
from fp4scope.stats import Verdict, hypotheses
from fp4scope.stats.findings.depth import ALL, peak_p

MILLI = 1e-3
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TAILS = dict(zip(PROJECTIONS, (1.6, 1.7, 1.8, 6.0, 2.0, 3.0, 50.0), strict=True))
BY_KIND = dict(zip(PROJECTIONS, (40, 30, 20, 10, 70, 60, 50), strict=True))
BY_BOTH = dict(zip(PROJECTIONS, (10, 20, 30, 40, 50, 60, 70), strict=True))
BY_TAIL = dict(zip(PROJECTIONS, (10, 20, 30, 60, 40, 50, 70), strict=True))
BLOCKS = 9


@pytest.fixture
def study(observe, results):
    """`study(costs={...}, layers=[...])`: costs in millinats, give or take `noise` in a window.

    `costs` has the projections' by (format, direction), `layers` a list of a cost for each block by
    (format, direction, projection).
    """

    def build(costs=(), layers=(), *, noise=1.0, windows=16, tails=TAILS):
        rng = np.random.default_rng(0)
        text = rng.normal(3, 1, windows)
        found = [observe(REFERENCE, text)]
        costs, layers = dict(costs), dict(layers)

        def add(fmt, direction, level, name, block, cost):
            spread = rng.normal(0, noise, windows)
            shift = MILLI * (cost + spread - spread.mean() + noise * rng.normal() / windows**0.5)
            nll = text + 0.5 - shift if direction == "keep" else text + shift
            names = {"format": fmt, "direction": direction}
            found.append(observe(asked(level=level, unit=name, block=block, **names), nll))

        for fmt in dict.fromkeys(key[0] for key in (*costs, *layers)):
            found.append(observe(all_quantized(fmt), text + 0.5))
        for (fmt, direction), by_name in costs.items():
            for name, cost in by_name.items():
                add(fmt, direction, "projections", name, None, cost)
        for (fmt, direction, name), by_block in layers.items():
            for block, cost in enumerate(by_block):
                add(fmt, direction, "layers", name, block, cost)
        measured = results(*found, model={"blocks": BLOCKS})
        measured.activations = [
            ActivationRecord(projection=c, block=b, max=ratio, p999=1.0, ratio=ratio, elements=9)
            for c, ratio in tails.items()
            for b in range(BLOCKS)
        ]
        return measured

    return build


def held(measured):
    return dict(zip(("mechanism", "ordering", "scale", "localization"), hypotheses(measured),
                    strict=True))  # fmt: skip


FAMILIES = [("mxfp4:floor", "keep"), ("nvfp4", "only")]
FITTING, OPPOSITE = BY_BOTH, BY_KIND
"""Within MLP and attention costs rise with the tail, or fall with it."""


def test_mechanism(study):
    for costs, verdict in ((FITTING, Verdict.SUPPORTED), (OPPOSITE, Verdict.CONTRADICTED)):
        found = held(study(dict.fromkeys(FAMILIES, costs)))["mechanism"]
        assert found.verdict is verdict
        for row in found.evidence:
            assert (row["units"], row["windows"], row["orders"]) == (7, 16, 144)
            assert row["p_more" if costs is FITTING else "p_less"] == 1 / 144
            assert row["rho_within"] == pytest.approx(1 if costs is FITTING else -1)
            assert row["rho_mlp"] == pytest.approx(1)
            for name in ("rho_tail", "rho_within", "rho_mlp"):
                assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    # Max/P99.9 has o_proj two ranks too high, gate_proj and up_proj one too low.
    found = held(study(dict.fromkeys(FAMILIES, BY_BOTH)))["mechanism"]
    assert found.evidence[0]["rho_tail"] == pytest.approx(1 - 6 * (4 + 1 + 1) / (7 * 48))
    mixed = study({FAMILIES[0]: FITTING, FAMILIES[1]: OPPOSITE})
    assert held(mixed)["mechanism"].verdict is Verdict.UNDECIDED
    unsure = study(dict.fromkeys(FAMILIES, FITTING), noise=200.0)
    assert held(unsure)["mechanism"].verdict is Verdict.UNDECIDED
    silent = held(study({FAMILIES[0]: FITTING}, tails={}))["mechanism"]
    assert silent.verdict is Verdict.UNDECIDED
    assert "activation statistics" in silent.sentence


@pytest.mark.parametrize("costs", [FITTING, OPPOSITE, BY_TAIL])
def test_seven_projections_that_share_inputs_cannot_tell(study, costs):
    """q, k and v have one input, gate and up another: the best order is one of twelve."""
    shared = TAILS | dict.fromkeys(("q_proj", "k_proj", "v_proj"), 1.7) | {"gate_proj": 3.0}
    found = held(study(dict.fromkeys(FAMILIES, costs), tails=shared))["mechanism"]
    assert found.verdict is Verdict.UNDECIDED
    assert "7 projections cannot tell" in found.sentence
    assert found.evidence[0]["p_least"] == pytest.approx(1 / 12)


def test_layers_of_one_projection_are_in_the_evidence_and_decide_nothing(study):
    """Costs fall with the tail over blocks; projections with heavier tails cost more."""
    tails = {c: tail * (1 + np.arange(BLOCKS)) for c, tail in TAILS.items()}
    layers = {("nvfp4", "keep", c): (FITTING[c] - np.arange(BLOCKS)).tolist() for c in PROJECTIONS}
    measured = study({("nvfp4", "keep"): FITTING}, layers, noise=0.1)
    measured.activations = [
        ActivationRecord(projection=c, block=b, max=x, p999=1.0, ratio=x, elements=9)
        for c, of in tails.items()
        for b, x in enumerate(of.tolist())
    ]
    found = held(measured)["mechanism"]
    (projections, layers) = found.evidence
    assert (layers["level"], layers["units"], layers["p_more"]) == ("layers", 63, None)
    assert layers["rho_within"] == pytest.approx(-1)
    assert layers["rho_tail"] > 0.3
    assert projections["rho_within"] == pytest.approx(1)
    assert found.verdict is Verdict.SUPPORTED
    assert "Among the layers of one projection it is \u22121.00" in found.sentence


def test_mechanism_needs_kinds_that_it_knows(study):
    named = {"a": 1.0, "b": 2.0, "c": 3.0}
    measured = study({("nvfp4", "keep"): named}, tails=named)
    found = held(measured)["mechanism"]
    assert found.verdict is Verdict.UNDECIDED
    assert not found.evidence
    assert "Left out, as of no known kind: a, b, c." in found.sentence
    measured.sites = sites_at((c, b, f"mlp.{c}") for c in named for b in range(BLOCKS))
    found = held(measured)["mechanism"]
    assert found.evidence[0]["orders"] == 6
    assert "Left out" not in found.sentence


def test_ordering(study):
    families = [("mxfp4:floor", "keep"), ("nvfp4", "keep"), ("nvfp4", "only")]
    same = held(study({family: BY_BOTH for family in families}))["ordering"]
    assert same.verdict is Verdict.SUPPORTED
    assert [row["rho"] for row in same.evidence] == [pytest.approx(1.0)] * 3
    assert [row["separated"] for row in same.evidence] == [21] * 3
    assert [row["judged"] for row in same.evidence] == ["yes", "no", "no"]
    swapped = BY_BOTH | {"up_proj": 70, "down_proj": 60}
    found = held(study({families[0]: BY_BOTH, families[1]: swapped}))["ordering"]
    assert found.verdict is Verdict.CONTRADICTED
    (row,) = found.evidence
    assert (row["reversed"], row["counted"]) == (1, 1)
    assert row["largest_first"] == pytest.approx(0.01, abs=2 * MILLI)
    assert "Of 21 pairs of projections 1 are significantly reversed, 1 of them by" in found.sentence
    assert "more than up_proj under mxfp4:floor, keep" in found.sentence
    unsure = held(study({family: BY_BOTH for family in families}, noise=100.0))["ordering"]
    assert unsure.verdict is Verdict.UNDECIDED
    for alone in (families[:1], families[1:]):
        found = held(study({family: BY_BOTH for family in alone}))["ordering"]
        assert found.verdict is Verdict.UNDECIDED
        assert "two formats in one direction" in found.sentence


def test_directions_are_two_estimands(study):
    """What they order differently is shown and not judged."""
    swapped = BY_BOTH | {"up_proj": 70, "down_proj": 60}
    of = {("mxfp4:floor", "keep"): BY_BOTH, ("nvfp4", "keep"): BY_BOTH}
    found = held(study(of | {("nvfp4", "only"): swapped}))["ordering"]
    assert found.verdict is Verdict.SUPPORTED
    assert [row["reversed"] for row in found.evidence] == [0, 1, 1]


@pytest.mark.parametrize(("gap", "verdict"), [(2, Verdict.SUPPORTED), (5, Verdict.CONTRADICTED)])
def test_a_reversal_counts_beyond_the_tolerance(study, gap, verdict):
    """Costs span 60 millinats: 3 are tolerated, however significant."""
    one, other = (BY_BOTH | {"up_proj": 70 - gap * up, "down_proj": 70 - gap * (1 - up)}
                  for up in (0, 1))  # fmt: skip
    found = held(study({("mxfp4:floor", "keep"): one, ("nvfp4", "keep"): other}, noise=0.1))
    assert found["ordering"].verdict is verdict
    (row,) = found["ordering"].evidence
    assert (row["reversed"], row["counted"]) == (1, int(gap == 5))
    assert ("1 significant reversals are smaller" in found["ordering"].sentence) == (gap == 2)


def test_after_a_stop_pairs_are_told_apart_by_tests_that_allow_for_it(study):
    """Sixteen windows in which neighbours are eight standard errors apart at least."""
    measured = study({(fmt, "keep"): BY_BOTH for fmt in ("mxfp4:floor", "nvfp4")}, noise=5.0)
    fixed = held(measured)["ordering"].evidence[0]["separated"]
    measured.protocol["stopping"] = {"anytime": True}
    assert held(measured)["ordering"].evidence[0]["separated"] < fixed


def test_scale_is_never_decided_by_one_model(study):
    assert held(study())["scale"].verdict is Verdict.UNDECIDED


def test_localization(study):
    late, early = [1.0] * 8 + [40.0], [40.0] + [1.0] * 8
    rest = {("nvfp4", "keep", c): late for c in ("q_proj", "up_proj")}
    found = held(study(layers=rest))["localization"]
    assert found.verdict is Verdict.CONTRADICTED
    down = ("mxfp4:floor", "keep", "down_proj")
    found = held(study(layers=rest | {down: early}))["localization"]
    assert found.verdict is Verdict.SUPPORTED
    assert "1 of 3 curves" in found.sentence
    assert "down_proj at block 0 under mxfp4:floor, keep" in found.sentence
    rows = {(row["format"], row["projection"]): row for row in found.evidence}
    summed = rows["mxfp4:floor", ALL]
    assert summed["peak_third"] == "early"
    # 42 of 48 millinats are in the first three of nine blocks.
    assert summed["share_early"] == pytest.approx(42 / 48, abs=0.03)
    assert summed["share_early_low"] < summed["share_early"] < summed["share_early_high"]
    late = rows["nvfp4", "q_proj"]
    assert late["p_final"] < 1e-6
    assert late["p_before"] == late["p_early"] == 1
    assert rows["mxfp4:floor", "down_proj"]["p_early_holm"] < 1e-6
    assert "1 significantly in the first third" in found.sentence
    assert "particularly under MXFP4 is not tested" in found.sentence
    flat = held(study(layers={down: [1.0] * 9}))["localization"]
    assert flat.verdict is Verdict.UNDECIDED
    assert held(study())["localization"].verdict is Verdict.UNDECIDED


def test_a_peak_in_noise_is_no_peak(study):
    """Where all costs are negative the largest is no sensitivity, wherever it lies."""
    layers = {("nvfp4", "only", "q_proj"): [-1.0] + [-40.0] * 8}
    assert held(study(layers=layers))["localization"].verdict is Verdict.UNDECIDED


def test_curves_without_any_cost_do_not_stand_against_a_late_peak(study):
    late = {("nvfp4", "keep", c): [1.0] * 8 + [40.0] for c in ("q_proj", "up_proj")}
    nothing = {("nvfp4", "only", c): [0.0] * 9 for c in ("q_proj", "up_proj")}
    found = held(study(layers=late | nothing))["localization"]
    assert found.verdict is Verdict.CONTRADICTED
    assert "All 2 curves over depth, of 4," in found.sentence
    more = {("mxfp4:floor", "only", "q_proj"): [0.0] * 9}
    assert held(study(layers=late | nothing | more))["localization"].verdict is Verdict.UNDECIDED


def test_a_projection_of_one_third_has_no_peak_over_depth(study):
    measured = study(layers={("nvfp4", "keep", "q_proj"): [1.0] * 8 + [40.0]})
    kept = [one for one in entries(measured) if one.asked.block not in range(7)]
    measured = rebuilt(measured, kept)
    found = held(measured)["localization"]
    assert found.verdict is Verdict.UNDECIDED
    assert {row["p_final"] for row in found.evidence} == {None}


@pytest.mark.parametrize("anytime", [False, True])
def test_a_late_peak_is_called_an_early_one_in_at_most_one_study_of_twenty(anytime):
    """The peak is a final block's, and sixteen blocks before it cost as much."""
    rng = np.random.default_rng(0)
    costs, inside = np.zeros(24), np.arange(24) < 16
    costs[:17] = 3.0
    called = 0
    for _ in range(300):
        seen = costs + rng.normal(size=(32, 24))
        called += peak_p(seen, inside, anytime=anytime) <= 0.05
    assert called <= 26  # three standard deviations above 5%
    seen = costs + 3 * (np.arange(24) == 4) + rng.normal(size=(32, 24))
    assert peak_p(seen, inside, anytime=anytime) <= 0.05


def test_a_peak_is_compared_with_nothing_too():
    """The least negative cost is no peak."""
    rng = np.random.default_rng(1)
    seen = np.where(np.arange(9) < 1, -1.0, -40.0) + rng.normal(size=(16, 9))
    assert peak_p(seen, np.arange(9) < 6) == 1
    assert peak_p(seen + 3, np.arange(9) < 6) < 1e-3


def test_too_few_windows_decide_nothing(study):
    few = study(
        {("nvfp4", d): BY_TAIL for d in ("keep", "only")},
        {("nvfp4", "keep", "q_proj"): [40.0] + [1.0] * 8},
        windows=7,
    )
    assert {h.verdict for h in hypotheses(few)} == {Verdict.UNDECIDED}
