"""Whether first-order estimates rank the units of a family as the exact sweep does.

Spearman's rank correlation between two lists of means over the same windows, and how many of the
units that are most costly by one are so by the other.

What the two lists share in a window raises rho: on little text a unit looks costly in both because
these windows happen to be hard for it. For `only` that can be most of an estimate, since on
endless text the gradient of a trained model is near zero and what remains is curvature, which first
order leaves out. Hence `rho_apart`: the estimate on one half of the windows against the exact sweep
on the other, the mean over many halvings. It says what an estimate is worth for other text; halves
being shorter, it is somewhat low.

A ceiling stands beside both. The exact sweep's order has noise of its own, so that even a predictor
that knew every true cost would not reach 1. The order of one half of the windows correlates with
that of the other at r (`own`, the mean over halvings); by Spearman and Brown the order of all
windows is reliable to 2 r / (1 + r), and a perfect predictor correlates with it at the square root
of that (`ceiling`), with the order of one half at the square root of r (`ceiling_apart`). On the
same windows an estimate may lie above it, by luck that both share.

The interval is over windows: the means of both lists are drawn again (`drawn_means`) and ranked.
Noise that a list has to itself lowers rho, drawing means adds as much noise again, and so the draws
lie below rho about as far as rho lies below what endless text would give. So the draws' quantiles
are mirrored at rho (the basic interval). With few units rho jumps, the mirrored interval is too
narrow, and the draws' own quantiles are joined to it. In a simulation (costs with heavy tails that
correlate at 0.8, unshared noise of a window 3 times their spread, 60 studies each;
`benchmarks/intervals.py --ranks`) the rank correlation without noise was inside

| units, windows | 30, 8 | 30, 32 | 210, 8 | 210, 32 | 210, 96 |
| --- | --- | --- | --- | --- | --- |
| the draws' quantiles | 0% | 3% | 0% | 0% | 0% |
| mirrored | 38% | 82% | 0% | 55% | 95% |

so that on few windows and for close units it is too low. It always holds rho itself.
`orders` has the same for seven units. The draws are those of a number of windows that was fixed
beforehand.

Source: Spearman 1910 and Brown 1910, British Journal of Psychology 3(3).
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from fp4scope.stats.inference.dependence import drawn_means, halves
from fp4scope.stats.inference.intervals import CONFIDENCE, MIN_WINDOWS
from fp4scope.stats.inference.series import Floats
from fp4scope.table import Interval

FEWEST_UNITS = 3
"""Two are always ranked perfectly, one way or the other."""
DRAWS = 2000
HALVINGS = 500


@dataclass(frozen=True)
class Agreement:
    """Rank correlation with its interval, whose ends are None below `MIN_WINDOWS` windows.

    `apart` is that of the estimate and the exact cost on different windows; None for fewer than
    four.
    """

    rho: Interval
    apart: float | None


def spearman(one: Floats, other: Floats) -> Floats:
    """Spearman's rho between the last axes, ties sharing their mean rank; NaN for a constant.

    Example:
        >>> float(spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 2.0, 9.0])))
        0.8
    """
    ranks = [stats.rankdata(x, axis=-1) for x in (one, other)]
    a, b = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))


def agreement(exact: Floats, estimated: Floats, *, paired: bool = True) -> Agreement | None:
    """The rank correlation of two lists of costs, each windows by units.

    Args:
        exact: The one list; here what was measured.
        estimated: The other.
        paired: Whether the windows of both are the same. If not they are drawn separately, and
            their numbers may differ.

    Returns:
        None where all costs of a list are the same.
    """
    rho = float(spearman(exact.mean(axis=0), estimated.mean(axis=0)))
    if np.isnan(rho):
        return None
    apart = rho_apart(exact, estimated) if paired else None
    if min(len(exact), len(estimated)) < MIN_WINDOWS:
        return Agreement(Interval(rho, None, None), apart)
    units = exact.shape[1]
    if paired:
        drawn = drawn_means(np.concatenate([exact, estimated], axis=1), DRAWS)
        found = spearman(drawn[:, :units], drawn[:, units:])
    else:
        found = spearman(drawn_means(exact, DRAWS), drawn_means(estimated, DRAWS, seed=1))
    return Agreement(Interval(rho, *interval_of_draws(rho, found)), apart)


def interval_of_draws(rho: float, drawn: Floats) -> tuple[float, float]:
    """A rank correlation's 95% interval from those of drawn means; it holds `rho`.

    The draws' quantiles, those mirrored at `rho`, and all between.

    Example:
        >>> low, high = interval_of_draws(0.5, np.linspace(0.0, 0.8, 41))
        >>> round(low, 2), round(high, 2)
        (0.02, 0.98)
    """
    tail = (1 - CONFIDENCE) / 2
    least, most = np.quantile(drawn[~np.isnan(drawn)], [tail, 1 - tail])
    low, high = min(2 * rho - most, least), max(2 * rho - least, most)
    return float(max(-1, min(low, rho))), float(min(1, max(high, rho)))


def rho_apart(exact: Floats, estimated: Floats) -> float | None:
    """The mean rho of the estimate on half of the windows and the exact cost on the other half.

    Of a list with itself: how well its order repeats on other text. None below four windows.
    """
    windows = len(exact)
    if windows < 4:
        return None
    half = halves(np.random.default_rng(0), windows, HALVINGS)
    # Sums in place of means: a rank does not see the difference.
    found = np.concatenate(
        [
            spearman(half @ exact, (1 - half) @ estimated),
            spearman((1 - half) @ exact, half @ estimated),
        ]
    )
    known = found[~np.isnan(found)]
    return float(known.mean()) if len(known) else None


def ceilings(exact: Floats) -> tuple[float, float] | None:
    """What a perfect predictor's rank correlation with these costs would be, estimated.

    Args:
        exact: Windows by units.

    Returns:
        On all windows, and on one half of them; 0 where the order does not repeat at all, None
        below four windows.
    """
    own = rho_apart(exact, exact)
    if own is None:
        return None
    half = max(0.0, own)
    return (2 * half / (1 + half)) ** 0.5, half**0.5
