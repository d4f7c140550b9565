"""The permutation test within strata, against all orders listed one by one."""

from itertools import permutations

import numpy as np
import pytest

from fp4scope.stats import spearman
from fp4scope.stats.inference import permutations as room
from fp4scope.stats.inference.permutations import permutation_test, rank_fit

STRATA = np.array([0, 0, 0, 1, 1, 1, 1])
TIED = np.array([2.0, 2.0, 50.0, 1.5, 1.5, 1.5, 6.0])
DISTINCT = np.array([2.0, 3.0, 50.0, 1.5, 1.6, 1.7, 6.0])


def every_order(y):
    for mlp in permutations(range(3)):
        for attention in permutations(range(3, 7)):
            yield y[[*mlp, *attention]]


@pytest.mark.parametrize("x", [TIED, DISTINCT])
def test_p_is_the_share_of_orders(x):
    y = np.random.default_rng(0).normal(size=7)
    own = rank_fit(y, x, STRATA)
    fits = np.array([rank_fit(order, x, STRATA) for order in every_order(y)])
    found = permutation_test(y, x, STRATA)
    assert found.orders == len(fits) == 144
    assert found.p_more == (fits >= own - 1e-9).mean()
    assert found.p_less == (fits <= own + 1e-9).mean()
    assert found.p_least == (fits >= 1 - 1e-9).mean() == (1 / 12 if x is TIED else 1 / 144)


@pytest.mark.parametrize("x", [TIED, DISTINCT])
def test_of_all_orders_at_most_5_percent_are_called(x):
    """The null itself: each order within strata once."""
    called = [permutation_test(y, x, STRATA).p_more <= 0.05 for y in every_order(np.arange(7.0))]
    assert sum(called) <= 0.05 * len(called)


def test_what_strata_differ_by_plays_no_part():
    rng = np.random.default_rng(1)
    y = rng.normal(size=(5, 7))
    moved = y + 100 * STRATA
    assert rank_fit(moved, DISTINCT, STRATA).tolist() == rank_fit(y, DISTINCT, STRATA).tolist()


def test_of_one_stratum_it_is_spearmans_over_the_most_that_ties_allow():
    y = np.random.default_rng(2).normal(size=7)
    most = spearman(np.arange(7.0), np.sort(TIED))
    expected = float(spearman(y, TIED) / most)
    assert float(rank_fit(y, TIED, np.zeros(7, int))) == pytest.approx(expected)
    assert np.isnan(rank_fit(y, np.ones(7), STRATA))


def test_many_units_are_drawn(monkeypatch):
    """Drawn p-values are near the listed ones and never zero."""
    rng = np.random.default_rng(3)
    y = DISTINCT + rng.normal(size=7)
    listed = permutation_test(y, DISTINCT, STRATA)
    monkeypatch.setattr(room, "MOST_ORDERS", 100)
    drawn = permutation_test(y, DISTINCT, STRATA)
    assert drawn.orders == 144
    assert drawn.p_more == pytest.approx(listed.p_more, abs=0.2)
    assert permutation_test(np.arange(30.0), np.arange(30.0), np.zeros(30, int)).p_more == 1 / 101
