"""Values by window, whatever the order they were measured in."""

import numpy as np

from fp4scope.records import REFERENCE, Observation
from fp4scope.stats.windows import Series, aligned, by_window


def observe(rows):
    observation = Observation(variant=REFERENCE)
    for window, replica, nll in rows:
        observation.add(window, replica, tokens=10, nll=nll, kl=0.0, top1=0)
    return observation


def test_replicas_are_averaged_and_windows_sorted():
    series = by_window(observe([(5, 0, 10.0), (2, 0, 30.0), (5, 1, 20.0)]), "nll")
    assert series.windows.tolist() == [2, 5]
    assert series.values.tolist() == [3.0, 1.5]


def test_the_order_of_measuring_changes_no_bit():
    rng = np.random.default_rng(0)
    rows = [(w, r, float(rng.normal())) for w in range(9) for r in range(3)]
    expected = by_window(observe(rows), "nll").values
    for _ in range(20):
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        assert by_window(observe(shuffled), "nll").values.tobytes() == expected.tobytes()


def test_aligned_keeps_the_windows_that_all_have():
    one = Series(np.array([1, 2, 4]), np.array([10.0, 20.0, 40.0]))
    two = Series(np.array([2, 3, 4]), np.array([2.0, 3.0, 4.0]))
    windows, values = aligned([one, two])
    assert windows.tolist() == [2, 4]
    assert values.tolist() == [[20.0, 2.0], [40.0, 4.0]]
    windows, values = aligned([one, one])
    assert (windows.tolist(), values.shape) == ([1, 2, 4], (3, 2))
