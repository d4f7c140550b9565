"""Means and paired differences with a standard error and a 95% t interval.

Windows all have the same number of targets. With n of them and per-window means x_1..x_n, the
estimate is their mean, and the interval mean +- t(n - 1) * stderr with a standard error that allows
for neighbours being alike (`dependence`; s / sqrt(n) where they are not). One window has neither.

Windows are not normal, so whether the interval covers in 95 of 100 samples was measured: by
resampling the paired differences of 870 models, projections and layers (SmolLM2-135M, MXFP4 and
NVFP4, both directions, 90 windows of 512 tokens). Averaged over a family it covers in 93% to 97%
at every n from 2 on. But rows are read one at a time, and of single rows (both `delta_nll` and
`delta_ppl`)

| windows | 3 | 4 | 5 | 6 | 7 | 8 | 16 |
| --- | --- | --- | --- | --- | --- | --- | --- |
| outside 93-97% | 4.4% | 4.0% | 1.7% | 0.9% | 0.5% | 0.3% | none |
| the worst covers | 90.4% | 90.2% | 90.8% | 91.4% | 91.7% | 92.1% | 93.3% |

Where the number of windows depended on what was seen, these intervals cover less; with `anytime`
a confidence sequence (`sequences`) of the same level stands in their place.

`MIN_WINDOWS` is the smallest n at which 99 of 100 rows are inside however often the study is
repeated; at 6 and 7 it depends on the draws. `tests/stats/test_coverage.py` repeats it.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.sequences import critical
from fp4scope.table import Interval

CONFIDENCE = 0.95
MIN_WINDOWS = 8
"""Below it there is no interval and no p-value."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` windows; no `stderr` for one, no `low` and `high` below `MIN_WINDOWS`."""

    mean: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int

    def columns(self, name: str) -> dict[str, float | None]:
        """What a row has to hold: the mean under a name, its standard error and interval."""
        span = Interval(self.mean, self.low, self.high)
        return span.columns(name) | {f"{name}_stderr": self.stderr}


@cache
def _t(n: int) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))


def half_width(spread: float, n: int) -> float | None:
    """Half an interval's width over `n` values of standard deviation `spread`; None for too few.

    Example:
        >>> round(half_width(1.0, 16), 3), half_width(1.0, 2)
        (0.533, None)
    """
    return None if n < MIN_WINDOWS else _t(n) * spread / n**0.5


def windows_for(half: float, n: int, target: float, *, anytime: bool = False) -> int:
    """How many windows give intervals that reach `target`, where `n` give ones that reach `half`.

    The standard error is taken to fall with the square root of their number.

    Args:
        half: Half the width of an interval over `n` windows, at least `MIN_WINDOWS`.
        n: How many windows that took.
        target: Half the width that is wanted, in the same unit.
        anytime: Whether the intervals are confidence sequences.

    Example:
        >>> windows_for(20.0, 100, 10.0), windows_for(20.0, 8, 10.0)
        (393, 25)
    """
    spread = half * n**0.5 / _reach(n, anytime)

    def enough(count: int) -> bool:
        return _reach(count, anytime) * spread <= target * count**0.5

    high = n
    while not enough(high):
        high *= 2
    return MIN_WINDOWS + bisect_left(range(MIN_WINDOWS, high), True, key=enough)


def _reach(n: int, anytime: bool) -> float:
    """How many standard errors an interval over `n` windows reaches to either side."""
    return critical(n, round(1 - CONFIDENCE, 10)) if anytime else _t(n)


def mean(values: ArrayLike, *, anytime: bool = False) -> Estimate:
    """The mean of per-window values.

    Example:
        >>> e = mean([1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0])
        >>> round(e.mean, 3), round(e.stderr, 3), round(e.low, 3), e.n
        (4.5, 0.866, 2.452, 8)
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) == 0:
        raise ValueError("a mean needs at least one window")
    return _estimate(float(x.mean()), x, anytime)


def paired(more: ArrayLike, less: ArrayLike, *, anytime: bool = False) -> Estimate:
    """The mean of `more - less`, window by window: more quantized minus less quantized.

    Args:
        more: Per-window values of the more quantized.
        less: Those of the less quantized, in the same windows.
        anytime: Whether the interval must hold at all numbers of windows at once.
    """
    return mean(np.asarray(more, np.float64) - np.asarray(less, np.float64), anytime=anytime)


def ratio(of: ArrayLike, to: ArrayLike, *, anytime: bool = False) -> Estimate | None:
    """mean(of) / mean(to) over windows that both have; None where `to` is not positive.

    The error is first order: each window's share is (of_i - ratio * to_i) / mean(to) (delta
    method).

    Example:
        >>> round(ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).mean, 3)
        2.0
    """
    a, b = np.asarray(of, np.float64), np.asarray(to, np.float64)
    if not b.mean() > 0:
        return None
    found = float(a.mean() / b.mean())
    return _estimate(found, (a - found * b) / b.mean(), anytime)


def simultaneous(found: Estimate, among: int, *, anytime: bool = False) -> Estimate:
    """The estimate with an interval that holds together with those of `among` comparisons.

    Each leaves out an equal share of the 5% (Bonferroni), whatever the comparisons have in common.

    Example:
        >>> e = mean([1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0])
        >>> round(e.low, 3), round(simultaneous(e, 3).low, 3)
        (2.452, 1.791)
    """
    if found.low is None or found.stderr is None:
        return found
    share = (1 - CONFIDENCE) / among
    point = (
        critical(found.n, round(share, 10))
        if anytime
        else float(stats.t.ppf(1 - share / 2, found.n - 1))
    )
    half = point * found.stderr
    return replace(found, low=found.mean - half, high=found.mean + half)


def perplexity_difference(more: ArrayLike, less: ArrayLike, *, anytime: bool = False) -> Estimate:
    """exp(mean(more)) - exp(mean(less)) of per-window NLLs, paired.

    The error is first order: each window's share of the difference is
    PPL_more * more_i - PPL_less * less_i (delta method).
    """
    a, b = np.asarray(more, np.float64), np.asarray(less, np.float64)
    ppl_a, ppl_b = np.exp(a.mean()), np.exp(b.mean())
    return _estimate(float(ppl_a - ppl_b), ppl_a * a - ppl_b * b, anytime)


def _estimate(centre: float, shares: NDArray[np.float64], anytime: bool) -> Estimate:
    """`centre` with the standard error of the mean of what each window has a share in."""
    n = len(shares)
    if n == 1:
        return Estimate(centre, None, None, None, 1)
    stderr = float(standard_errors(shares))
    if n < MIN_WINDOWS:
        return Estimate(centre, stderr, None, None, n)
    half = _reach(n, anytime) * stderr
    return Estimate(centre, stderr, centre - half, centre + half, n)
