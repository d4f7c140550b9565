"""Whether the intervals cover on real data, which is not normal: a study's windows resampled.

The recorded windows are the population and their means the truth. n of them are drawn with
replacement, the interval is built, and it holds the truth or not.
"""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fp4scope.stats import MIN_WINDOWS, paired, perplexity_difference, standard_errors

DRAWS = 10_000


def intervals(more, less, picks):
    """The intervals of both differences at once, for rows that say which windows were drawn.

    Returns:
        Low, high and truth of `delta_nll`, then those of `delta_ppl`; draws by units.
    """
    n = picks.shape[1]
    t = scipy_stats.t.ppf(0.975, n - 1)
    a, b = more[picks.T], less[picks.T]  # windows by draws by units
    nll, p, q = (a - b).mean(axis=0), np.exp(a.mean(axis=0)), np.exp(b.mean(axis=0))
    nll_half, ppl_half = t * standard_errors(a - b), t * standard_errors(p * a - q * b)
    a0, b0 = more.mean(axis=0), less.mean(axis=0)
    return (
        (nll - nll_half, nll + nll_half, a0 - b0),
        (p - q - ppl_half, p - q + ppl_half, np.exp(a0) - np.exp(b0)),
    )


@pytest.fixture(scope="module")
def coverage(families):
    """Per number of windows: {family: how often both differences' intervals cover, by unit}."""
    found = {}

    def measure(n):
        if n not in found:
            rng = np.random.default_rng(n)
            # Of 90 windows only means over units are asked for, which need fewer draws.
            draws = DRAWS // 4 if n == 90 else DRAWS
            found[n] = {name: np.zeros((2, side.shape[1])) for name, (side, _) in families.items()}
            for _ in range(draws // 100):
                for name, (more, less) in families.items():
                    picks = rng.integers(0, len(more), (100, n))
                    for kind, (low, high, truth) in enumerate(intervals(more, less, picks)):
                        inside = (low <= truth) & (truth <= high)
                        found[n][name][kind] += inside.sum(axis=0) / draws
        return found[n]

    return measure


def test_the_study_uses_the_intervals_that_tables_print(families):
    rng = np.random.default_rng(0)
    for more, less in families.values():
        picks = rng.integers(0, len(more), MIN_WINDOWS)
        unit = int(rng.integers(more.shape[1]))
        nll, ppl = intervals(more[:, [unit]], less[:, [unit]], picks[None])
        for (low, high, _), estimate in (
            (nll, paired(more[picks, unit], less[picks, unit])),
            (ppl, perplexity_difference(more[picks, unit], less[picks, unit])),
        ):
            assert estimate.low == pytest.approx(low.item(), rel=1e-6, abs=1e-9)
            assert estimate.high == pytest.approx(high.item(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("n", [MIN_WINDOWS, 24, 90])
def test_intervals_cover_in_93_to_97_of_100_samples(coverage, n):
    measured = coverage(n)
    assert len(measured) == 10  # two formats: a baseline, projections and layers both ways
    for family, by_unit in measured.items():
        for kind, value in zip(("delta_nll", "delta_ppl"), by_unit.mean(axis=1), strict=True):
            assert 0.93 <= value <= 0.97, (family, kind, n)


def outside(measured):
    """The share of rows, over all families and both differences, that cover too little or much."""
    rows = np.concatenate([by_unit.ravel() for by_unit in measured.values()])
    return np.mean((rows < 0.93) | (rows > 0.97))


@pytest.mark.parametrize("n", [MIN_WINDOWS, 24])
def test_from_min_windows_on_99_of_100_rows_cover_so(coverage, n):
    assert outside(coverage(n)) <= 0.01


@pytest.mark.parametrize("n", [3, 5])
def test_below_min_windows_they_do_not(coverage, n):
    assert outside(coverage(n)) > 0.01
