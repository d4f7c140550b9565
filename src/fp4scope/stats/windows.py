"""Values of a subject by window: means over its replicas, lined up window by window."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from fp4scope.ledger import Ledger
from fp4scope.recipes import Recipe

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Series:
    """One value for each window, in the order of the text."""

    windows: Integers
    values: Floats


def by_window(
    ledger: Ledger, subject: Recipe, measure: str, *, extra: bool = False
) -> Series | None:
    """A measure per token, the mean over the replicas of each window.

    Args:
        ledger: What was found.
        subject: A recipe.
        measure: One of `MEASURES`.
        extra: The replicas that are not counted, in place of those that are.

    Returns:
        None where nothing was measured.
    """
    rows = ledger.rows(subject)
    column = None if rows is None else rows.values.get(measure)
    if rows is None or column is None:
        return None
    indices, replicas, tokens = rows.indices, rows.replicas, rows.tokens
    if extra or None in column or max(replicas, default=0) >= ledger.counted:
        chosen = [
            row
            for row, (replica, value) in enumerate(zip(replicas, column, strict=True))
            if value is not None and (replica >= ledger.counted) == extra
        ]
        indices, replicas = [indices[r] for r in chosen], [replicas[r] for r in chosen]
        tokens, column = [tokens[r] for r in chosen], [column[r] for r in chosen]
    if not indices:
        return None
    order, windows, first, counts = _layout(tuple(indices), tuple(replicas))
    values = np.asarray(column, np.float64) / np.asarray(tokens, np.float64)
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
