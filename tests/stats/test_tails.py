"""Quantiles over tokens from counts in bins: against numpy's, and how far intervals hold."""

import numpy as np
import pytest

from fp4scope.ledger.measures import MOST_BINS
from fp4scope.stats.inference.tails import BINS, counts_in_bins, quantile, together

DRAWS = {
    "log-normal": lambda rng, shape: np.exp(rng.normal(-3, 1.5, shape)),
    "heavy": lambda rng, shape: 0.01 * (rng.pareto(1.2, shape) + 1),
    "exponential": lambda rng, shape: rng.exponential(0.2, shape),
}


def estimated(values, level=0.99):
    counts = together([counts_in_bins(window) for window in values])
    return quantile(counts, level, float(values.max()))


def test_files_allow_as_many_bins_as_there_are():
    assert BINS == MOST_BINS
    assert len(counts_in_bins([1e30])) == BINS


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_of_many_tokens_it_is_within_a_hundredth_of_the_exact_one(name, level):
    values = DRAWS[name](np.random.default_rng(0), (16, 5000))
    assert estimated(values, level).value == pytest.approx(np.quantile(values, level), rel=0.01)


def test_of_few_tokens_it_is_within_a_bin():
    values = DRAWS["exponential"](np.random.default_rng(1), (8, 50))
    found = estimated(values, 0.9).value
    low, high = np.quantile(values, [0.9, 0.9], method="nearest") * [2 ** (-1 / 8), 2 ** (1 / 8)]
    assert low <= found <= high


def test_zero_and_noise_below_it_are_in_the_first_bin():
    counts = counts_in_bins([0.0, -1e-7, 1e-6])
    assert counts == [3]
    assert quantile(together([counts] * 8), 0.99, 0.0).value == 0.0
    assert quantile(together([counts] * 8), 0.99, -1e-7).value <= 0.0


def test_no_value_is_above_the_largest():
    values = np.full((8, 40), 0.3)
    found = estimated(values)
    assert found.value == pytest.approx(0.3, rel=0.1)
    assert found.value <= 0.3


def test_below_eight_windows_there_is_no_interval():
    assert estimated(np.ones((7, 100)))[1:] == (None, None)


def test_where_few_tokens_are_above_it_the_interval_is_open():
    values = DRAWS["heavy"](np.random.default_rng(2), (8, 20))
    value, low, high = estimated(values)
    assert low < value
    assert high is None


@pytest.mark.parametrize("name", DRAWS)
def test_the_interval_covers(name):
    """Windows differ in scale, so that tokens of one are alike."""
    rng = np.random.default_rng(3)
    scales = np.exp(0.3 * rng.normal(size=(400, 16, 1)))
    values = scales * DRAWS[name](rng, (400, 16, 512))
    many = np.exp(0.3 * rng.normal(size=(2000, 1))) * DRAWS[name](rng, (2000, 512))
    truth = np.quantile(many, 0.99)
    found = [estimated(study) for study in values]
    covered = [low <= truth and (high is None or truth <= high) for _, low, high in found]
    assert np.mean(covered) > 0.91
    assert np.mean([high is None for _, _, high in found]) < 0.02
