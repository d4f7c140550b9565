"""The probability of being among the most costly: reproducible, and right as often as it says."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fp4scope.stats import MIN_WINDOWS, TOP_K, top_probabilities


def test_every_level_has_its_k():
    assert TOP_K == {"projections": 2, "blocks": 3, "patterns": 1, "layers": 10, "experts": 10}


def test_the_same_data_give_the_same_bits_and_k_places_are_given_away():
    costs = np.random.default_rng(0).normal(0, 1, (20, 9))
    first = top_probabilities(costs, 3)
    assert first == top_probabilities(costs.copy(), 3)
    assert sum(first) == pytest.approx(3)


def test_far_apart_is_certain_and_alike_is_even():
    rng = np.random.default_rng(1)
    costs = rng.normal([0.0, 5.0, 2.0], 0.01, (20, 3))
    assert top_probabilities(costs, 1) == [0.0, 1.0, 0.0]
    noise = rng.normal(0, 1, (20, 4))
    alike = top_probabilities(noise - noise.mean(axis=0), 2)
    assert sum(alike) / 4 == 0.5
    assert max(alike) < 0.75


@pytest.mark.parametrize("n", [MIN_WINDOWS, 30])
def test_two_units_have_the_one_sided_p_of_their_paired_t_test(n, newey_west):
    rng = np.random.default_rng(2)
    noise = np.sort(rng.normal(0, 1, n))  # neighbours are alike
    gap = 2 * newey_west(noise)[0]  # t = 2, where t and normal differ
    shared = np.sort(rng.normal(0, 5, n))  # what cancels must cancel in the draws too
    costs = np.stack([shared + noise - noise.mean() + gap, shared], axis=1)
    # 4000 draws have a standard error of 0.35 points.
    expected = scipy_stats.t.cdf(2, n - 1)
    assert top_probabilities(costs, 1)[0] == pytest.approx(expected, abs=0.01)


def test_too_few_windows_and_too_few_units():
    assert top_probabilities(np.ones((MIN_WINDOWS - 1, 4)), 2) == [None] * 4
    assert top_probabilities(np.ones((MIN_WINDOWS, 2)), 2) == [1.0, 1.0]


@pytest.mark.parametrize(("n", "tolerance"), [(MIN_WINDOWS, 0.15), (32, 0.1)])
def test_what_is_said_is_as_often_true(families, n, tolerance):
    """Layers drawn from a real study, whose own ten most costly are the truth.

    With few windows the middle is overstated: a draw spreads estimates that are spread already.
    """
    rng = np.random.default_rng(n)
    said, true = [], []
    for (level, *_), (more, less) in families.items():
        if level != "layers":
            continue
        costs = more - less
        top = np.argsort(-costs.mean(axis=0))[: TOP_K[level]]
        for _ in range(30):
            picks = rng.integers(0, len(costs), n)
            said += top_probabilities(costs[picks], TOP_K[level])
            true += np.isin(np.arange(costs.shape[1]), top).tolist()
    said, true = np.array(said), np.array(true)
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 1.01)):
        bin_ = (said >= low) & (said < high)
        assert bin_.sum() > 50
        assert true[bin_].mean() == pytest.approx(said[bin_].mean(), abs=tolerance)
