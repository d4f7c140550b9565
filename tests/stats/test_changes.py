"""What is said to have changed between two runs, and how often that is a false alarm."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from asking import REFERENCE, all_quantized, asked, entry, jitter
from fp4scope.stats import change_table
from fp4scope.stats.between.changes import RESOLUTION
from fp4scope.stats.inference.change import change
from fp4scope.stats.inference.series import Series

BASE = all_quantized("nvfp4")
WINDOWS = 24
NOISE = 0.02  # nats of a window, from one realisation to the next
CONDITIONS = {
    "model": {"fingerprint": "f", "tokenizer_sha256": "t"},
    "data": {"windows": WINDOWS, "seq_len": 11, "sha256": "s", "text_sha256": "x"},
}
LAYERS = [
    asked(format="nvfp4", direction=d, level="layers", unit="q_proj", block=b)
    for d in ("keep", "only")
    for b in range(20)
]
PROJECTIONS = [
    asked(format="nvfp4", direction=d, level="projections", unit=f"{i}_proj")
    for d in ("keep", "only")
    for i in range(4)
]


@pytest.fixture
def realise(observe, results):
    """`realise(rng, shift={})`: a run of one configuration, with run-to-run noise of its own."""

    def build(rng, shift=None, *, controls=True, windows=range(WINDOWS), data=None, noise=NOISE):
        windows = list(windows)
        truth = np.random.default_rng(0)
        text = truth.normal(3, 1, 99)[windows]
        depth = truth.uniform(0, 0.02, (len(LAYERS) + len(PROJECTIONS), 99))[:, windows]
        base = text + truth.gamma(4, 0.1, 99)[windows]

        def shaken(values):
            return values + noise * rng.standard_t(5, len(windows))

        found = [observe(REFERENCE, text, windows=windows)]
        moved = base + (shift or {}).get(BASE, 0)
        found.append(observe(BASE, shaken(moved), windows=windows))
        if controls:
            found.append(observe(jitter(REFERENCE), text + 1e-7, windows=windows, replicas=1))
            found.append(observe(jitter(BASE), shaken(moved), windows=windows, replicas=1))
        for unit, cost in zip([*LAYERS, *PROJECTIONS], depth, strict=True):
            cost = cost + (shift or {}).get(unit, 0)
            nll = moved - cost if unit.direction == "keep" else text + cost
            found.append(observe(unit, shaken(nll), windows=windows))
        return results(*found, **CONDITIONS | {"data": data or CONDITIONS["data"]})

    return build


def test_the_same_results_have_not_changed(realise):
    run = realise(np.random.default_rng(1))
    table = change_table(run, run)
    assert len(table) == 1 + len(LAYERS) + len(PROJECTIONS)
    assert set(table["change"]) == {0.0}
    assert set(table["p_holm"]) == {1.0}
    assert set(table["beyond_noise"]) == {False}


def test_a_change_is_that_of_the_paired_costs(realise):
    one, other = (realise(np.random.default_rng(seed), controls=False) for seed in (1, 2))
    rows = {
        (r["level"], r["direction"], r["unit"], r["block"]): r for r in change_table(one, other)
    }
    for one_of in (BASE, LAYERS[3], LAYERS[-1], PROJECTIONS[0]):

        def cost(run, unit=one_of):
            own = entry(run, unit).nll
            if unit.direction == "keep":
                return np.subtract(entry(run, BASE).nll, own) / 10
            return np.subtract(own, entry(run, REFERENCE).nll) / 10

        whole = one_of == BASE
        place = ("model", "") if whole else (one_of.level, one_of.direction)
        row = rows[(*place, one_of.unit, one_of.block)]
        expected = scipy_stats.ttest_rel(cost(other), cost(one))
        low, high = expected.confidence_interval()
        assert row["change"] == pytest.approx((cost(other) - cost(one)).mean())
        assert (row["change_low"], row["change_high"]) == pytest.approx((low, high))
        assert row["p"] == pytest.approx(expected.pvalue)
        assert row["paired"]


def test_levels_share_the_error_and_holm_is_inside_a_level(realise):
    one, other = (realise(np.random.default_rng(seed)) for seed in (1, 2))
    table = change_table(one, other)
    assert table[0]["level"] == "model"
    assert table[0]["p_holm"] == pytest.approx(min(1, 3 * table[0]["p"]))
    layers = table.where(level="layers")
    smallest = min(layers, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 3 * len(LAYERS) * smallest["p"]))


def test_false_alarms_are_at_most_one_pair_of_runs_in_twenty(realise):
    """Two runs of one thing; any change beyond noise, of 49 units, is a false alarm."""
    rng = np.random.default_rng(5)
    pairs = 120
    alarms = raw = 0
    for _ in range(pairs):
        table = change_table(realise(rng), realise(rng))
        alarms += any(table["beyond_noise"])
        raw += any(row["p"] < 0.05 for row in table)
    # Three standard deviations above 5% of 120 are 13; without Holm most pairs alarm.
    assert alarms <= 13
    assert raw > 60


def test_planted_changes_are_found_and_others_are_not(realise):
    rng = np.random.default_rng(6)
    planted = {PROJECTIONS[5]: 0.05, LAYERS[25]: -0.06}
    found, false = 0, 0
    for _ in range(20):
        table = change_table(realise(rng), realise(rng, planted))
        beyond = {(r["level"], r["direction"], r["unit"], r["block"]): r["change"]
                  for r in table if r["beyond_noise"]}  # fmt: skip
        for unit, shift in planted.items():
            change = beyond.pop((unit.level, unit.direction, unit.unit, unit.block), 0)
            found += change * shift > 0
        false += bool(beyond)
    assert found >= 38
    assert false <= 4


def test_a_changed_all_quantized_is_found_beside_hundreds_of_layers(realise):
    rng = np.random.default_rng(7)
    beyond = [
        change_table(realise(rng), realise(rng, {BASE: 0.04}))[0]["beyond_noise"] for _ in range(20)
    ]
    assert sum(beyond) >= 18


def test_a_late_unit_that_shares_its_roundings_is_beyond_noise_when_it_moved(observe, results):
    """Its model realised again lies 100 millinats away, but the unit has that luck too."""
    layer = LAYERS[3]
    text = np.random.default_rng(0).normal(3, 1, WINDOWS)

    def run(rng, step):
        luck = 0.4 + 0.1 * rng.normal(size=(2, WINDOWS))
        own = 1e-3 * rng.normal(size=WINDOWS)
        return results(
            observe(REFERENCE, text),
            observe(BASE, text + luck[0]),
            observe(jitter(BASE), text + luck[1], replicas=1),
            observe(layer, text + luck[0] - 0.001 - step + own),
            **CONDITIONS,
        )

    moved, same = (
        change_table(run(np.random.default_rng(1), 0), run(np.random.default_rng(2), step))
        for step in (0.005, 0)
    )
    (row,) = moved.where(level="layers")
    assert row["change"] == pytest.approx(0.005, abs=0.001)
    assert row["beyond_noise"] is True
    assert same.where(level="layers")["beyond_noise"] == [False]


@pytest.mark.parametrize(("step", "beyond"), [(0.9, False), (1.1, True)])
def test_what_is_finer_than_two_machines_agree_on_is_within_noise(step, beyond, observe, results):
    text = np.random.default_rng(0).normal(3, 1, WINDOWS)
    wobble = 1e-9 * np.random.default_rng(1).normal(size=WINDOWS)
    one, other = (
        results(observe(REFERENCE, text), observe(BASE, text + 0.4 + by), **CONDITIONS)
        for by in (0, step * RESOLUTION + wobble)
    )
    (row,) = change_table(one, other)
    assert row["p_holm"] < 1e-9
    assert row["beyond_noise"] is beyond


def test_a_verdict_needs_no_controls(realise):
    """Each window rounds by itself, so paired windows show what rounding does."""
    one, other = (
        realise(np.random.default_rng(8), {BASE: 0.05 * i}, controls=False) for i in (0, 1)
    )
    assert change_table(one, other)[0]["beyond_noise"] is True
    assert set(change_table(one, one)["beyond_noise"]) == {False}


def test_few_windows_have_no_verdict(realise):
    data = CONDITIONS["data"] | {"windows": 7}
    runs = [realise(np.random.default_rng(s), windows=range(7), data=data) for s in (1, 2)]
    table = change_table(*runs)
    for column in ("change_low", "p", "p_holm", "beyond_noise"):
        assert set(table[column]) == {None}
    assert None not in table["change"]


def test_fewer_windows_of_the_same_text_are_paired_over_those_of_both(realise):
    text = {"tokens_in_text": 999, "bos": False}
    long = realise(np.random.default_rng(1), data=CONDITIONS["data"] | text)
    short = realise(
        np.random.default_rng(1),
        windows=range(10),
        data=CONDITIONS["data"] | text | {"windows": 10, "sha256": "other"},
    )
    table = change_table(long, short)
    assert set(table["paired"]) == {True}
    assert set(table["windows"]) == set(table["windows_before"]) == {10}


def test_other_text_is_not_paired_and_welchs(realise, newey_west):
    long = realise(np.random.default_rng(1))
    data = CONDITIONS["data"] | {"windows": 30, "sha256": "other", "text_sha256": "y"}
    other = realise(np.random.default_rng(2), windows=range(40, 70), data=data)
    row = change_table(long, other)[0]
    assert not row["paired"]
    assert (row["windows_before"], row["windows"]) == (WINDOWS, 30)
    x, y = (
        np.subtract(entry(run, BASE).plain.nll, entry(run, REFERENCE).plain.nll) / 10
        for run in (long, other)
    )
    deviations = [newey_west(side)[0] * len(side) ** 0.5 for side in (y, x)]
    expected = scipy_stats.ttest_ind_from_stats(
        y.mean(), deviations[0], len(y), x.mean(), deviations[1], len(x), equal_var=False
    )
    assert row["p"] == pytest.approx(expected.pvalue)
    assert row["change_stderr"] == pytest.approx(abs((y.mean() - x.mean()) / expected.statistic))
    assert row["change_low"] < row["change"] < row["change_high"]
    assert (row["change_low"] > 0 or row["change_high"] < 0) == (expected.pvalue <= 0.05)


def test_unpaired_windows_of_a_run_with_a_goal_have_no_interval():
    x, y = (Series(np.arange(9), np.random.default_rng(s).normal(size=9)) for s in (1, 2))
    found = change(x, y, pair=False, anytime=True)
    assert (found.change.low, found.change.high, found.p) == (None, None, None)
    wide, narrow = (change(x, y, pair=True, anytime=a) for a in (True, False))
    ends = wide.change.low, narrow.change.low, narrow.change.high, wide.change.high
    assert sorted(ends) == list(ends)
    assert wide.p > narrow.p


def test_two_formats_are_compared_where_each_run_has_one(observe, results):
    text = np.random.default_rng(0).normal(3, 1, WINDOWS)
    runs = [
        results(observe(REFERENCE, text), observe(all_quantized(f), text + cost), **CONDITIONS)
        for f, cost in (("mxfp4:floor", 0.5), ("nvfp4", 0.2))
    ]
    (row,) = change_table(*runs)
    assert (row["format_before"], row["format"]) == ("mxfp4:floor", "nvfp4")
    assert row["change"] == pytest.approx(-0.3)
