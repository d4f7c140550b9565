"""Which rows of a table a report shows, and in what order."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from fp4scope.report.findings import Findings
from fp4scope.report.labels import under
from fp4scope.stats import cost, significant
from fp4scope.table import Table

LAYERS_SHOWN = 10
"""Of a family, where all would be too many."""


def groups(table: Table) -> Iterable[tuple[dict[str, str], list[dict[str, Any]]]]:
    """The rows of one format, operands and direction at a time, most costly first."""
    keys = dict.fromkeys((r["direction"], r["format"], r["operands"]) for r in table)
    for direction, fmt, operands in keys:
        chosen = table.where(direction=direction, format=fmt, operands=operands)
        rows = sorted(chosen, key=lambda r: -(cost(r) or 0.0))
        yield {"direction": direction, "format": fmt, "operands": operands}, rows


def costliest(table: Iterable[Mapping[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """The units of a table, those that cost most over all formats first; `names`: their columns."""
    costs: dict[tuple[Any, ...], list[float]] = {}
    for row in table:
        costs.setdefault(tuple(row[name] for name in names), []).append(cost(row) or 0.0)
    return sorted(costs, key=lambda unit: -fmean(costs[unit]))


def by_cost(baselines: Table) -> Table:
    """Whole models, those of the same operands together, the cheapest first."""
    order = list(dict.fromkeys(baselines["operands"]))
    rows = sorted(
        baselines, key=lambda row: (order.index(row["operands"]), row["delta_nll"] or 0.0)
    )
    return Table(baselines.columns, rows)


def is_measured(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these rows have what the exact sweep measures."""
    return any(row["delta_nll"] is not None for row in rows)


def is_estimated(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these rows have first-order estimates."""
    return any(row["gradient_nll"] is not None for row in rows)


def lowering(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows whose quantization significantly lowers the loss, the lowest first."""
    found = [row for row in rows if significant(row) and row["delta_nll"] < 0]
    return sorted(found, key=lambda row: row["delta_nll"])


def sole_precision(found: Findings) -> str | None:
    """The precision under which units were measured, if that is one."""
    known = {under(row) for row in swept(found)}
    return known.pop() if len(known) == 1 else None


def swept(found: Findings) -> list[dict[str, Any]]:
    """The all-quantized models whose units were measured; all of them where none were."""
    tables = (found.components, found.blocks, found.cells, found.patterns)
    known = {(row["format"], row["operands"]) for table in tables for row in table}
    _, *rest = found.baselines
    return [row for row in rest if (row["format"], row["operands"]) in known] or rest
