"""A measure of a recipe by window: means over its replicas."""

from functools import lru_cache

import numpy as np

from fp4scope.ledger import Ledger
from fp4scope.recipes import Recipe
from fp4scope.stats.inference.series import Integers, Series


def by_window(
    ledger: Ledger,
    subject: Recipe,
    measure: str,
    *,
    extra: bool = False,
    router: int | None = None,
) -> Series | None:
    """A measure per token, the mean over the replicas of each window.

    Args:
        ledger: What was found.
        subject: A recipe.
        measure: One of `MEASURES`.
        extra: The replicas that are not counted, in place of those that are.
        router: Of a measure that has a number for each router: which.

    Returns:
        None where nothing was measured.
    """
    rows = ledger.rows(subject)
    column = None if rows is None else rows.values.get(measure)
    if rows is None or column is None:
        return None
    if router is not None:
        column = [None if values is None else values[router] for values in column]
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
