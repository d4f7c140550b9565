"""Families: contrasts that are compared together, with what each costs by window."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fp4scope.design import Contrast, Family, Unit
from fp4scope.ledger import Results
from fp4scope.stats.findings.pairing import costs
from fp4scope.stats.inference.series import Floats, Series, aligned
from fp4scope.treatments import operands_of


@dataclass(frozen=True)
class Members:
    """What the units of one family cost, windows by units."""

    family: Family
    units: tuple[Unit, ...]
    series: tuple[Series, ...]

    @property
    def name(self) -> str:
        return named(self.labels)

    @property
    def labels(self) -> dict[str, Any]:
        found = self.family.labels
        return {name: found[name] for name in ("format", "precision", "direction")}

    @property
    def costs(self) -> Floats:
        return aligned(self.series)[1]


def families(results: Results, level: str) -> list[Members]:
    """Every family of a level of which something was measured."""
    found: dict[Family, list[tuple[Contrast, Series]]] = defaultdict(list)
    for contrast, series in costs(results).items():
        if contrast.family.level == level:
            found[contrast.family].append((contrast, series))
    return [
        Members(family, tuple(c.unit for c, _ in of if c.unit), tuple(s for _, s in of))
        for family, of in found.items()
    ]


def named(row: Mapping[str, Any]) -> str:
    """A family in a sentence; its precision only where one operand is left as it is."""
    precision = row["precision"]
    apart = "" if operands_of(precision) == "WA" else f", {precision}"
    return f"{row['format']}, {row['direction']}{apart}"
