"""Values by window, whatever the order they were measured in."""

import numpy as np
import pytest

from fp4scope.design import NOTHING
from fp4scope.ledger import Ledger, Rows
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.series import Series, aligned


def nll(rows, *, counted=3, **which):
    """NLL by window, of (window, replica, sum over ten tokens)."""
    found = Rows()
    for window, replica, value in rows:
        found.put(window, replica, 10, {"kl": 0.0} if value is None else {"nll": value})
    return by_window(Ledger({NOTHING: found}, counted=counted), NOTHING, "nll", **which)


def test_replicas_are_averaged_and_windows_sorted():
    series = nll([(5, 0, 10.0), (2, 0, 30.0), (5, 1, 20.0)])
    assert series.windows.tolist() == [2, 5]
    assert series.values.tolist() == [3.0, 1.5]


def test_the_order_of_measuring_changes_no_bit():
    rng = np.random.default_rng(0)
    rows = [(w, r, float(rng.normal())) for w in range(9) for r in range(3)]
    expected = nll(rows).values
    for _ in range(20):
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        assert nll(shuffled).values.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("counted", "own", "others"), [(1, 0.0, 1.5), (2, 0.5, 2.0)])
def test_replicas_beyond_those_that_count_are_a_series_of_their_own(counted, own, others):
    rows = [(w, r, 100.0 * w + 10 * r) for w in (1, 0) for r in (2, 0, 1)]
    assert nll(rows, counted=counted).values.tolist() == [own, 10 + own]
    assert nll(rows, counted=counted, extra=True).values.tolist() == [others, 10 + others]


def test_rows_without_the_measure_are_left_out():
    assert nll([(0, 0, None), (1, 0, 30.0)]).windows.tolist() == [1]
    assert nll([(0, 0, None)]) is None
    assert nll([(0, 0, 1.0)], extra=True) is None


def test_aligned_keeps_the_windows_that_all_have():
    one = Series(np.array([1, 2, 4]), np.array([10.0, 20.0, 40.0]))
    two = Series(np.array([2, 3, 4]), np.array([2.0, 3.0, 4.0]))
    windows, values = aligned([one, two])
    assert windows.tolist() == [2, 4]
    assert values.tolist() == [[20.0, 2.0], [40.0, 4.0]]
    windows, values = aligned([one, one])
    assert (windows.tolist(), values.shape) == ([1, 2, 4], (3, 2))
