"""Exact choice of one setting for each unit under a bound: a multiple-choice knapsack.

Costs add up over units, which is what effects of a designed sweep are made for. The bound is on
what is stored. That is a mixed-integer linear program, which HiGHS solves to optimality in
milliseconds at the sizes of models.

Costs are estimates, and the least of many estimates is too low. So costs are shrunk before they
come here, and a choice is made again over resampled windows: how often an option is chosen says
how far the data decide it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from fp4scope.errors import StudyError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RESAMPLES = 200
"""How often a choice is made again over resampled windows."""
_GAP = 1e-6


def least_cost(costs: Floats, bits: Floats, most_bits: float) -> Integers:
    """The option of each unit whose costs have the least sum, storing no more than a bound.

    Args:
        costs: Units by options, in any unit; Inf where a unit cannot have an option.
        bits: Units by options: what each stores.
        most_bits: The bound on their sum.

    Returns:
        The number of an option for each unit.

    Raises:
        StudyError: Even the smallest options store more; the message has that number.

    Example:
        >>> costs, bits = np.array([[0.0, 3.0], [0.0, 1.0]]), np.array([[16.0, 4.0]] * 2)
        >>> least_cost(costs, bits, 20.0).tolist()
        [0, 1]
    """
    fewest = _least(bits, costs)
    if fewest > most_bits * (1 + 1e-12):
        raise StudyError(f"no recipe stores {most_bits:.6g} bits; the smallest stores {fewest:.6g}")
    return _solved(costs, bits, most_bits)


def _least(values: Floats, costs: Floats) -> float:
    return float(np.where(np.isfinite(costs), values, np.inf).min(axis=1).sum())


def _solved(objective: Floats, bounded: Floats, most: float) -> Integers:
    """Minimise the sum of one, the sum of the other being bounded."""
    units, options = objective.shape
    allowed = np.isfinite(objective) & np.isfinite(bounded)
    weights = np.where(allowed, objective, 0.0).ravel()
    # Numbers near 1, so that the solver's tolerances mean something.
    scale = max(float(np.abs(np.where(allowed, bounded, 0.0)).max()), 1e-300)
    knapsack = np.where(allowed, bounded, 0.0).ravel() / scale
    one_each = np.kron(np.eye(units), np.ones(options))
    spread = max(float(np.abs(weights).max()), 1e-300)
    with _silent():
        found = milp(
            weights / spread,
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint((~allowed).ravel()[None].astype(np.float64), 0, 0),
                LinearConstraint(knapsack[None], -np.inf, most / scale + 1e-9),
            ],
            integrality=np.ones(units * options),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": _GAP},
        )
    if found.x is None:
        raise StudyError(f"the allocation has no solution: {found.message}")
    return found.x.reshape(units, options).argmax(axis=1).astype(np.int64)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what the solver writes to the process's own output, past Python."""
    sys.stdout.flush()
    try:
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # the process has no output
        yield
        return
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def frequencies(
    solve: Callable[[Integers], Integers],
    windows: int,
    options: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """How often each option of each unit is chosen over resampled windows.

    Args:
        solve: From numbers of windows, drawn with replacement, to the option of each unit.
        windows: How many windows there are.
        options: How many options.
        resamples: How often.
        seed: Of the draws.

    Returns:
        Units by options: shares that sum to 1 for each unit.
    """
    generator = np.random.default_rng(seed)
    counts: Floats | None = None
    for _ in range(resamples):
        chosen = solve(generator.integers(windows, size=windows))
        if counts is None:
            counts = np.zeros((len(chosen), options))
        counts[np.arange(len(chosen)), chosen] += 1
    assert counts is not None
    return counts / resamples
