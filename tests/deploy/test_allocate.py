"""Allocation is exact: no other choice under the bound is better."""

import os
from itertools import product

import numpy as np
import pytest

from fp4scope.deploy.allocate import frequencies, least_cost
from fp4scope.errors import StudyError


def every_choice(costs, bits):
    """The sums of every possible choice."""
    units, options = costs.shape
    for chosen in product(range(options), repeat=units):
        rows = np.arange(units), list(chosen)
        yield costs[rows].sum(), bits[rows].sum()


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_is_better(seed):
    generator = np.random.default_rng(seed)
    sizes = generator.choice([1.0, 2.0, 7.0], size=(6, 1))
    bits = sizes * np.array([16.0, 8.0, 4.5])
    costs = np.concatenate([np.zeros((6, 1)), generator.normal(1, 1, (6, 2))], axis=1)
    most_bits = generator.uniform(4.6, 12) * sizes.sum()
    chosen = np.arange(6), least_cost(costs, bits, most_bits)
    assert bits[chosen].sum() <= most_bits
    best = min(cost for cost, stored in every_choice(costs, bits) if stored <= most_bits)
    assert costs[chosen].sum() == pytest.approx(best, abs=1e-5)


def test_what_a_unit_cannot_have_is_not_chosen():
    costs = np.array([[0.0, np.inf, 1.0], [0.0, -5.0, 1.0]])
    bits = np.array([[16.0, 4.0, 8.0], [16.0, 4.0, 8.0]])
    assert least_cost(costs, bits, 12.0).tolist() == [2, 1]
    with pytest.raises(StudyError, match="smallest stores 12"):
        least_cost(costs, bits, 11.0)


def test_nothing_is_printed(capfd):
    generator = np.random.default_rng(0)
    for _ in range(30):
        sizes = generator.choice([1.0, 2.0, 3.0], size=(120, 1))
        costs = np.stack([np.zeros(120), *generator.normal(2, 1, (2, 120))], axis=1)
        least_cost(costs, sizes * np.array([16, 4.25, 4.5]), 5.5 * sizes.sum())
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"


def test_frequencies_say_how_far_windows_decide():
    # Unit 0 is decided in every window, unit 1 in half of them.
    by_window = np.array([[1.0, 1.0], [1.0, -1.0]] * 8)

    def solve(windows):
        return (by_window[windows].mean(axis=0) > 0).astype(np.int64)

    found = frequencies(solve, 16, 2, resamples=400)
    assert found.shape == (2, 2)
    assert found[0].tolist() == [0.0, 1.0]
    assert 0.3 < found[1, 1] < 0.7
    assert found.sum(axis=1) == pytest.approx([1.0, 1.0])
