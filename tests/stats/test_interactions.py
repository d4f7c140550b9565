"""Interactions: noise is taken out of them, and one direction is drawn to the other."""

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, asked
from fp4scope.stats import additivity_table, interaction_table
from fp4scope.stats.inference.interplay import drawn_to, root_mean_square, spread

UNITS, WINDOWS = 40, 32


def noisy(rng, true, noise):
    return true + noise * rng.normal(size=(WINDOWS, len(true)))


def test_noise_alone_is_no_interaction():
    rng = np.random.default_rng(1)
    found = [root_mean_square(noisy(rng, np.zeros(UNITS), 1.0)) for _ in range(40)]
    assert np.mean([one.low == 0 for one in found]) >= 0.9
    assert np.mean([one.value**2 for one in found]) < 0.3 / WINDOWS


@pytest.mark.parametrize("size", [0.1, 1.0])
def test_its_interval_holds_the_true_root_mean_square(size):
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(60):
        true = size * rng.normal(size=UNITS)
        found = root_mean_square(noisy(rng, true, 1.0))
        inside.append(found.low <= np.sqrt(np.square(true).mean()) <= found.high)
    assert np.mean(inside) >= 0.9


def test_the_spread_of_units_leaves_noise_out():
    rng = np.random.default_rng(3)
    true = rng.normal(size=UNITS)
    found = [spread(noisy(rng, true, 3.0)) for _ in range(40)]
    assert np.mean(found) == pytest.approx(true.var(), rel=0.2)


@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_drawing_one_direction_to_the_other_helps_where_they_agree(apart):
    rng = np.random.default_rng(4)
    only = np.repeat(rng.normal(size=UNITS)[None], WINDOWS, axis=0)
    true = only[0] + apart * rng.normal(size=UNITS)
    keep = noisy(rng, true, 4.0)
    found = drawn_to(keep, only, [""] * UNITS)
    errors = [np.sqrt(np.square(x - true).mean()) for x in (keep.mean(axis=0), found.values)]
    assert (errors[1] < 0.5 * errors[0]) == (apart == 0.0)
    assert errors[1] < 1.05 * errors[0]
    # What halves say of themselves is what they are off by.
    assert found.error == pytest.approx(4.0 / (WINDOWS / 2) ** 0.5, rel=0.25)
    assert (found.error_drawn < 0.5 * found.error) == (apart == 0.0)


def unit(direction, block, level="layers"):
    return asked(format="nvfp4", direction=direction, level=level, unit="q_proj", block=block)


@pytest.fixture
def study(observe, results):
    rng = np.random.default_rng(5)
    text = rng.normal(3, 1, 16)
    flips = np.array([1, -1] * 8) * 1e-3
    found = [observe(REFERENCE, text), observe(all_quantized("nvfp4"), text + 0.2)]
    for block in range(4):
        found.append(observe(unit("keep", block), text + 0.2 - 0.02 * block + flips))
        found.append(observe(unit("only", block), text + 0.01 * block))
    return results(*found, observe(unit("keep", 9), text))


def test_units_in_both_directions_are_compared(study):
    rows = interaction_table(study)
    assert [row["block"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["keep"] == pytest.approx(0.04)
    assert rows[2]["only"] == pytest.approx(0.02)
    assert rows[2]["interaction"] == pytest.approx(0.02)
    assert rows[2]["interaction_low"] < 0.02 < rows[2]["interaction_high"]
    assert [row["p_holm"] < 0.05 for row in rows] == [False, True, True, True]


def test_a_family_says_how_far_its_effects_add(study):
    nll, kl = additivity_table(study)
    assert (nll["measure"], kl["measure"], nll["units"]) == ("nll", "kl", 4)
    assert nll["only"] == pytest.approx(0.01 * np.sqrt(14 / 4))
    assert nll["interaction"] == pytest.approx(nll["only"], rel=0.01)
    # All of keep is twice of only, so half of its spread is left over.
    assert nll["explained"] == pytest.approx(0.75, abs=0.01)


def test_one_direction_alone_says_nothing(observe, results):
    study = results(observe(REFERENCE, [3.0] * 8), observe(unit("only", 0), [3.1] * 8))
    assert not interaction_table(study)
    assert not additivity_table(study)
