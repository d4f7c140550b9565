"""Whether windows next to each other in the text are alike.

Texts have topics, so the NLL of neighbours is alike. Pairing removes most of what they share;
standard errors allow for the rest (`dependence`). Here a reader learns how much there was.
"""

from dataclasses import dataclass
from statistics import median

import numpy as np

from fp4scope.design import NOTHING, Contrast
from fp4scope.ledger import Results
from fp4scope.stats.findings.pairing import costs
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.series import Series

MIN_PAIRS = 8


@dataclass(frozen=True)
class NeighbourCorrelation:
    """Lag-1 autocorrelation of windows over `pairs` neighbours, both of which were measured.

    `nll` is that of the reference's NLL, `difference` the median over the units' paired
    differences, None where no unit has any. `large` is the median over all-quantized models' and
    projections' differences from what they are compared with: large ones share more of a text than
    small ones. `widened` is by what their intervals are wider than if windows were independent, the
    median.
    """

    nll: float
    difference: float | None
    large: float | None
    widened: float
    pairs: int


def neighbour_correlation(results: Results) -> NeighbourCorrelation | None:
    """How alike neighbouring windows are; None below eight pairs of neighbours."""
    series = by_window(results.ledger, NOTHING, "nll")
    nll = None if series is None else _lag1(series)
    if series is None or nll is None:
        return None
    differences = costs(results)
    found = {v: r for v, d in differences.items() if (r := _lag1(d)) is not None}
    units = [r for contrast, r in found.items() if contrast.unit is not None]
    large = [contrast for contrast in found if _is_large(contrast)]
    return NeighbourCorrelation(
        nll=nll,
        difference=median(units) if units else None,
        large=median(found[contrast] for contrast in large) if large else None,
        widened=median(_widened(differences[v]) for v in large) if large else 1.0,
        pairs=len(_neighbours(series)),
    )


def _widened(series: Series) -> float:
    plain = series.values.std(ddof=1) / len(series.values) ** 0.5
    return float(standard_errors(series.values) / plain)


def _is_large(contrast: Contrast) -> bool:
    return contrast.family.level in ("model", "projections")


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
