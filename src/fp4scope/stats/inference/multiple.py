"""P-values of differences, and what is left of them when many are read together.

A family is what one reads as a list: the units of one level under one format, operands and
direction. `p` belongs to the same two-sided paired t test as the interval, so `p` <= 0.05 where
the interval leaves zero out. `p_holm` controls the chance of even one false discovery in
the family, whatever the dependence between its units (they share windows and a control).

Source: Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal
of Statistics 6(2).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from fp4scope.stats.inference.intervals import CONFIDENCE, MIN_WINDOWS, Estimate
from fp4scope.stats.inference.sequences import anytime_p_values, log_evidence
from fp4scope.stats.inference.series import Floats

SIGNIFICANCE = round(1 - CONFIDENCE, 10)


def p_values(means: Floats | float, stderrs: Floats | float, n: int) -> Floats:
    """Two-sided p-values of paired t tests over `n` windows.

    Without any spread a mean of zero has p = 1 and another has p = 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(means == 0, 0.0, np.abs(means) / np.asarray(stderrs))
    return np.asarray(2 * special.stdtr(n - 1, -t))


def one_sided_p_values(means: Floats, stderrs: Floats, n: int, *, anytime: bool = False) -> Floats:
    """P-values of paired t tests of means that are at most zero, against larger ones.

    With `anytime` those of one-sided confidence sequences. A mean of zero without any spread has a
    p of one half, or of 1.

    Example:
        >>> one_sided_p_values(np.array([0.0, 2.0, -2.0]), np.ones(3), 16).round(3).tolist()
        [0.5, 0.032, 0.968]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(means == 0, 0.0, means / stderrs)
    if anytime:
        return np.exp(-np.maximum(log_evidence(t, n, one_sided=True), 0.0))
    return np.asarray(special.stdtr(n - 1, -t))


def p_value(estimate: Estimate, *, anytime: bool = False) -> float | None:
    """The two-sided p-value against no difference; None below `MIN_WINDOWS`.

    With `anytime` it is the one that belongs to the confidence sequence.

    Example:
        >>> round(p_value(Estimate(0.5, 0.2, low=0.04, high=0.96, n=9)), 4)
        0.0369
    """
    if estimate.n < MIN_WINDOWS or estimate.stderr is None:
        return None
    test = anytime_p_values if anytime else p_values
    return float(test(estimate.mean, estimate.stderr, estimate.n))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values of one family, in the order given; None stays None and does not count.

    The smallest p is multiplied by their number m, the next by m - 1, and so on, each at
    least as large as the one before and at most 1.

    Example:
        >>> holm([0.03, 0.01, None, 0.04])
        [0.06, 0.03, None, 0.06]
    """
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def significant(row: Mapping[str, Any]) -> bool:
    """Whether a row's difference is significant, among all of its family."""
    return row["p_holm"] is not None and row["p_holm"] <= SIGNIFICANCE
