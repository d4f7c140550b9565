"""The search for the best k: what it promises, and that it depends on the data alone."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fp4scope.ledger import read_results
from fp4scope.stats import BestSearch, Fate, Pairing, search
from fp4scope.study import BestGoal
from fp4scope.study.goals import parse_goal
from fp4scope.sweep import looks

KEPT = Path(__file__).parents[2] / "docs" / "results"
ENDS = range(8, 201, 8)


def draw(rng, means, n=200, s=0.01):
    """Costs with a spread that all units share and one of their own."""
    shared = 0.05 * rng.standard_normal((n, 1))
    return means + shared + s * rng.standard_normal((n, len(means)))


def test_clear_differences_are_found_and_the_rest_is_dropped_early():
    means = np.array([0.05, 0.0, 0.0, 0.04, 0.0, 0.02, 0.0, 0.0])
    found = search(draw(np.random.default_rng(0), means), ENDS, BestGoal(2))
    assert found.decided
    assert found.found == [0, 3]
    assert set(found.fates) == {Fate.ACCEPTED, Fate.DROPPED}
    # The one between them took longer than those far below.
    assert found.windows[5] >= max(found.windows[i] for i in (1, 2, 4, 6, 7))


def test_near_ties_are_decided_within_the_tolerance():
    means = np.array([0.050, 0.0301, 0.03, 0.0299, 0.0, 0.0])
    costs = draw(np.random.default_rng(0), means)
    found = search(costs, ENDS, BestGoal(2, within=0.008))
    assert found.decided
    assert found.fates[0] in (Fate.ACCEPTED, Fate.CHOSEN)
    assert Fate.CHOSEN in found.fates
    assert len(found.found) == 2
    assert not search(costs, ENDS, BestGoal(2, within=0.0)).decided


@pytest.mark.parametrize("goal", [BestGoal(1), BestGoal(3, 0.002), BestGoal(5, 0.0, 0.01)])
def test_chunk_by_chunk_and_all_at_once_are_the_same(goal):
    rng = np.random.default_rng(3)
    costs = draw(rng, rng.normal(0, 0.01, 12))
    whole = search(costs, ENDS, goal)
    stepwise = BestSearch(12, goal)
    for end in ENDS:
        # Somebody starts again from the beginning after each chunk.
        again = search(costs[:end], [e for e in ENDS if e <= end], goal)
        if not stepwise.decided:
            stepwise.look(costs[:end, stepwise.active])
        assert (again.fates, again.windows) == (stepwise.fates, stepwise.windows)
    assert (whole.fates, whole.windows) == (stepwise.fates, stepwise.windows)


def test_values_of_what_is_decided_are_not_read():
    """They were never measured."""
    means = np.array([0.05, 0.0, 0.0, 0.04, 0.039, 0.0])
    costs = draw(np.random.default_rng(0), means)
    whole = search(costs, ENDS, BestGoal(2, 0.0))
    assert min(whole.windows) < max(whole.windows)
    for unit, seen in enumerate(whole.windows):
        if whole.fates[unit] is not Fate.UNDECIDED:
            costs[seen:, unit] = np.nan
    again = search(costs, ENDS, BestGoal(2, 0.0))
    assert (again.fates, again.windows) == (whole.fates, whole.windows)


def test_what_the_units_share_cancels():
    rng = np.random.default_rng(0)
    costs = draw(rng, np.array([0.02, 0.0, 0.0]))
    noisy = costs + 10 * rng.standard_normal((len(costs), 1))
    assert search(noisy, ENDS, BestGoal(1)).windows == search(costs, ENDS, BestGoal(1)).windows


@pytest.mark.parametrize(
    ("k", "means"),
    [
        (1, [0.0] * 6),
        (2, [0.004, 0.004, 0.0, 0.0, 0.0, 0.0]),
        (3, [0.03, 0.0061, 0.006, 0.003, 0.0029, 0.0, -0.01, -0.01]),
    ],
)
def test_it_errs_no_more_often_than_it_says(k, means):
    """A tight error and hard means: where the rule has the most chances to err."""
    rng, error, trials = np.random.default_rng(4), 0.2, 200
    means = np.array(means)
    goal = BestGoal(k, within=0.001, error=error)
    least = np.sort(means)[-k] - goal.within
    wrong = decided = 0
    for _ in range(trials):
        found = search(draw(rng, means, 96, 0.006), range(8, 97, 8), goal)
        wrong += bool((means[found.found] < least - 1e-12).any())
        decided += found.decided
    assert stats.binomtest(wrong, trials, error, "greater").pvalue > 0.01
    assert len(set(means.tolist())) == 1 or wrong + decided > 0


def test_a_true_member_is_hardly_ever_dropped():
    rng, trials, lost = np.random.default_rng(5), 300, 0
    means = np.array([0.012, 0.010, 0.008, 0.004, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    for _ in range(trials):
        found = search(draw(rng, means, 96), range(8, 97, 8), BestGoal(3))
        lost += any(found.fates[i] is Fate.DROPPED for i in range(3))
    assert stats.binomtest(lost, trials, 0.05, "greater").pvalue > 0.01


def test_it_notices_when_the_bounds_are_too_narrow(monkeypatch):
    """The guard of the guards: with fixed-n bounds the same simulation errs too often."""
    from fp4scope.stats.inference import decisions

    monkeypatch.setattr(decisions, "quantile", lambda n, _: float(stats.t.ppf(0.8, n - 1)))
    with pytest.raises(AssertionError):
        test_it_errs_no_more_often_than_it_says(2, [0.002, 0.002, 0.0, 0.0, 0.0, 0.0])


def beaten(error, trials=400):
    """How often the lesser of two units that hardly differ is found, looked at 49 times."""
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(trials):
        costs = rng.standard_normal((200, 2)) + np.array([1e-3, 0.0])
        wrong += search(costs, range(8, 201, 4), BestGoal(1, 0.0, error)).found == [1]
    return wrong


def test_however_often_it_is_looked_the_error_is_spent_once(monkeypatch):
    from fp4scope.stats.inference import decisions

    assert stats.binomtest(beaten(0.2), 400, 0.2, "greater").pvalue > 0.01
    assert sum(decisions.share(look) for look in range(100_000)) == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr(decisions, "share", lambda _: 1.0)
    assert stats.binomtest(beaten(0.2), 400, 0.2, "greater").pvalue < 0.01


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_costs_that_are_positive_and_skewed_as_kl_is(spread):
    """What units cost rises and falls together, by factors, and so does what is between them."""
    rng, error, trials = np.random.default_rng(9), 0.2, 150
    near = 2 + spread * np.array([0.3, 0.2, 0.1, 0.0, -0.1, -0.2])
    means = np.array([3.0, *near, *[0.5] * 13])
    least = np.sort(means)[-3]
    wrong = decided = 0
    for _ in range(trials):
        shared, own = rng.standard_normal((96, 1)), rng.standard_normal((96, len(means)))
        costs = means * np.exp(spread * (0.5 * shared + own) - 0.625 * spread**2)
        found = search(costs, looks(BestGoal(3), 96), BestGoal(3, 0.0, error, "kl"))
        wrong += bool((means[found.found] < least - 1e-12).any())
        decided += sum(fate is not Fate.UNDECIDED for fate in found.fates)
    assert stats.binomtest(wrong, trials, error, "greater").pvalue > 0.01
    assert decided > 10 * trials


@pytest.mark.parametrize("model", ["qwen2.5-coder-0.5b", "smollm2-135m", "gemma3-270m"])
def test_kl_decides_on_fewer_layer_windows_than_nll(model):
    """Both tolerances are what `--stop-when best=10` and `best=10,by=kl` have."""
    results = read_results(KEPT / model / "results.json")
    spent = {}
    for by in ("nll", "kl"):
        goal = parse_goal(f"best=10,by={by}")
        pairing, rng = Pairing(results.ledger, by), np.random.default_rng(10)
        units = [
            pairing.difference(contrast).values
            for contrast in results.contrasts
            if tuple(contrast.family.labels.values()) == ("layers", "nvfp4", "W4A4", "only")
        ]
        costs = np.stack(units, axis=1)
        truth = costs.mean(axis=0)
        least = np.sort(truth)[-10] - goal.within
        assert (truth < least).sum() > 50
        found = [
            search(costs[rng.permutation(len(costs))], looks(goal, len(costs)), goal)
            for _ in range(20)
        ]
        assert all(one.decided for one in found)
        assert not any((truth[one.found] < least).any() for one in found)
        spent[by] = np.mean([sum(one.windows) for one in found])
    assert spent["kl"] < spent["nll"] / 2


def test_on_recorded_windows_the_error_is_below_what_it_says(families):
    rng, goal = np.random.default_rng(6), BestGoal(10, within=0.010)
    more, less = families["layers", "nvfp4", "only"]
    costs = more - less
    truth = costs.mean(axis=0)
    least = np.sort(truth)[-10] - goal.within
    wrong = decided = 0
    for _ in range(60):
        found = search(costs[rng.integers(0, len(costs), 96)], range(8, 97, 8), goal)
        wrong += bool((truth[found.found] < least).any())
        decided += found.decided
    assert decided > 30
    assert stats.binomtest(wrong, 60, 0.05, "greater").pvalue > 0.01


def test_as_many_as_there_are_need_no_search():
    with pytest.raises(ValueError, match="the best 3 of 3 units need no search"):
        BestSearch(3, BestGoal(3))


def test_too_few_windows_decide_nothing():
    costs = np.array([[1.0, 0.0]] * 7)
    assert not search(costs, range(1, 8), BestGoal(1)).decided
