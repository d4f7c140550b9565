"""Standard errors where neighbouring windows are alike."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fp4scope.stats import MIN_WINDOWS, mean, search, standard_errors
from fp4scope.stats.inference.dependence import drawn_means, halves, lags
from fp4scope.study import BestGoal


def covers(values, stderrs):
    return (
        np.abs(values.mean(axis=0)) <= scipy_stats.t.ppf(0.975, len(values) - 1) * stderrs
    ).mean()


@pytest.mark.parametrize("n", [2, 3, MIN_WINDOWS, 50])
def test_it_is_newey_wests_and_at_least_the_plain_one(n, newey_west):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(n, 40))
    expected = [newey_west(column)[0] for column in values.T]
    assert standard_errors(values) == pytest.approx(expected)
    plain = values.std(axis=0, ddof=1) / n**0.5
    assert (standard_errors(values) >= plain * (1 - 1e-12)).all()
    if n >= MIN_WINDOWS:
        assert 0 < (standard_errors(values) > plain * 1.001).mean() < 1


def test_intervals_hold_where_neighbours_are_alike_and_cost_little_where_not(alike):
    rng = np.random.default_rng(0)
    together, apart = alike(rng, 146, 4000), rng.normal(size=(146, 4000))
    plain = [x.std(axis=0, ddof=1) / 146**0.5 for x in (together, apart)]
    assert covers(together, plain[0]) < 0.85
    assert covers(together, standard_errors(together)) > 0.91
    assert 0.95 < covers(apart, standard_errors(apart)) < 0.97
    assert 1 <= np.mean(standard_errors(apart) / plain[1]) < 1.06


def test_the_order_of_windows_matters_and_tables_see_it(alike):
    values = alike(np.random.default_rng(1), 100, share=0.7)
    shuffled = np.random.default_rng(2).permutation(values)
    assert mean(values).stderr > 1.5 * mean(shuffled).stderr
    assert mean(values).high - mean(values).low > 1.5 * (mean(shuffled).high - mean(shuffled).low)


def test_drawn_means_spread_as_the_standard_errors_say(alike):
    rng = np.random.default_rng(3)
    for share in (0.0, 0.6):
        costs = alike(rng, 120, 50, share=share)
        spread = drawn_means(costs, 4000).std(axis=0)
        assert spread == pytest.approx(standard_errors(costs), rel=0.06)


def test_draws_of_two_lists_together_keep_what_they_share():
    rng = np.random.default_rng(4)
    costs = rng.normal(size=(30, 3))
    both = drawn_means(np.concatenate([costs, 2 * costs], axis=1), 500)
    assert both[:, 3:] == pytest.approx(2 * both[:, :3])
    assert drawn_means(costs, 500) == pytest.approx(both[:, :3])
    apart = drawn_means(costs, 500, seed=1)
    assert abs(np.corrcoef(apart[:, 0], both[:, 0])[0, 1]) < 0.2


@pytest.mark.parametrize("n", [4, 5, MIN_WINDOWS, 146])
def test_halves_are_about_half_and_keep_neighbours_together(n):
    half = halves(np.random.default_rng(5), n, 400)
    assert half.shape == (400, n)
    assert set(np.unique(half)) == {0.0, 1.0}
    assert half.mean(axis=1).min() > 0
    assert half.mean(axis=1).max() < 1
    assert half.mean() == pytest.approx(0.5, abs=0.17 if n < 9 else 0.04)
    together = (half[:, 1:] == half[:, :-1]).all(axis=0)
    assert together.mean() == pytest.approx(lags(n) / (lags(n) + 1), abs=0.2)


def test_a_decision_waits_longer_where_neighbours_are_alike(alike):
    gap = np.array([0.0, 0.0, 0.8])
    goal = BestGoal(1, within=0.0)

    def windows(share):
        rng = np.random.default_rng(5)
        ends = [
            search(alike(rng, 400, 3, share=share) + gap, range(8, 401, 8), goal).windows[2]
            for _ in range(20)
        ]
        return np.mean(ends)

    assert windows(0.7) > 1.4 * windows(0.0)
