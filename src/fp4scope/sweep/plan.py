"""A study and a model's layout to the list of variants to measure."""

from collections.abc import Iterator
from dataclasses import dataclass

from fp4scope.formats import get_format
from fp4scope.inject import Setting
from fp4scope.models import Layout
from fp4scope.records import REFERENCE, Variant, baseline
from fp4scope.study import Direction, Level, Operands, Study


@dataclass(frozen=True)
class PlannedVariant:
    """A variant and the setting of every linear that it quantizes."""

    variant: Variant
    settings: dict[str, Setting]


@dataclass(frozen=True)
class _Unit:
    level: str
    name: str
    block: int | None
    linears: frozenset[str]


def plan(study: Study, layout: Layout) -> list[PlannedVariant]:
    """Every variant of the study: the reference, then format by format its baseline and units.

    Raises:
        UnitError: A pattern matches nothing.
    """
    units = list(_units(study, layout))
    variants = [PlannedVariant(REFERENCE, {})]
    for name in study.formats:
        for operands in study.operands:
            setting = _setting(name, operands)
            everything = dict.fromkeys(layout.linears, setting)
            variants.append(PlannedVariant(baseline(name, operands.value), everything))
            for direction in study.direction:
                for unit in units:
                    restore = direction is Direction.RESTORE
                    chosen = [n for n in layout.linears if (n in unit.linears) != restore]
                    variant = Variant(
                        format=name,
                        operands=operands.value,
                        direction=direction.value,
                        level=unit.level,
                        unit=unit.name,
                        block=unit.block,
                    )
                    variants.append(PlannedVariant(variant, dict.fromkeys(chosen, setting)))
    return variants


def _setting(name: str, operands: Operands) -> Setting:
    fmt = get_format(name)
    return Setting(
        weights=fmt if operands.weights else None,
        activations=fmt if operands.activations else None,
    )


def _units(study: Study, layout: Layout) -> Iterator[_Unit]:
    cells = layout.cells.items()
    if Level.COMPONENTS in study.sweep:
        for component in layout.components:
            names = [n for cell, found in cells if cell.component == component for n in found]
            yield _Unit("components", component, None, frozenset(names))
    if Level.BLOCKS in study.sweep:
        for block in dict.fromkeys(cell.block for cell in layout.cells):
            names = [n for cell, found in cells if cell.block == block for n in found]
            yield _Unit("blocks", "", block, frozenset(names))
    for pattern in study.patterns:
        yield _Unit("patterns", pattern, None, frozenset(layout.match(pattern)))
    if Level.CELLS in study.sweep:
        for component in layout.components:
            for cell, found in cells:
                if cell.component == component:
                    yield _Unit("cells", component, cell.block, frozenset(found))
