"""What quantizing leaves of the full-precision model's routing, in models with routers."""

from typing import Any

from fp4scope.design import NOTHING
from fp4scope.ledger import ROUTING, Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.units import FULL_PRECISION
from fp4scope.stats.findings.windows import by_window
from fp4scope.table import Table

ROUTING_COLUMNS = (
    "format", "precision", "direction", "level", "unit", "block", *ROUTING, "windows",
)  # fmt: skip


def routing_table(results: Results) -> Table:
    """Every recipe's routing beside that of the full-precision model, means over windows.

    The first row is the ceiling: the full-precision model's own perturbed realisations, in which
    tokens near a tie go elsewhere by rounding alone.
    """
    rows: list[dict[str, Any]] = []
    ceiling = _means(results, NOTHING, extra=True)
    if ceiling is not None:
        rows.append({"format": FULL_PRECISION, "precision": "", "level": "model"} | ceiling)
    for contrast in results.contrasts:
        found = _means(results, contrast.own)
        if found is not None:
            rows.append(contrast.labels | found)
    return Table(ROUTING_COLUMNS, rows)


def _means(results: Results, recipe: Recipe, *, extra: bool = False) -> dict[str, Any] | None:
    series = {
        name: by_window(results.ledger, recipe, measure, extra=extra)
        for name, measure in ROUTING.items()
    }
    found = {name: float(s.values.mean()) for name, s in series.items() if s is not None}
    windows = next((len(s.values) for s in series.values() if s is not None), 0)
    return found | {"windows": windows} if found else None
