"""Rank correlation within strata, and its exact permutation test.

Units are ranked within their stratum alone, so what strata differ by plays no part. If x says
nothing of y within strata, every order of a stratum's units is as likely as any other. The p-value
is the share of orders that fit at least as well. Strata are independent, so the distribution of
their sum is built from one list of orders for each, not from all orders together.

Source: van Elteren 1960, On the combination of independent two-sample tests of Wilcoxon (ranks
over the stratum's size + 1); Phipson, Smyth 2010, Permutation p-values should never be zero (the
+ 1 of drawn orders), Statistical Applications in Genetics and Molecular Biology 9(1).
"""

from dataclasses import dataclass
from itertools import permutations
from math import factorial, prod

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fp4scope.stats.inference.series import Floats, Integers

MOST_ORDERS = 200_000
"""More are not listed; so many are drawn instead."""
_LARGEST = 8
_EPSILON = 1e-9


@dataclass(frozen=True)
class PermutationTest:
    """Of `orders` orders within strata, the shares that fit as well, as badly, and best."""

    p_more: float
    p_less: float
    p_least: float
    orders: int


def rank_fit(y: Floats, x: Floats, strata: Integers) -> Floats:
    """Rank correlation of `y` with `x` within strata, over the last axis.

    Divided by the most that an order of `y` can reach, so that ties in `x` cost nothing: 1 if `y`
    rises with `x` in each stratum. NaN where `x` is constant in each.

    Example:
        >>> y, x = np.array([1.0, 2.0, 3.0, 0.0]), np.array([5.0, 5.0, 9.0, 1.0])
        >>> float(rank_fit(y, x, np.array([0, 0, 0, 1])))
        1.0
    """
    found, most = np.zeros(y.shape[:-1]), np.zeros(y.shape[:-1])
    for stratum in np.unique(strata):
        own = strata == stratum
        a, b = _scores(x[own]), _scores(y[..., own])
        found = found + b @ a
        most = most + np.sort(b, axis=-1) @ np.sort(a)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(most > _EPSILON, found / most, np.nan))


def permutation_test(y: Floats, x: Floats, strata: Integers) -> PermutationTest:
    """How many of the orders of `y` within strata fit `x` as well as `y` does, or as badly."""
    groups = [(_scores(x[own]), _scores(y[own])) for own in _members(strata)]
    orders = prod(factorial(len(a)) for a, _ in groups)
    listed = orders <= MOST_ORDERS and max(len(a) for a, _ in groups) <= _LARGEST
    sums = np.zeros(1 if listed else MOST_ORDERS)
    rng = np.random.default_rng(0)
    for a, b in groups:
        if listed:
            fits = b[np.array([*permutations(range(len(b)))])] @ a
            sums = np.add.outer(sums, fits).ravel()
        else:
            sums = sums + rng.permuted(np.tile(b, (MOST_ORDERS, 1)), axis=1) @ a
    own = sum(float(a @ b) for a, b in groups)
    best = sum(float(np.sort(a) @ np.sort(b)) for a, b in groups)
    extra = 0 if listed else 1

    def share(hits: NDArray[np.bool_]) -> float:
        return float((hits.sum() + extra) / (len(sums) + extra))

    return PermutationTest(
        p_more=share(sums >= own - _EPSILON),
        p_less=share(sums <= own + _EPSILON),
        p_least=share(sums >= best - _EPSILON),
        orders=orders,
    )


def _members(strata: Integers) -> list[Integers]:
    return [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]


def _scores(values: Floats) -> Floats:
    """Ranks around zero, over the number of units + 1; ties share their mean rank."""
    ranks = stats.rankdata(values, axis=-1)
    return np.asarray((ranks - ranks.mean(axis=-1, keepdims=True)) / (values.shape[-1] + 1))
