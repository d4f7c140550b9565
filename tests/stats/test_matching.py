"""Served damage is told from its rivals, and intervals cover."""

import numpy as np
import pytest

from fp4scope.stats.inference.matching import match


def damages(seed, windows=16, tokens=64, noise=0.5):
    """A served damage, candidates (the same, one that shares half of it, another), and losses."""
    rng = np.random.default_rng(seed)
    shared, own, other = rng.standard_t(4, (3, windows, tokens))
    served = shared + own + noise * rng.standard_normal((windows, tokens))
    return served, [shared + own, shared + other, other], rng.exponential(3, (windows, tokens))


def test_the_candidate_that_is_served_is_found():
    right, half, wrong = match(*damages(0))
    assert right.same
    assert not half.same
    assert not wrong.same
    assert right.behind.value == 0
    assert right.slope.low < 1 < right.slope.high
    assert right.correlation.low > half.correlation.high
    assert wrong.correlation.low < 0 < wrong.correlation.high


def test_equal_candidates_are_not_told_apart():
    served, (right, *_), full = damages(1)
    again = right + 1e-9 * np.random.default_rng(2).standard_normal(right.shape)
    assert all(found.same for found in match(served, [right, again], full))


def test_numbers_are_those_of_plain_regression():
    served, (right, *_), full = damages(3)
    (found,) = match(served, [right], full)
    columns = np.stack([right.ravel(), full.ravel(), np.ones(right.size)], axis=1)
    slope = np.linalg.lstsq(columns, served.ravel(), rcond=None)[0][0]
    assert found.slope.value == pytest.approx(slope)
    left = [
        column - columns[:, 1:] @ np.linalg.lstsq(columns[:, 1:], column, rcond=None)[0]
        for column in (right.ravel(), served.ravel())
    ]
    assert found.correlation.value == pytest.approx(np.corrcoef(*left)[0, 1])


def test_what_has_nothing_in_common_but_full_precision_goes_with_nothing():
    rng = np.random.default_rng(5)
    full, mine, other = rng.exponential(3, (3, 16, 64))
    (found,) = match(other - full, [mine - full], full)
    assert found.correlation.low < 0 < found.correlation.high
    assert np.corrcoef((other - full).ravel(), (mine - full).ravel())[0, 1] > 0.3


def test_intervals_of_slopes_cover_with_windows_that_differ():
    """Each window has a slope of its own: tokens taken for independent would cover far less."""
    covered = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((12, 100))
        y = x * (1 + 0.5 * rng.standard_normal((12, 1))) + rng.standard_normal((12, 100))
        (found,) = match(y, [x], rng.standard_normal(x.shape))
        covered += found.slope.low < 1 < found.slope.high
    assert 0.91 < covered / 300 < 0.98


def test_a_candidate_without_damage_explains_nothing():
    served, (right, *_), full = damages(4)
    none, found = match(served, [np.zeros_like(served), right], full)
    assert (none.correlation.value, none.slope.value) == (0, 0)
    assert found.same
    assert not none.same


def test_too_few_windows():
    with pytest.raises(ValueError, match="at least 4 windows"):
        match(np.zeros((3, 8)), [np.zeros((3, 8))], np.zeros((3, 8)))


@pytest.mark.parametrize("inputs_too", [True, False])
def test_chaos_of_inputs_does_not_make_weights_alone_the_best(inputs_too):
    """Damage of inputs that is mostly noise of its own, as rounding of activations is."""
    rng = np.random.default_rng(3)
    weights, full = rng.standard_normal((2, 32, 256)) + 0.25
    predicted, served = weights + 0.2 + 1.5 * rng.standard_normal((2, 32, 256))
    both, alone = match(served if inputs_too else weights, [predicted, weights], full)
    if inputs_too:
        assert alone.correlation.low > both.correlation.high  # which decided before
    assert (both.near, both.same) == (inputs_too, inputs_too)
    assert (alone.near, alone.same) == (not inputs_too, not inputs_too)


def test_where_no_mean_is_near_the_correlation_decides():
    served, candidates, full = damages(4)
    right, half, wrong = match(served + 5, candidates, full)
    assert not any(found.near for found in (right, half, wrong))
    assert (right.same, half.same, wrong.same) == (True, False, False)


def test_what_is_served_is_seldom_ruled_out():
    """Five candidates go with it alike, each with noise of its own; pair by pair 9% lost it."""
    lost = 0
    rng = np.random.default_rng(0)
    for _ in range(400):
        full, shared, *noises = rng.standard_normal((8, 32, 60))
        spread = rng.lognormal(0, 0.5, (6, 32, 1))
        served, *candidates = shared + spread * np.stack(noises)
        lost += not match(served, candidates, full)[0].same
    assert lost <= 0.07 * 400
