"""Numbers of a row that have intervals."""

from fp4scope.table import Interval


def test_an_interval_in_another_unit_and_back():
    row = Interval(2.0, -1.0, 4.0).columns("x")
    assert row == {"x": 2.0, "x_low": -1.0, "x_high": 4.0}
    found = Interval.of(row, "x")
    assert found.times(-10.0) == Interval(-20.0, -40.0, 10.0)
    assert (found.half, found.holds_zero) == (2.5, True)
    none = Interval(2.0, None, None)
    assert (none.half, none.holds_zero) == (None, False)
    assert none.times(-1.0) == Interval(-2.0, None, None)
