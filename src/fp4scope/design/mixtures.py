r"""Designed sweeps: runs that quantize about half of a model each, so that each informs every unit.

Units are the groups that engines have. A row of a Hadamard matrix says which of them a run
quantizes, and its complement quantizes the others. Columns are orthogonal, so a group's effect is
the mean of the runs that quantize it less the mean of those that don't, whatever the others do.
Between a row and its complement all interactions of two groups cancel.

Columns are taken in the matrix' own order, groups in the order of the model. The first 2^k - 1
columns of a Sylvester matrix take no more than 2^k different rows, so early blocks change seldom,
and runs share them: a sweep of one setting costs about two thirds of the blocks. The seed gives
each column its sign.

With several settings, a row is run once for each of them. What a row quantizes then has every
setting once, in random order. So a group is in full precision in half of the runs, and in each
setting in an equal share of the others. Simulated, the variance of an effect is 7.2 to 7.9 of
\sigma^2 / runs with two settings and 10 to 11.5 with three. A design without any confounding has 6
and 8, and designs of one setting each have 8 and 12. Levels that are drawn evenly, without the
matrix, have 12 to 20 and 14 to 22 (21 to 120 groups, as many runs).

Beside them every eighth row or so is sparse: it quantizes a quarter or an eighth of the groups, and
its complement three quarters or seven eighths. Half-quantized runs alone say nothing of how damage
bends on the way to either end, or of how far off predictions are there.

Source: Plackett, Burman 1946, The design of optimum multifactorial experiments, Biometrika 33(4);
Box, Wilson 1951, On the experimental attainment of optimum conditions, JRSS B 13(1), for
complements.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp4scope.groups import Group
from fp4scope.recipes import Recipe
from fp4scope.treatments import Setting

Levels = NDArray[np.int64]
_SPARSE = 8
"""One sparse row to so many others; so many at least are there that 1 in 4 and 1 in 8 both are."""
_FEWEST_SPARSE = 4
_PARTS = (4, 8)
"""Sparse rows quantize one of so many parts."""


def mixtures(
    groups: Sequence[Group], settings: Sequence[Setting], seed: int, runs: int | None = None
) -> list[Recipe]:
    """The recipes of a designed sweep; the full-precision model and repetitions are left out.

    Args:
        groups: Units, in the order of the model.
        settings: Levels beside full precision.
        seed: Of signs, order of settings and sparse rows.
        runs: About how many; by default the fewest in which no effects are confounded.
    """
    if not groups or not settings:
        return []
    found: dict[Recipe, None] = {}
    for row in levels(len(groups), len(settings), seed, runs):
        edits = (
            (
                frozenset().union(*(groups[int(g)].names for g in np.flatnonzero(row == place))),
                setting,
            )
            for place, setting in enumerate(settings, 1)
        )
        found.setdefault(Recipe(None, tuple(edit for edit in edits if edit[0])))
    return [recipe for recipe in found if recipe.edits]


def levels(groups: int, settings: int, seed: int, runs: int | None = None) -> Levels:
    """The level of every group in every run: 0 is full precision.

    A row and its complement, in each rotation of the settings, stand together.

    Args:
        groups: How many.
        settings: How many levels there are beside full precision.
        seed: Of all that is random.
        runs: At most so many, but one row with its complement at least; None: one whole design.

    Returns:
        Runs by groups.

    Example:
        >>> found = levels(3, 1, seed=0)
        >>> found.shape, found.mean(axis=0).tolist()
        ((16, 3), [0.5, 0.5, 0.5])
    """
    rng = np.random.default_rng(seed)
    masks = _masks(groups, rng)
    if runs is not None:
        wanted = max(1, runs // (2 * settings))
        while len(masks) < wanted:
            masks = np.concatenate([masks, _masks(groups, rng)])
        masks = masks[np.sort(rng.permutation(len(masks))[:wanted])]
    found: list[Any] = []
    for mask in masks:
        for quantized in (mask, ~mask):
            first = rng.integers(settings, size=groups)
            found += [np.where(quantized, 1 + (first + n) % settings, 0) for n in range(settings)]
    return np.array(found, dtype=np.int64)


def _masks(groups: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """What rows quantize, without their complements: the half-quantized ones, then sparse ones."""
    from scipy.linalg import hadamard

    order = 2
    while order <= groups:
        order *= 2
    signs = rng.choice((-1, 1), groups)
    half = hadamard(order)[:, 1 : groups + 1] * signs > 0
    count = max(_FEWEST_SPARSE, order // _SPARSE)
    return np.concatenate([half, np.array(list(islice(_sparse(groups, rng), count)))])


def _sparse(groups: int, rng: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
    """Rows in which every group comes once in so many."""
    for parts in cycle(_PARTS):
        part = rng.permutation(np.arange(groups) % parts)
        for chosen in range(parts):
            yield part == chosen
