"""Tiers: which units of a family can be told apart, as letters.

Two units share a letter if and only if a paired t test (its standard error that of `dependence`)
does not separate them at 5% after Holm's adjustment over all pairs of the family. Units are
compared with each other, not with the all-quantized model, which cancels: two whose own intervals
overlap may well be separable. "Not separable" is not transitive, hence letters (`a`, `ab`, `b`)
instead of ranks.

Source: Piepho 2004, An algorithm for a letter-based representation of all-pairwise comparisons,
Journal of Computational and Graphical Statistics 13(2): insert and absorb.
"""

from collections.abc import Iterable
from string import ascii_letters

import numpy as np

from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.intervals import MIN_WINDOWS
from fp4scope.stats.inference.multiple import SIGNIFICANCE, holm, p_values
from fp4scope.stats.inference.sequences import anytime_p_values
from fp4scope.stats.inference.series import Floats

_MAX_COLUMNS = 1000


def tiers(costs: Floats, *, anytime: bool = False) -> list[str | None]:
    """Letters of every unit, `a` with the most costly.

    Args:
        costs: What each unit costs in each window, windows by units.
        anytime: Whether the p-values must hold at all numbers of windows at once.

    Returns:
        None for all below `MIN_WINDOWS`, or where the alphabet's 52 letters do not do.
    """
    n, units = costs.shape
    if n < MIN_WINDOWS:
        return [None] * units
    means = costs.mean(axis=0)
    order = sorted(range(units), key=lambda i: -means[i])
    ranked = letters(units, separable(costs[:, order], anytime=anytime))
    found: list[str | None] = [None] * units
    for unit, label in zip(order, ranked, strict=True):
        found[unit] = label
    return found


def separable(costs: Floats, *, anytime: bool = False) -> list[tuple[int, int]]:
    """The pairs of columns whose means differ at 5%, Holm over all pairs."""
    first, second = np.triu_indices(costs.shape[1], 1)
    _, found = pair_tests(costs, anytime=anytime)
    pairs = zip(first.tolist(), second.tolist(), holm(found.tolist()), strict=True)
    return [(i, j) for i, j, p in pairs if p is not None and p <= SIGNIFICANCE]


def pair_tests(costs: Floats, *, anytime: bool = False) -> tuple[Floats, Floats]:
    """The mean difference of each pair of columns, and its p-value; pairs as in `triu_indices`."""
    n, units = costs.shape
    first, second = np.triu_indices(units, 1)
    differences = costs[:, first] - costs[:, second]
    means = differences.mean(axis=0)
    test = anytime_p_values if anytime else p_values
    return means, test(means, standard_errors(differences), n)


def letters(units: int, separated: Iterable[tuple[int, int]]) -> list[str | None]:
    """A compact letter display: units share a letter if and only if their pair is not listed.

    Example:
        >>> letters(3, [(0, 2)])
        ['a', 'ab', 'b']
    """
    columns = [frozenset(range(units))]
    for i, j in separated:
        split = [c for c in columns if i in c and j in c]
        columns = [c for c in columns if c not in split]
        for new in (c - {k} for c in split for k in (i, j)):
            if not any(new <= c for c in columns):
                columns = [*(c for c in columns if not c <= new), new]
        if len(columns) > _MAX_COLUMNS:
            return [None] * units
    if len(columns) > len(ascii_letters):
        return [None] * units
    columns.sort(key=sorted)
    names = [
        "".join(a for a, c in zip(ascii_letters, columns, strict=False) if i in c)
        for i in range(units)
    ]
    return [*names]
