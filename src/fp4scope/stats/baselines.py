"""Formats against each other, with everything quantized to the one and to the other.

Two formats are compared window by window, so that what makes windows differ cancels: the
difference of two baselines is surer than either's difference from the reference suggests.
"""

from typing import Any

from fp4scope.records import Results, Table
from fp4scope.stats.intervals import paired
from fp4scope.stats.windows import Series, aligned, by_window

COMPARISON_COLUMNS = (
    "operands", "format", "against", "delta_nll", "delta_nll_low", "delta_nll_high", "windows",
)  # fmt: skip


def format_table(results: Results) -> Table:
    """Every baseline against the cheapest one of the same operands.

    `delta_nll` is the format less `against`, nats per token: what it costs more. Nothing where
    only one format was measured.
    """
    found: dict[str, dict[str, Series]] = {}
    for observation in results.observations.values():
        variant = observation.variant
        if variant.direction == "baseline" and observation.windows:
            series = by_window(observation, "nll")
            found.setdefault(variant.operands, {})[variant.format] = series
    rows: list[dict[str, Any]] = []
    for operands, by_format in found.items():
        cheapest = min(by_format, key=lambda name: by_format[name].values.mean())
        for name, series in by_format.items():
            windows, values = aligned([series, by_format[cheapest]])
            if name == cheapest or not len(windows):
                continue
            delta = paired(values[:, 0], values[:, 1], anytime=results.anytime)
            rows.append(
                {
                    "operands": operands,
                    "format": name,
                    "against": cheapest,
                    "delta_nll": delta.mean,
                    "delta_nll_low": delta.low,
                    "delta_nll_high": delta.high,
                    "windows": delta.n,
                }
            )
    return Table(COMPARISON_COLUMNS, rows)
