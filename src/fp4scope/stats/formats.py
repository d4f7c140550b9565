"""Formats against each other, with everything quantized to the one and to the other.

Two formats are compared window by window, so that what makes windows differ cancels: the
difference of two baselines is surer than either's difference from the reference suggests.
"""

from collections.abc import Mapping, Set
from typing import Any

from fp4scope.records import Results, Table
from fp4scope.stats.intervals import paired
from fp4scope.stats.windows import Series, aligned, by_window

COMPARISON_COLUMNS = (
    "operands", "format", "against", "rules", "delta_nll", "delta_nll_low", "delta_nll_high",
    "windows",
)  # fmt: skip


def format_table(results: Results) -> Table:
    """Baselines of the same operands against each other, nats per token.

    Every format against the cheapest of all and the cheapest of those whose units were measured,
    and every scale rule against the cheapest rule of its format (`rules`). `delta_nll` is the
    format less `against`: what it costs more.
    """
    swept = {
        observation.variant.format
        for observation in results.observations.values()
        if observation.windows and not observation.variant.is_control
    }
    found: dict[str, dict[str, Series]] = {}
    for observation in results.observations.values():
        variant = observation.variant
        if variant.direction == "baseline" and observation.windows:
            series = by_window(observation, "nll")
            found.setdefault(variant.operands, {})[variant.format] = series
    rows: list[dict[str, Any]] = []
    for operands, by_format in found.items():
        for name, against in _pairs(by_format, swept):
            windows, values = aligned([by_format[name], by_format[against]])
            if len(windows):
                delta = paired(values[:, 0], values[:, 1], anytime=results.anytime)
                row = {"operands": operands, "format": name, "against": against}
                row |= {"rules": _element(name) == _element(against), "windows": delta.n}
                row |= {"delta_nll": delta.mean}
                rows.append(row | {"delta_nll_low": delta.low, "delta_nll_high": delta.high})
    return Table(COMPARISON_COLUMNS, rows)


def _pairs(by_format: Mapping[str, Series], swept: Set[str]) -> dict[tuple[str, str], None]:
    """Which formats are compared: with the cheapest of all, of the swept, of its own rules."""
    ranked = sorted(by_format, key=lambda name: by_format[name].values.mean())
    cheapest = {_element(name): name for name in reversed(ranked)}
    pairs = [(name, ranked[0]) for name in by_format]
    chosen = [name for name in ranked if name in swept]
    pairs += [(name, chosen[0]) for name in by_format if name in chosen]
    pairs += [(name, cheapest[_element(name)]) for name in by_format]
    return dict.fromkeys((name, against) for name, against in pairs if name != against)


def _element(name: str) -> str:
    """A format's name without its scale rule."""
    return name.rpartition(":")[0] or name
