"""The statistics behind each hypothesis's verdict, as a reader sees them."""

from collections.abc import Callable, Mapping
from typing import Any

from fp4scope.report.numbers import MINUS, number, percent
from fp4scope.stats import Column, Form, Hypothesis
from fp4scope.stats.families import named

_Row = Mapping[str, Any]


def columns(hypothesis: Hypothesis) -> dict[str, Any]:
    """The evidence as headings and rows of (text, value to sort by)."""
    return {
        "columns": [column.heading for column in hypothesis.columns],
        "rows": [
            [_shown(_text(column, row)) for column in hypothesis.columns]
            for row in hypothesis.evidence
        ],
    }


def _text(column: Column, row: _Row) -> str:
    """A value with its interval, if it has one."""
    if column.form is Form.FAMILY:
        return named(row)
    value, show = row[column.name], _WRITTEN[column.form]
    if value is None:
        return ""
    ends = [row.get(f"{column.name}_{end}") for end in ("low", "high")]
    bracket = "" if None in ends else f" [{', '.join(map(show, ends))}]"
    return f"{show(value)}{bracket}"


def _shown(text: str) -> tuple[tuple[str, str], str]:
    """A cell's text, apart from its interval, and what it is sorted by."""
    value, bracket, ends = text.partition(" [")
    bare = value.split(" ")[0].lstrip("<").rstrip("%").replace(MINUS, "-")
    is_number = bare.lstrip("+-").replace(".", "", 1).isdigit()
    return (value, bracket.strip() + ends), bare if is_number else value


def _probability(p: float) -> str:
    return "<0.001" if p < 1e-3 else f"{p:.3f}"


_WRITTEN: dict[Form, Callable[[Any], str]] = {
    Form.TEXT: str,
    Form.CORRELATION: lambda rho: number(rho, digits=2),
    Form.SHARE: percent,
    Form.MILLI: lambda nats: number(1e3 * nats, sign=True),
    Form.PROBABILITY: _probability,
}
