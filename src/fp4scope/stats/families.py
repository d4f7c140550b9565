"""Families: units of one level, format, operands and direction, with what each costs by window."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fp4scope.records import Results, Variant
from fp4scope.stats.pairing import costs
from fp4scope.stats.windows import Floats, Series, aligned


@dataclass(frozen=True)
class Family:
    """What units of one level cost in one format and direction, windows by units."""

    format: str
    operands: str
    direction: str
    units: tuple[Variant, ...]
    series: tuple[Series, ...]

    @property
    def name(self) -> str:
        return named(self.labels)

    @property
    def labels(self) -> dict[str, Any]:
        return {"format": self.format, "operands": self.operands, "direction": self.direction}

    @property
    def costs(self) -> Floats:
        return aligned(self.series)[1]


def families(results: Results, level: str) -> list[Family]:
    """Every format, operands and direction in which units of a level were measured."""
    found: dict[tuple[str, str, str], list[tuple[Variant, Series]]] = defaultdict(list)
    for variant, series in costs(results).items():
        if variant.level == level:
            key = (variant.format, variant.operands, variant.direction)
            found[key].append((variant, series))
    return [Family(*key, *zip(*members, strict=True)) for key, members in found.items()]


def named(row: Mapping[str, Any]) -> str:
    """A family in a sentence; its operands only where they are not the default."""
    operands = "" if row["operands"] == "weights+activations" else f", {row['operands']}"
    return f"{row['format']}, {row['direction']}{operands}"
