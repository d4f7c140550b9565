"""Numbers of a row that have intervals."""

import pytest

from fp4scope.table import Interval, Table


def test_an_interval_in_another_unit_and_back():
    row = Interval(2.0, -1.0, 4.0).columns("x")
    assert row == {"x": 2.0, "x_low": -1.0, "x_high": 4.0}
    found = Interval.of(row, "x")
    assert found.times(-10.0) == Interval(-20.0, -40.0, 10.0)
    assert (found.half, found.holds_zero) == (2.5, True)
    none = Interval(2.0, None, None)
    assert (none.half, none.holds_zero) == (None, False)
    assert none.times(-1.0) == Interval(-2.0, None, None)


def test_a_short_frame_has_what_tells_rows_apart():
    pytest.importorskip("pandas")
    table = Table(
        ("name", "same", "empty", "cost", "cost_stderr"),
        [{"name": n, "same": 1, "cost": c, "cost_stderr": c} for n, c in (("a", 1.0), ("b", 2.0))],
    )
    assert list(table.to_pandas(short=True).columns) == ["name", "cost"]
    assert list(table.to_pandas().columns) == list(table.columns)
