"""Means, paired differences and their intervals, against scipy and by coverage."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fp4scope.stats import MIN_WINDOWS, mean, paired, perplexity_difference


def test_mean_agrees_with_scipy(opposed):
    x = opposed(np.random.default_rng(0).normal(3.0, 2.0, 17))
    estimate = mean(x)
    low, high = scipy_stats.t.interval(0.95, 16, loc=x.mean(), scale=scipy_stats.sem(x))
    assert estimate.mean == pytest.approx(x.mean(), rel=1e-12)
    assert estimate.stderr == pytest.approx(scipy_stats.sem(x), rel=1e-12)
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))
    assert estimate.n == 17


def test_one_window_has_no_interval():
    estimate = mean([2.5])
    assert estimate.mean == 2.5
    assert (estimate.stderr, estimate.low, estimate.high) == (None, None, None)
    assert estimate.n == 1


@pytest.mark.parametrize("n", [2, MIN_WINDOWS - 1])
@pytest.mark.parametrize("difference", [paired, perplexity_difference])
def test_a_few_windows_have_a_standard_error_and_no_interval(difference, n):
    rng = np.random.default_rng(n)
    more, less = rng.normal(3.0, 0.1, (2, MIN_WINDOWS))
    estimate = difference(more[:n], less[:n])
    assert estimate.stderr > 0
    assert (estimate.low, estimate.high, estimate.n) == (None, None, n)
    assert None not in (difference(more, less).low, difference(more, less).high)


def test_no_window_is_an_error():
    with pytest.raises(ValueError, match="at least one window"):
        mean([])


def test_paired_is_more_minus_less_and_ignores_what_windows_share(opposed):
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 100, 12)  # windows differ far more than variants do
    effect = opposed(rng.normal(0.5, 0.01, 12))
    estimate = paired(shared + effect, shared)
    assert estimate.mean == pytest.approx(effect.mean(), abs=1e-9)
    assert estimate.stderr == pytest.approx(scipy_stats.sem(effect), rel=1e-6)
    assert estimate.low > 0


def test_perplexity_difference_has_the_right_value_and_a_delta_method_error():
    rng = np.random.default_rng(2)
    less = rng.normal(3.0, 0.3, 40)
    more = less + rng.normal(0.1, 0.02, 40)
    estimate = perplexity_difference(more, less)
    assert estimate.mean == pytest.approx(np.exp(more.mean()) - np.exp(less.mean()), rel=1e-12)
    picks = rng.integers(0, 40, (20_000, 40))
    resampled = np.exp(more[picks].mean(1)) - np.exp(less[picks].mean(1))
    # Bootstrap and delta method agree on the spread to the bootstrap's own bias of 1/n.
    assert estimate.stderr == pytest.approx(resampled.std(), rel=0.05)


def test_perplexity_difference_of_one_window():
    estimate = perplexity_difference([2.0], [1.0])
    assert estimate.mean == pytest.approx(np.exp(2) - np.exp(1))
    assert estimate.low is None


@pytest.mark.slow
@pytest.mark.parametrize("n", [MIN_WINDOWS, 16, 64])
def test_the_interval_covers_the_truth_19_times_in_20(n):
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(4000):
        x = rng.normal(0.3, 1.0, n)
        estimate = mean(x)
        hits += estimate.low <= 0.3 <= estimate.high
    # 4000 trials have a standard error of 0.34 points.
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)
