"""Per-window values of observations, averaged over replicas and lined up window by window."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from fp4scope.records import Observation

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Series:
    """One value for each window, in the order of the text."""

    windows: Integers
    values: Floats


def by_window(observation: Observation, column: str) -> Series:
    """`nll`, `kl` or `top1` per token, the mean over the replicas of each window."""
    order, windows, first, counts = _layout(tuple(observation.windows), tuple(observation.replicas))
    tokens = np.asarray(observation.tokens, np.float64)
    values = np.asarray(getattr(observation, column), np.float64) / tokens
    return Series(windows, np.add.reduceat(values[order], first) / counts)


@lru_cache(maxsize=16)
def _layout(windows: tuple[int, ...], replicas: tuple[int, ...]) -> tuple[Integers, ...]:
    """The rows in order, the windows, where each begins, and how many rows it has.

    Sorted down to the replica, so that the same data in another order give the same bits. Kept,
    since nearly all variants of a study have the same rows.
    """
    order = np.lexsort((np.asarray(replicas), np.asarray(windows)))
    unique, first, counts = np.unique(
        np.asarray(windows)[order], return_index=True, return_counts=True
    )
    return order, unique, first, counts


def aligned(series: Sequence[Series]) -> tuple[Integers, Floats]:
    """The windows that all have, and a matrix of the values there: a column for each series."""
    same = series[0].windows
    if all(s.windows is same or np.array_equal(s.windows, same) for s in series):
        return same, np.stack([s.values for s in series], axis=1)
    shared: Integers = reduce(np.intersect1d, [s.windows for s in series])
    values = [s.values[np.searchsorted(s.windows, shared)] for s in series]
    return shared, np.stack(values, axis=1)
