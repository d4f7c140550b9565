"""Whether windows next to each other in the text are alike.

Every interval takes windows for independent draws. Texts have topics, so the NLL of neighbours
is alike; pairing removes most of what they share. What remains makes the intervals of
differences too narrow by about sqrt((1 + r) / (1 - r)), r the lag-1 autocorrelation, if the
windows are all of a text; a sparse sample has few neighbours in it.
"""

from dataclasses import dataclass
from statistics import median

import numpy as np

from fp4scope.records import REFERENCE, Results, Variant
from fp4scope.stats.windows import Series, by_window, costs

MIN_PAIRS = 8


@dataclass(frozen=True)
class NeighbourCorrelation:
    """Lag-1 autocorrelation of windows over `pairs` neighbours, both of which were measured.

    `nll` is that of the reference's NLL, `difference` the median over the units' paired
    differences, None where no unit has any. `largest` is the largest of baselines' and components'
    differences from what they are compared with: large ones share more of a text than small ones.
    """

    nll: float
    difference: float | None
    largest: float | None
    pairs: int

    @property
    def too_narrow(self) -> float:
        """By what an interval is too narrow at `largest`; 1 where that is not above zero."""
        r = min(max(self.largest or 0.0, 0.0), 0.99)
        return float(np.sqrt((1 + r) / (1 - r)))


def neighbour_correlation(results: Results) -> NeighbourCorrelation | None:
    """How alike neighbouring windows are; None below eight pairs of neighbours."""
    reference = results.observation(REFERENCE)
    if reference is None or not reference.windows:
        return None
    series = by_window(reference, "nll")
    nll = _lag1(series)
    if nll is None:
        return None
    differing = {v: r for v, d in costs(results).items() if (r := _lag1(d)) is not None}
    units = [r for variant, r in differing.items() if not variant.is_control]
    return NeighbourCorrelation(
        nll=nll,
        difference=median(units) if units else None,
        largest=max((r for variant, r in differing.items() if _is_large(variant)), default=None),
        pairs=len(_neighbours(series)),
    )


def _is_large(variant: Variant) -> bool:
    return variant.is_control or variant.level == "components"


def _neighbours(series: Series) -> np.ndarray:
    """Positions of windows whose successor in the text was measured too."""
    return np.flatnonzero(np.diff(series.windows) == 1)


def _lag1(series: Series) -> float | None:
    """The mean product of neighbours' deviations over the variance; None if there is none."""
    first = _neighbours(series)
    centred = series.values - series.values.mean()
    variance = np.mean(centred**2)
    if len(first) < MIN_PAIRS or variance == 0:
        return None
    return float(np.mean(centred[first] * centred[first + 1]) / variance)
