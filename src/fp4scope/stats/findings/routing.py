"""What quantizing leaves of the full-precision model's routing, in models with routers."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from fp4scope.design import NOTHING
from fp4scope.ledger import ROUTING, ActivationRecord, Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.units import FULL_PRECISION
from fp4scope.stats.findings.windows import by_window
from fp4scope.table import Table
from fp4scope.treatments import FEWEST_TOKENS

ROUTING_COLUMNS = (
    "format", "precision", "direction", "level", "unit", "block", *ROUTING, "windows",
)  # fmt: skip
SEEN_COLUMNS = ("block", "experts", "count", "fewest", "median", "most", "few", "below")


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


def seen_table(activations: Sequence[ActivationRecord]) -> Table:
    """How many tokens of the calibration text the experts of each block saw.

    `few` is how many saw fewer than `FEWEST_TOKENS`, and `below` has their numbers. The products of
    an expert see the same tokens, so the first of them speaks for it.
    """
    found: dict[tuple[int, str], Sequence[int]] = {}
    for record in activations:
        if record.tokens is not None:
            holder = record.projection.rpartition(".")[0].removesuffix(".*")
            found.setdefault((record.block, holder or record.projection), record.tokens)
    rows: list[dict[str, Any]] = []
    for (block, experts), tokens in sorted(found.items()):
        below = [str(expert) for expert, seen in enumerate(tokens) if seen < FEWEST_TOKENS]
        row = {"block": block, "experts": experts, "count": len(tokens), "fewest": min(tokens)}
        row |= {"median": median(tokens), "most": max(tokens)}
        rows.append(row | {"few": len(below), "below": " ".join(below)})
    return Table(SEEN_COLUMNS, rows)
