"""How sure it is that a unit is among the most costly of its family.

The order of the estimates is not the order of the truth: units a few standard errors apart
change places from one sample of windows to the next. Given n windows, the means are drawn from the
multivariate t distribution with n - 1 degrees of freedom around the estimates: each mean alone has
the distribution of its t interval, and units that rise and fall together in the same windows, or in
neighbouring ones, do so in the draws. The covariance is never formed: independent normals times
the windows' deviations `with_neighbours` have it.
"""

import numpy as np

from fp4scope.stats.dependence import standard_errors, with_neighbours
from fp4scope.stats.intervals import MIN_WINDOWS
from fp4scope.stats.windows import Floats

TOP_K = {"components": 2, "blocks": 3, "patterns": 1, "cells": 10}
DRAWS = 4000


def drawn_means(costs: Floats) -> Floats:
    """What the means of `costs` (windows by units) may be: draws by units, always the same ones."""
    n = len(costs)
    rng = np.random.default_rng(0)
    means = costs.mean(axis=0)
    shared = with_neighbours(costs - means)
    sizes = np.sqrt(np.square(shared).sum(axis=0) / n / (n - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(sizes > 0, standard_errors(costs) / sizes, 0.0)
    normals = rng.standard_normal((DRAWS, len(shared)))
    chi2 = rng.chisquare(n - 1, (DRAWS, 1))
    return means + normals @ (shared * scale) / np.sqrt(n * chi2)


def top_probabilities(costs: Floats, k: int) -> list[float | None]:
    """The probability that each unit is one of the `k` that cost most.

    Args:
        costs: What each unit costs in each window, windows by units.
        k: How many count as the most costly.

    Returns:
        In steps of 1/4000, the same for the same data. 1 for all where there are no more than k
        units, None for all below `MIN_WINDOWS`.
    """
    n, units = costs.shape
    if n < MIN_WINDOWS:
        return [None] * units
    if units <= k:
        return [1.0] * units
    drawn = drawn_means(costs)
    top = np.argpartition(drawn, units - k, axis=1)[:, units - k :]
    return (np.bincount(top.ravel(), minlength=units) / DRAWS).tolist()
