"""Remedies that were measured, which engines serve them, and which of a unit are the best."""

from collections.abc import Iterator, Sequence
from typing import Any

from fp4scope.deploy.exactly import exactly, served
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.remedies import FULL, REMEDY_COLUMNS, remedy_table
from fp4scope.table import Table

EVERYWHERE = "all"
"""Of full precision, which every engine serves."""
SAME_SIZE, SERVED = "same size", "served"
"""Best without larger weights; smallest that is served and removes at least half."""
_NO_LARGER = 0.5
"""Bits for each weight: NVFP4 stores a quarter more than MXFP4."""
_ENOUGH = 0.5


def remedies_served(results: Results) -> Table:
    """The table of remedies with `served`, engines that serve each as it was measured, and `best`.

    `best` marks two of each unit, of those that significantly remove something: the one that
    removes most at the same size of weights, and the smallest that an engine serves and that
    removes at least half. Full precision is the second where nothing else is.
    """
    settings = {
        (own.name if own else FULL): own
        for contrast in results.remedies
        if contrast.unit is not None
        for own in [contrast.own.at(min(contrast.unit.sites))]
    }
    engines = {
        name: served(exactly(Recipe(own))) if own else EVERYWHERE for name, own in settings.items()
    }
    rows = [{**row, "served": engines[row["remedy"]]} for row in remedy_table(results)]
    for unit in _units(rows):
        for row in unit:
            row["best"] = ""
        for word, best in ((SAME_SIZE, _same_size(unit)), (SERVED, _served(unit))):
            if best is not None:
                best["best"] = "; ".join(filter(None, (best["best"], word)))
    return Table((*REMEDY_COLUMNS, "served", "best"), rows)


def _units(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    names = ("level", "unit", "block", "format", "precision")
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    yield from found.values()


def _helps(row: dict[str, Any]) -> bool:
    return row.get("share_low") is not None and row["share_low"] > 0


def _same_size(unit: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    own = [row for row in unit if _helps(row) and row["bits"] <= _NO_LARGER]
    return max(own, key=lambda row: row["share"], default=None)


def _served(unit: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    own = [row for row in unit if _helps(row) and row["served"] and row["share"] >= _ENOUGH]
    full = [row for row in unit if row["remedy"] == FULL and _is_damage(row)]
    return min(own, key=lambda row: (row["bits"], -row["share"]), default=None) or (
        full[0] if full else None
    )


def _is_damage(row: dict[str, Any]) -> bool:
    return row["damage_low"] is not None and row["damage_low"] > 0
