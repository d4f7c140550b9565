"""Means and paired differences with a standard error and a 95% t interval.

Windows all have the same number of targets. With n of them and per-window means x_1..x_n, the
estimate is their mean, its standard error s / sqrt(n), and the interval mean +- t(n - 1) *
stderr. One window has neither.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` windows; `stderr`, `low` and `high` are None for fewer than two."""

    mean: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int


@cache
def _t(n: int) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))


def mean(values: ArrayLike) -> Estimate:
    """The mean of per-window values.

    Example:
        >>> e = mean([1.0, 2.0, 3.0])
        >>> round(e.mean, 3), round(e.stderr, 3), round(e.low, 3), e.n
        (2.0, 0.577, -0.484, 3)
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n == 0:
        raise ValueError("a mean needs at least one window")
    centre = float(x.mean())
    if n == 1:
        return Estimate(centre, None, None, None, 1)
    stderr = float(x.std(ddof=1) / np.sqrt(n))
    half = _t(n) * stderr
    return Estimate(centre, stderr, centre - half, centre + half, n)


def paired(more: ArrayLike, less: ArrayLike) -> Estimate:
    """The mean of `more - less`, window by window: more quantized minus less quantized."""
    return mean(np.asarray(more, np.float64) - np.asarray(less, np.float64))


def perplexity_difference(more: ArrayLike, less: ArrayLike) -> Estimate:
    """exp(mean(more)) - exp(mean(less)) of per-window NLLs, paired.

    The error is first order: each window's share of the difference is
    PPL_more * more_i - PPL_less * less_i (delta method).
    """
    a, b = np.asarray(more, np.float64), np.asarray(less, np.float64)
    ppl_a, ppl_b = np.exp(a.mean()), np.exp(b.mean())
    spread = mean(ppl_a * (a - a.mean()) - ppl_b * (b - b.mean()))
    difference = float(ppl_a - ppl_b)
    if spread.stderr is None:
        return Estimate(difference, None, None, None, spread.n)
    half = _t(spread.n) * spread.stderr
    return Estimate(difference, spread.stderr, difference - half, difference + half, spread.n)
