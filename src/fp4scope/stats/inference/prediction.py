"""How well a number orders what units cost, and how well any number could.

Spearman's rank correlation, with ranks taken within strata where units of several kinds are not to
be compared. The interval is over windows: means of costs, and of what predicts them where that has
windows too, are drawn again together (`agreement.interval_of_draws`). The ceiling is what a perfect
predictor would reach, since the measured order has noise of its own: it comes from how well the
order of one half of the windows repeats in the other (`agreement`).
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from fp4scope.stats.inference.agreement import DRAWS, interval_of_draws
from fp4scope.stats.inference.dependence import drawn_means, halves
from fp4scope.stats.inference.intervals import MIN_WINDOWS
from fp4scope.stats.inference.series import Floats, Integers
from fp4scope.table import Interval

_HALVINGS = 200


@dataclass(frozen=True)
class Prediction:
    """A rank correlation with its interval, and the ceiling; None below four windows."""

    rho: Interval
    ceiling: float | None


def prediction(costs: Floats, predicted: Floats, strata: Integers) -> Prediction | None:
    """How well `predicted` orders `costs` within strata.

    Args:
        costs: Windows by units.
        predicted: The same, or one row for what does not depend on windows.
        strata: Of each unit; all the same to compare all units.

    Returns:
        None where one of both is the same for all units of every stratum.
    """
    rho = float(within(costs.mean(axis=0), predicted.mean(axis=0), strata))
    if np.isnan(rho):
        return None
    found = Interval(rho, None, None)
    if len(costs) >= MIN_WINDOWS:
        fixed = len(predicted) != len(costs)
        both = costs if fixed else np.concatenate([costs, predicted], axis=1)
        drawn, units = drawn_means(both, DRAWS), costs.shape[1]
        others = predicted.mean(axis=0) if fixed else drawn[:, units:]
        found = Interval(rho, *interval_of_draws(rho, within(drawn[:, :units], others, strata)))
    return Prediction(found, _ceiling(costs, strata))


def within(one: Floats, other: Floats, strata: Integers) -> Floats:
    """Rank correlation over the last axis, ranks within strata; NaN for a constant.

    Example:
        >>> x = np.array([1.0, 2.0, 30.0, 10.0])
        >>> float(within(x, np.array([1.0, 2.0, 4.0, 3.0]), np.array([0, 0, 1, 1])))
        1.0
    """
    a, b = _ranks(one, strata), _ranks(other, strata)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))


def _ranks(x: Floats, strata: Integers) -> Floats:
    """Ranks around zero within strata, ties sharing their mean rank."""
    found = np.zeros(x.shape)
    for stratum in np.unique(strata):
        own = strata == stratum
        ranks = stats.rankdata(x[..., own], axis=-1)
        found[..., own] = (ranks - ranks.mean(axis=-1, keepdims=True)) / (own.sum() + 1)
    return found


def _ceiling(costs: Floats, strata: Integers) -> float | None:
    if len(costs) < 4:
        return None
    half = halves(np.random.default_rng(0), len(costs), _HALVINGS)
    found = within(half @ costs, (1 - half) @ costs, strata)
    known = found[~np.isnan(found)]
    own = max(0.0, float(known.mean())) if len(known) else 0.0
    return float((2 * own / (1 + own)) ** 0.5)
