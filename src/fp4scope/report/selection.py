"""Which rows of a table a report shows, and in what order."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from fp4scope.report.findings import Findings
from fp4scope.report.labels import KEEP
from fp4scope.stats import FULL_PRECISION, cost, significant
from fp4scope.table import Table
from fp4scope.treatments import operands_of

LAYERS_SHOWN = 10
"""Of a family, where all would be too many."""
_FAMILY = ("direction", "format", "precision")


def groups(table: Table) -> Iterable[tuple[dict[str, str], list[dict[str, Any]]]]:
    """The rows of one format, precision and direction at a time, most costly first."""
    for key in dict.fromkeys(tuple(row[name] for name in _FAMILY) for row in table):
        group: dict[str, str] = dict(zip(_FAMILY, key, strict=True))
        yield group, sorted(table.where(**group), key=lambda row: -(cost(row) or 0.0))


def side_by_side(table: Table) -> Iterable[Table]:
    """The rows of one direction and of the same operands, all formats together."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table:
        found.setdefault((row["direction"], operands_of(row["precision"])), []).append(row)
    return [Table(table.columns, rows) for rows in found.values()]


def compared_with(found: Findings, unit: Mapping[str, Any]) -> dict[str, Any] | None:
    """The whole model that a unit's row is compared with; None where it was not measured."""
    kept = unit["direction"] == KEEP.name
    names = (unit["format"], unit["precision"]) if kept else (FULL_PRECISION, "")
    models = found.all_quantized.where(format=names[0], precision=names[1])
    return next(iter(models), None)


def costliest(table: Iterable[Mapping[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """The units of a table, those that cost most over all formats first; `names`: their columns."""
    costs: dict[tuple[Any, ...], list[float]] = {}
    for row in table:
        costs.setdefault(tuple(row[name] for name in names), []).append(cost(row) or 0.0)
    return sorted(costs, key=lambda unit: -fmean(costs[unit]))


def by_cost(models: Table) -> Table:
    """Whole models, those of the same operands together, the cheapest first."""
    order = list(dict.fromkeys(map(operands_of, models["precision"])))
    return Table(
        models.columns,
        sorted(
            models,
            key=lambda row: (order.index(operands_of(row["precision"])), row["delta_nll"] or 0.0),
        ),
    )


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
    known = {row["precision"] for row in swept(found)}
    return known.pop() if len(known) == 1 else None


def swept(found: Findings) -> list[dict[str, Any]]:
    """The all-quantized models whose units were measured; all of them where none were."""
    tables = (found.projections, found.blocks, found.layers, found.patterns, found.experts)
    known = {(row["format"], row["precision"]) for table in tables for row in table}
    _, *rest = found.all_quantized
    return [row for row in rest if (row["format"], row["precision"]) in known] or rest
