"""Numbers as the report shows them."""

import pytest

from fp4scope.report.words import number


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0.0, "0"),
        (3e-6, "3e-06"),
        (0.0123, "0.012"),
        (0.5, "0.500"),
        (9.9996, "10.00"),
        (99.94, "99.94"),
        (99.996, "100.0"),
        (999.96, "1000"),
        (12345.6, "12346"),
        (-99.996, "-100.0"),
    ],
)
def test_significant_digits(value, shown):
    assert number(value) == shown


def test_a_sign_where_it_is_wanted():
    assert [number(x, sign=True) for x in (2.0, -2.0, 3e-6)] == ["+2.00", "-2.00", "+3e-06"]
