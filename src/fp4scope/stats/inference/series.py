"""Values of a thing by window, and several of them lined up window by window."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Series:
    """One value for each window, in the order of the text."""

    windows: Integers
    values: Floats


def aligned(series: Sequence[Series]) -> tuple[Integers, Floats]:
    """The windows that all have, and a matrix of the values there: a column for each series."""
    same = series[0].windows
    if all(s.windows is same or np.array_equal(s.windows, same) for s in series):
        return same, np.stack([s.values for s in series], axis=1)
    shared: Integers = reduce(np.intersect1d, [s.windows for s in series])
    values = [s.values[np.searchsorted(s.windows, shared)] for s in series]
    return shared, np.stack(values, axis=1)
