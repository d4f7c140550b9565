"""Numbers as every part of a report shows them."""

from collections.abc import Mapping
from decimal import Decimal
from math import expm1
from typing import Any

from fp4scope.report.labels import KEEP, direction
from fp4scope.report.section import Cell
from fp4scope.table import Interval

MINUS = "\u2212"
SMALLEST = 1e-5
"""What is closer to zero is shown as no more than that."""


def interval(row: Mapping[str, Any], column: str = "delta_nll", scale: float = 1000.0) -> str:
    """`+1.23 [+0.45, +2.01]`; without an interval where there are too few windows for one."""
    return str(measured(row, column, scale))


def measured(
    row: Mapping[str, Any], column: str = "delta_nll", scale: float = 1000.0, *, muted: bool = False
) -> Cell:
    """A difference with its interval."""
    shown, value = Interval.of(row, column).times(scale), row[column]
    if shown.value is None:
        return Cell()
    return Cell(number(shown.value, sign=True), _bracket(shown), value, muted)


def _bracket(shown: Interval) -> str:
    low, high = (number(end, sign=True) for end in shown[1:])
    return f"[{low}, {high}]" if low and high else "(no interval)"


def plain(value: float | None) -> Cell:
    """A number without an interval."""
    return Cell(number(value), value=value)


def share(value: float | None) -> Cell:
    """A number in percent."""
    return Cell(percent(value), value=value)


def relative(row: Mapping[str, Any], *, muted: bool = False) -> Cell:
    """What a row's quantization costs in percent of perplexity, with its interval."""
    shown = in_percent(row)
    if shown.value is None:
        return Cell()
    return Cell(f"{number(shown.value, sign=True)}%", _bracket(shown), shown.value, muted)


def in_percent(row: Mapping[str, Any]) -> Interval:
    """A cost in percent of the control's perplexity: of the all-quantized model's for `keep`.

    Two perplexities have the exponential of their difference of NLL as ratio, and so have the ends
    of its interval. The interval of `delta_ppl` is another: how hard the windows are is not paired
    away there, and it may hold zero where the cost is significant.
    """
    ends = Interval.of(row, "delta_nll")
    saved = "direction" in row and direction(row["direction"]) is KEEP
    return Interval(*(None if end is None else _in_percent(end, saved) for end in ends))


def _in_percent(nats: float, saved: bool) -> float:
    """How much perplexity grows, or what is saved of the larger one."""
    return -100 * expm1(-nats) if saved else 100 * expm1(nats)


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
        >>> number(-4.256), number(0.0000123), number(-1e-9), number(0.5, sign=True, digits=1)
        ('−4.26', '0.000012', '<0.00001', '+0.5')
    """  # noqa: RUF002
    if value is None:
        return ""
    text = _magnitude(value, sign) if digits is None else f"{abs(value):.{digits}f}"
    if text.startswith("<") or not text.strip("0."):
        return text
    return f"{MINUS if value < 0 else '+' if sign else ''}{text}"


def _magnitude(value: float, sign: bool) -> str:
    exact = abs(value)
    size = float(f"{exact:.4g}")  # 99.996 is shown as 100.0
    if size < SMALLEST:
        return "0" if sign or not size else f"<{SMALLEST:f}".rstrip("0")
    if size < 0.1:
        return f"{Decimal(f'{exact:#.2g}'):f}"
    return f"{exact:.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3}f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{number(100 * value, digits=1)}%"
