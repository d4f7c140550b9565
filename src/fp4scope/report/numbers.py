"""Numbers as every part of a report shows them."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import expm1
from typing import Any

from fp4scope.report.labels import KEEP, direction
from fp4scope.report.section import Cell

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
    value, *ends = (row[f"{column}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return Cell()
    return Cell(number(scale * value, sign=True), _bracket(ends, scale), value, muted)


def _bracket(ends: Sequence[float | None], scale: float) -> str:
    shown = [number(scale * end, sign=True) for end in ends if end is not None]
    return f"[{', '.join(shown)}]" if len(shown) == 2 else "(no interval)"


def plain(value: float | None) -> Cell:
    """A number without an interval."""
    return Cell(number(value), value=value)


def share(value: float | None) -> Cell:
    """A number in percent."""
    return Cell(percent(value), value=value)


def relative(row: Mapping[str, Any], *, muted: bool = False) -> Cell:
    """What a row's quantization costs in percent of perplexity, with its interval."""
    ends = relative_ends(row)
    if ends[0] is None:
        return Cell()
    return Cell(f"{number(ends[0], sign=True)}%", _bracket(ends[1:], 1.0), ends[0], muted)


def relative_ends(row: Mapping[str, Any]) -> list[float | None]:
    """A difference of perplexity, and its interval, in percent of the control's perplexity.

    The control has seen the same windows. A whole model has no `delta_ppl`; its ratio to the
    reference's is the exponential of the difference of NLL.
    """
    if "delta_ppl" not in row:
        ends = [row[f"delta_nll{end}"] for end in ("", "_low", "_high")]
        return [None if end is None else 100 * expm1(end) for end in ends]
    ppl, *ends = (row[name] for name in ("ppl", "delta_ppl", "delta_ppl_low", "delta_ppl_high"))
    if ppl is None or ends[0] is None:
        return [None] * 3
    control = ppl + (ends[0] if direction(row["direction"]) is KEEP else -ends[0])
    return [None if end is None else 100 * end / control for end in ends]


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
