"""Numbers as every part of a report shows them."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

MINUS = "\u2212"
SMALLEST = 1e-5
"""What is closer to zero is shown as no more than that."""


def interval(row: Mapping[str, Any], column: str = "delta_nll", scale: float = 1000.0) -> str:
    """`+1.23 [+0.45, +2.01]`; without an interval where there are too few windows for one."""
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if value is None:
        return ""
    if low is None or high is None:
        return f"{number(scale * value, sign=True)} (no interval)"
    return (
        f"{number(scale * value, sign=True)} "
        f"[{number(scale * low, sign=True)}, {number(scale * high, sign=True)}]"
    )


def noise(row: Mapping[str, Any]) -> str:
    """What rounding alone does to a mean NLL, in millinats, and between two runs, as KL."""
    if row["jitter_nll"] is None:
        return ""
    return f"{spread(1e3 * row['jitter_nll'])}, KL {number(row['jitter_kl'])}"


def spread(value: float | None) -> str:
    """`±1.23`, or `<0.00001`."""
    shown = number(value)
    return shown if shown.startswith("<") or not shown else f"±{shown}"


def number(value: float | None, sign: bool = False, digits: int | None = None) -> str:
    """A number as every part of a report shows it.

    Three or four significant digits, two below 0.1, and no digit of a large number lost. The minus
    is U+2212. What is below 0.00001 is called so, or 0 where a sign is wanted.

    Args:
        value: None is shown as nothing.
        sign: Whether positive numbers have a plus.
        digits: As many decimals instead.

    Example:
        >>> number(-4.256), number(0.0000123), number(1e-9), number(0.5, sign=True, digits=1)
        ('−4.26', '0.000012', '<0.00001', '+0.5')
    """  # noqa: RUF002
    if value is None:
        return ""
    text = _magnitude(value, sign) if digits is None else f"{abs(value):.{digits}f}"
    if not text.strip("0."):
        return text
    return f"{MINUS if value < 0 else '+' if sign else ''}{text}"


def _magnitude(value: float, sign: bool) -> str:
    exact = abs(value)
    size = float(f"{exact:.4g}")  # 99.996 is shown as 100.0
    if size < SMALLEST:
        return "0" if sign or not size else f"<{SMALLEST:f}".rstrip("0")
    if size < 0.1:
        return f"{Decimal(f'{exact:.2g}'):f}"
    return f"{exact:.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3}f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{number(100 * value, digits=1)}%"
