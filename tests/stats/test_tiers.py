"""Letters: two units share one if and only if they are not separable."""

import itertools

import numpy as np
import pytest

from fp4scope.stats import MIN_WINDOWS, tiers
from fp4scope.stats.inference.tiers import letters, separable


def share(labels, i, j):
    return bool(set(labels[i]) & set(labels[j]))


@pytest.mark.parametrize("units", range(1, 7))
def test_units_share_a_letter_if_and_only_if_they_are_not_separated(units):
    pairs = list(itertools.combinations(range(units), 2))
    rng = np.random.default_rng(units)
    graphs = (
        itertools.product([False, True], repeat=len(pairs))
        if units <= 4
        else rng.random((300, len(pairs))) < rng.random((300, 1))
    )
    for chosen in graphs:
        separated = {pair for pair, is_in in zip(pairs, chosen, strict=True) if is_in}
        labels = letters(units, separated)
        assert all(labels)
        for pair in pairs:
            assert share(labels, *pair) == (pair not in separated), (separated, labels)


def test_letters_are_as_few_as_piepho_needs():
    # A letter that says nothing more than another is absorbed.
    assert letters(4, [(0, 2), (0, 3), (1, 3)]) == ["a", "ab", "bc", "c"]
    assert letters(3, []) == ["a", "a", "a"]
    assert letters(3, [(0, 1), (0, 2), (1, 2)]) == ["a", "b", "c"]


def test_a_is_with_the_most_costly_whatever_the_order():
    rng = np.random.default_rng(0)
    costs = rng.normal([0.0, 3.0, 1.0, 3.0], 0.1, (20, 4))
    assert tiers(costs) == ["c", "a", "b", "a"]


def test_what_windows_share_does_not_hide_a_difference():
    rng = np.random.default_rng(1)
    costs = rng.normal(0, 10, (16, 1)) + rng.normal(0, 0.1, (16, 2)) + [0.0, 1.0]
    assert tiers(costs) == ["b", "a"]


def test_separable_is_holm_over_paired_t_tests(newey_west):
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(50):
        costs = rng.normal(0, 1, (12, 5)) + rng.normal(0, 0.8, 5)
        pairs = list(itertools.combinations(range(5), 2))
        p = {(i, j): newey_west(costs[:, i] - costs[:, j])[1] for i, j in pairs}
        expected = set()
        for step, pair in enumerate(sorted(pairs, key=p.__getitem__)):
            if p[pair] > 0.05 / (len(pairs) - step):
                break
            expected.add(pair)
        assert set(separable(costs)) == expected
        found += len(expected)
    assert found > 50


def test_too_few_windows_or_letters_have_no_tier():
    assert tiers(np.arange(2.0 * (MIN_WINDOWS - 1)).reshape(-1, 2)) == [None, None]
    assert tiers(np.zeros((MIN_WINDOWS, 1))) == ["a"]
    costs = np.random.default_rng(3).normal(0, 1e-6, (20, 60)) + np.arange(60)
    assert tiers(costs) == [None] * 60


def test_the_recorded_projections_fall_into_tiers(families):
    more, less = families["projections", "nvfp4", "keep"]
    found = tiers(more - less)
    costs = (more - less).mean(axis=0)
    assert "a" in found[costs.argmax()]
    assert "a" not in found[costs.argmin()]
