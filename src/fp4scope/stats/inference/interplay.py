"""How far effects add: keeping a unit saves what quantizing it alone costs, and what is left over.

With d the difference of both in each window, a unit's interaction is the mean of d. Over a family
its root mean square says how far effects are from adding. Noise alone makes that positive, so its
part is taken out: the mean of squares less the mean of squared standard errors.

Where interactions are small beside the noise of `keep`, quantizing a unit alone tells what keeping
it saves better than keeping it does. Then `keep` is drawn to `only` by as much as both noises say
(`designs.shrunk`, of the differences, within each kind). Whether that helps is measured, on halves
of the windows: what one half estimates is held against the other half's unbiased mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fp4scope.stats.inference.dependence import drawn_means, halves, standard_errors
from fp4scope.stats.inference.designs import shrunk
from fp4scope.stats.inference.intervals import CONFIDENCE, MIN_WINDOWS
from fp4scope.stats.inference.series import Floats
from fp4scope.table import Interval

_DRAWS = 2000
_HALVINGS = 40


def root_mean_square(by_window: Floats) -> Interval:
    """That of the units' true means, without what noise adds.

    Args:
        by_window: Windows by units, at least two windows.

    Returns:
        With a 95% interval from `MIN_WINDOWS` windows on. Zero where noise explains all of it.
    """
    means, noise = by_window.mean(axis=0), standard_errors(by_window) ** 2
    found = np.square(means).mean() - noise.mean()
    if len(by_window) < MIN_WINDOWS:
        return Interval(_root(found), None, None)
    # Drawn means have the noise twice: once in what they are drawn around.
    drawn = drawn_means(by_window, _DRAWS)
    squares = np.square(drawn).mean(axis=1) - noise.mean() - drawn.var(axis=0).mean()
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(squares, [tail, 1 - tail])
    return Interval(_root(found), _root(min(low, found)), _root(max(high, found)))


def spread(by_window: Floats) -> float:
    """Variance of the units' true means, without what noise adds; no less than zero."""
    noise = standard_errors(by_window - by_window.mean(axis=1, keepdims=True)) ** 2
    return max(0.0, float(by_window.mean(axis=0).var() - noise.mean()))


@dataclass(frozen=True)
class Drawn:
    """What keeping each unit saves, drawn to what quantizing it alone costs.

    Attributes:
        values: Of each unit.
        error: Root mean square error of `keep` on half of the windows; None for too few.
        error_drawn: That of the same, drawn.
    """

    values: Floats
    error: float | None
    error_drawn: float | None


def drawn_to(keep: Floats, only: Floats, kinds: Sequence[str]) -> Drawn:
    """Draw one direction to the other.

    Args:
        keep: Windows by units: what is drawn.
        only: What it is drawn to, in the same windows.
        kinds: Of each unit: interactions of one kind are taken to be alike.
    """
    windows = len(keep)
    values = _drawn(keep, only, kinds)
    if windows < 2 * MIN_WINDOWS:
        return Drawn(values, None, None)
    plain: list[float] = []
    drawn: list[float] = []
    for half in halves(np.random.default_rng(0), windows, _HALVINGS) > 0:
        other = keep[~half].mean(axis=0)
        plain.append(np.square(keep[half].mean(axis=0) - other).mean())
        drawn.append(np.square(_drawn(keep[half], only[half], kinds) - other).mean())
    # Half of what two halves differ by is the noise of one.
    noise = float(np.mean(plain)) / 2
    return Drawn(values, _root(noise), _root(float(np.mean(drawn)) - noise))


def _drawn(keep: Floats, only: Floats, kinds: Sequence[str]) -> Floats:
    difference = keep - only
    return only.mean(axis=0) + shrunk(difference.mean(axis=0), standard_errors(difference), kinds)


def _root(square: float) -> float:
    return float(max(0.0, square)) ** 0.5
