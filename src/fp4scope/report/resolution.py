"""How finely a study tells its units apart, and how many windows would tell more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fp4scope.ledger import Results
from fp4scope.report.axes import step_below
from fp4scope.report.labels import windows_are
from fp4scope.report.numbers import SMALLEST, number
from fp4scope.stats import MIN_WINDOWS, windows_for
from fp4scope.table import Interval

USUAL = 5.0
"""Millinats per token: half a percent of perplexity. What a reader is told how to reach."""


@dataclass(frozen=True)
class Resolution:
    """The median 95% interval of a family reaches `half` millinats to either side.

    Attributes:
        half: Millinats per token.
        windows: How many windows that took.
        target: A finer one, in millinats per token.
        needed: How many windows would reach it.
        available: How many windows the text has.
    """

    half: float
    windows: int
    target: float
    needed: int
    available: int


def resolution(results: Results, rows: Sequence[Mapping[str, Any]]) -> Resolution | None:
    """The resolution of the exact sweep for these units; None where they have no intervals."""
    found = [(row, Interval.of(row, "delta_nll").half) for row in rows]
    known = [(row, half) for row, half in found if half is not None]
    if not known:
        return None
    half = median(1e3 * half for _, half in known)
    windows = round(median(row["windows"] for row, _ in known))
    if half < SMALLEST:  # nothing differs in any window
        return Resolution(0.0, windows, 0.0, windows, windows)
    target = USUAL if half > USUAL else step_below(half)
    needed = _rounded_up(windows_for(half, windows, target, anytime=results.anytime))
    return Resolution(half, windows, target, needed, available(results))


def available(results: Results) -> int:
    """How many windows the text has."""
    return results.data["tokens_in_text"] // results.data["seq_len"]


def short_of(results: Results, rows: Sequence[Mapping[str, Any]]) -> str:
    """How little these units are known, and how many windows would do."""
    known = resolution(results, rows)
    if known is None:
        windows = rows[0]["windows"]
        return f": {windows_are(windows)} too few for intervals ({MIN_WINDOWS} or more)"
    line = f": ±{number(known.half)} millinats on {known.windows} windows"
    if known.needed > known.windows:
        line += f"; about {known.needed:,} would give ±{known.target:g}"
    if known.needed > known.available:
        line += f" (this text has {known.available:,})"
    return line


def _rounded_up(count: int) -> int:
    """To two digits."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit
