"""Why a unit costs more than others of its kind, in a few words.

Which operand comes from the costs of both alone. What makes it cost more comes from the factors of
its KL, each over the median unit of its level and format: the energy of its output's error, its
gain, and what is measured over their product.
"""

from statistics import median
from typing import Any

from fp4scope.ledger import Results
from fp4scope.stats.findings.causes import gain_table, split_table

_LARGER_PART = 2 / 3
_LARGE = 1.5
_FACTORS = {
    "error": "a large error",
    "gain": "a sensitive place",
    "over_predicted": "the direction of the error",
}
_NAMES = ("level", "unit", "block", "format", "precision")
Place = tuple[Any, ...]
"""Level, unit, block, format and precision."""


def attributions(results: Results) -> dict[Place, str]:
    """A cause in a few words for each unit and format; nothing where causes were not measured.

    Example: `inputs; a sensitive place`. Without the part behind it nothing stands out.
    """
    operands = {
        _place(row): _operand(row["weights"], row["inputs"])
        for row in split_table(results).where(measure="kl")
    }
    rows = list(gain_table(results))
    return {
        _place(row): "; ".join(
            part for part in (operands.get(_place(row)), _factor(row, rows)) if part
        )
        for row in rows
    }


def _place(row: Any) -> Place:  # noqa: ANN401
    return tuple(row[name] for name in _NAMES)


def _operand(weights: float, inputs: float) -> str:
    """What costs at least two thirds of both alone."""
    both = weights + inputs
    if both <= 0:
        return ""
    if weights / both >= _LARGER_PART:
        return "weights"
    return "inputs" if inputs / both >= _LARGER_PART else "both operands"


def _factor(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The largest factor of its cost, if it is half as large again as the median unit's."""
    alike = [r for r in rows if all(r[n] == row[n] for n in ("level", "format", "precision"))]
    found: dict[str, float] = {}
    for name in _FACTORS:
        known = [r[name] for r in alike if r[name] is not None]
        if row[name] is not None and known and median(known) > 0:
            found[name] = row[name] / median(known)
    largest = max(found, key=found.__getitem__, default=None)
    return _FACTORS[largest] if largest is not None and found[largest] >= _LARGE else ""
