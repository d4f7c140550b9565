"""The all-quantized model's luck: found by replicas, taken out as far as other windows say."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from asking import REFERENCE, all_quantized, asked, entries, jitter, rebuilt
from fp4scope.stats import Pairing
from fp4scope.stats.findings.controls import Controls, coefficient, held_out, luck_of
from fp4scope.stats.findings.pairing import costs
from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.study import Direction

BASE = all_quantized("nvfp4")
BLOCKS = 4
WINDOWS = 40


def unit(level="layers", name="q_proj", block=None, direction="keep"):
    return asked(format="nvfp4", direction=direction, level=level, unit=name, block=block)


def luck_in(run, column):
    """The luck of the all-quantized model by window."""
    found = luck_of(run.ledger, BASE.recipe, column)
    return None if found is None else found.values


@pytest.fixture
def chaotic(observe, results):
    """`chaotic()`: a run whose units of block b correlate at b / BLOCKS with their baseline.

    Every layer saves 10 millinats, every projection and pattern 50. The loss and KL have luck
    apart.
    """

    def build(seed=0, windows=WINDOWS, count=4, own=1, stopping=None, level="layers"):
        rng = np.random.default_rng(seed)
        text = rng.normal(3, 1, windows)

        def again(share, saved):
            drawn = share * luck + (1 - share**2) ** 0.5 * rng.normal(0, 0.1, (2, windows))
            drawn = drawn - saved - 0.01 * rng.normal(size=windows)
            return text + 0.5 + drawn[0], 2 + drawn[1]

        luck = rng.normal(0, 0.1, (2, windows))
        found = [observe(REFERENCE, text), observe(jitter(REFERENCE), text, replicas=1)]
        numbers = np.repeat(np.arange(own, own + count), windows).tolist()
        places = [*range(windows)] * count
        nll, kl = rng.normal(0, 0.1, (2, count * windows))
        found.append(observe(BASE, text + 0.5 + luck[0], kl=2 + luck[1]))
        shaken = np.tile(text, count) + 0.5 + nll
        found.append(observe(BASE, shaken, kl=2 + kl, windows=places, replicas=numbers))
        if level == "layers":
            for i in range(12):
                nll, kl = again((i % BLOCKS) / BLOCKS, 0.01)
                found.append(observe(unit(name=f"u{i}", block=i % BLOCKS), nll, kl=kl))
        else:
            for i in range(7):
                nll, kl = again(0, 0.05)
                found.append(observe(unit(level, f"u{i}"), nll, kl=kl))
        return results(*found, protocol={"stopping": stopping})

    return build


def raw(run, column="nll"):
    """What each kept unit costs without controls."""
    pairing = Pairing(run.ledger, column)
    return {
        contrast: pairing.difference(contrast).values
        for contrast in run.contrasts
        if contrast.family.direction is Direction.KEEP
    }


def test_each_window_has_the_slope_that_the_others_choose_shrunk_by_its_uncertainty():
    rng = np.random.default_rng(0)
    control = rng.normal(size=12)
    costs = 0.6 * control + rng.normal(1, 0.5, 12)
    for i, found in enumerate(held_out(costs, control)):
        rest = np.arange(12) != i
        fit = scipy_stats.linregress(control[rest], costs[rest])
        assert found == pytest.approx(fit.slope * (1 - (fit.stderr / fit.slope) ** 2))
    fit = scipy_stats.linregress(control, costs)
    expected = fit.slope * (1 - (fit.stderr / fit.slope) ** 2)
    assert coefficient(costs, control) == pytest.approx(expected)


def test_a_window_has_no_say_in_its_own_coefficient():
    rng = np.random.default_rng(1)
    control, costs = rng.normal(size=(2, 20))
    costs += control
    before = held_out(costs, control)[7]
    costs[7], control[7] = 50, -3
    assert held_out(costs, control)[7] == pytest.approx(before)


def test_what_does_not_help_is_left_out():
    rng = np.random.default_rng(2)
    drawn = [coefficient(*rng.normal(size=(2, 100))) for _ in range(400)]
    assert np.mean(np.square(drawn)) < 0.4 / 100  # unshrunk 1 / 100
    assert np.mean(np.equal(drawn, 0)) > 0.6
    assert held_out(np.ones(9), np.arange(9.0)).tolist() == [0] * 9
    assert held_out(np.arange(9.0), np.ones(9)).tolist() == [0] * 9
    control = rng.normal(size=50)
    assert coefficient(-control, control) == 0
    assert coefficient(3 * control, control) == 1


@pytest.mark.parametrize("column", ["nll", "kl"])
def test_units_share_a_coefficient_that_falls_with_depth(column, chaotic):
    run = chaotic(windows=400)
    controls = Controls(run, column)
    windows = np.arange(400)
    first = controls.shift(unit(name="u0", block=0).contrast, windows)
    luck = luck_in(run, column)
    # Of four replicas: what is not shared, over 1 + 1 / 4.
    assert np.median(first / luck) == pytest.approx(1 / 1.25, abs=0.1)
    for block in range(BLOCKS):
        shift = controls.shift(unit(name=f"u{block}", block=block).contrast, windows)
        assert shift == pytest.approx(first * (1 - block / BLOCKS))


@pytest.mark.parametrize(("column", "level"), [("nll", "layers"), ("kl", "projections")])
def test_what_is_taken_is_luck_times_what_the_other_windows_choose(column, level, chaotic):
    run = chaotic(level=level)
    units, pairing = raw(run, column), Pairing.of(run, column)
    reach = np.array([1 - (c.unit.block or 0) / BLOCKS for c in units])
    luck = luck_in(run, column)
    pooled = np.stack([*units.values()], axis=1) @ reach / (reach @ reach)
    chosen = held_out(pooled, luck)
    for (contrast, values), share in zip(units.items(), reach, strict=True):
        found = pairing.difference(contrast)
        assert found.values == pytest.approx(values - share * chosen * luck)
        if column == "nll":
            assert costs(run)[contrast].values == pytest.approx(found.values, abs=0)


def test_each_pattern_has_a_coefficient_of_its_own(chaotic):
    run = chaotic(level="patterns")
    luck = luck_in(run, "nll")
    for contrast, values in raw(run).items():
        found = values - costs(run)[contrast].values
        assert found == pytest.approx(held_out(values, luck) * luck)


@pytest.mark.parametrize("windows", [8, 64])
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_intervals_are_narrower_and_as_right(windows, count, shared):
    """Units that share nothing, or nearly all, of the luck; noise with heavy tails."""
    rng, studies, units, truth = np.random.default_rng(0), 400, 12, 0.3
    before, after, said, inside = [], [], [], []
    for _ in range(studies):
        luck, *again = rng.standard_t(5, (1 + count, windows))
        own = rng.standard_t(5, (windows, units))
        costs = truth + (1 - shared) * luck[:, None] - (1 - shared**2) ** 0.5 * own
        control = luck - np.mean(again, axis=0)
        left = costs - (held_out(costs.mean(axis=1), control) * control)[:, None]
        stderr = standard_errors(left)
        before.append(costs.mean(axis=0) - truth)
        after.append(left.mean(axis=0) - truth)
        said.append(stderr)
        inside.append(np.abs(after[-1]) <= scipy_stats.t.ppf(0.975, windows - 1) * stderr)
    was, now, claimed = (np.mean(np.square(x)) for x in (before, after, said))
    gain = (1 - shared) / 2 * count / (count + 1)  # of the variance, at best
    # To choose a coefficient costs a share of about 1 / windows of what is there.
    assert now / was < 1 - gain + 1 / windows + 0.03
    assert claimed > 0.93 * now
    assert 0.93 < np.mean(inside) < 0.99
    # In expectation nothing is moved.
    moved = np.mean(np.subtract(after, before), axis=1)
    assert abs(np.mean(moved)) < 3 * np.std(moved) / studies**0.5


def test_of_old_results_the_jitter_is_the_replica_of_the_loss_and_kl_has_none(observe, results):
    rng = np.random.default_rng(3)
    nll, shaken = rng.normal(3, 1, (2, 12))
    run = results(observe(BASE, nll, kl=0.3), observe(jitter(BASE), shaken, kl=0.1, replicas=1))
    assert luck_in(run, "nll") == pytest.approx(nll - shaken)
    assert luck_in(run, "kl") is None


def test_realisations_that_the_all_quantized_has_are_no_controls(observe, results):
    rng = np.random.default_rng(4)
    own, again = rng.normal(3, 1, (2, 2, 12))
    places = [*range(12)] * 2
    numbers = [0] * 12 + [1] * 12
    base = observe(BASE, own.ravel(), windows=places, replicas=numbers)
    same = observe(jitter(BASE), own[1], replicas=1)
    replicated = {"study": {"numerics": {"replicas": 2}}}
    assert luck_in(results(base, same, **replicated), "nll") is None
    more = observe(jitter(BASE), [*own[1], *again[0]], windows=places, replicas=[1] * 12 + [2] * 12)
    found = luck_in(results(base, more, **replicated), "nll")
    assert found == pytest.approx(own.mean(axis=0) - again[0])


def test_what_a_perturbation_costs_any_model_is_not_luck(observe, results):
    """KL from the reference too: that of a perturbed reference is not zero."""
    nll = np.random.default_rng(5).normal(3, 1, 12)
    run = results(
        observe(REFERENCE, nll - 0.5),
        observe(jitter(REFERENCE), nll - 0.5 + 0.002, kl=0.003, replicas=1),
        observe(BASE, nll, kl=0.3),
        observe(BASE, nll + 0.002, kl=0.303, replicas=1),
    )
    for column in ("nll", "kl"):
        assert luck_in(run, column) == pytest.approx(np.zeros(12), abs=1e-12)


def test_windows_that_were_measured_until_decided_are_compared_as_they_are(chaotic):
    stopped = chaotic(stopping={"anytime": True})
    for contrast, values in raw(stopped).items():
        assert costs(stopped)[contrast].values == pytest.approx(values, abs=0)
    timed = chaotic(stopping={"anytime": False})
    assert any(
        not np.array_equal(costs(timed)[contrast].values, values)
        for contrast, values in raw(timed).items()
    )


def test_few_windows_choose_nothing(chaotic):
    run = chaotic(windows=7)
    for contrast, values in raw(run).items():
        assert costs(run)[contrast].values == pytest.approx(values, abs=0)


def test_windows_without_a_replica_are_left_as_they_are(chaotic):
    run = chaotic()
    found = entries(run)
    for place, one in enumerate(found):
        if one.asked.recipe == BASE.recipe:
            found[place] = one.where(lambda window, replica: not replica or window not in (3, 17))
    run = rebuilt(run, found)
    changed = costs(run)
    for contrast, values in raw(run).items():
        moved = np.flatnonzero(changed[contrast].values != values)
        assert set(moved) == set(range(WINDOWS)) - {3, 17}


def test_a_unit_with_more_windows_than_the_others_uses_what_those_choose(chaotic):
    run = chaotic()
    mine = unit(name="u0", block=0)
    found = (
        one if one.asked.is_whole or one.asked == mine else one.without([5]) for one in entries(run)
    )
    run = rebuilt(run, found)
    shift = Controls(run, "nll").shift(mine.contrast, np.arange(WINDOWS))
    luck = luck_in(run, "nll")
    assert (shift / luck)[5] == pytest.approx(np.median(shift / luck), rel=0.02)
