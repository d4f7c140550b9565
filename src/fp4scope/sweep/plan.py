"""A study and a model's layout to the list of variants to measure."""

from collections.abc import Iterator
from dataclasses import dataclass

from fp4scope.formats import get_format
from fp4scope.goals import BestGoal
from fp4scope.inject import Setting
from fp4scope.models import Layout
from fp4scope.records import REFERENCE, Variant, baseline, jitter, replica
from fp4scope.study import Direction, Level, Operands, Study

REPLICAS_COST = 0.08
"""What replicas of a baseline may cost, of the sweep of its format."""
MOST_REPLICAS = 8


@dataclass(frozen=True)
class PlannedVariant:
    """A realisation of a variant: the setting of every linear that it quantizes.

    Replica 0 is the model as it is; replica r > 0 is perturbed by one unit in the last place at
    the entrance of every block, by its own dice. KL and top-1 are taken against replica 0 of
    `against`.
    """

    variant: Variant
    settings: dict[str, Setting]
    replica: int = 0
    against: Variant = REFERENCE

    @property
    def realisation(self) -> tuple[Variant, int]:
        return self.variant, self.replica


@dataclass(frozen=True)
class _Unit:
    level: str
    name: str
    block: int | None
    linears: frozenset[str]
    directions: tuple[Direction, ...]


def plan(study: Study, layout: Layout) -> list[PlannedVariant]:
    """Every realisation of every variant: the reference, then format by format.

    A format has its baseline, its units (unless only the baseline is wanted), and the jitter
    controls: the baseline again under other perturbations, compared with itself. Where units are
    restored and activations quantized it has replicas too, compared with the reference: the control
    variate of the restored units.

    Raises:
        UnitError: A pattern matches nothing.
    """
    units = list(_units(study, layout))
    variants = [*_realisations(study, REFERENCE, {})]
    for name, operands in study.configurations:
        setting = _setting(name, operands)
        everything = dict.fromkeys(layout.linears, setting)
        variants += _realisations(study, baseline(name, operands.value), everything)
        if (name, operands) not in study.swept:
            continue
        if operands.activations:
            variants += _replicas(study, baseline(name, operands.value), everything, units, layout)
        for direction in Direction:
            for unit in units:
                if direction not in unit.directions:
                    continue
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
                settings = dict.fromkeys(chosen, setting)
                variants += [
                    PlannedVariant(variant, settings, number) for number in range(study.replicas)
                ]
    return variants


def _realisations(
    study: Study, variant: Variant, settings: dict[str, Setting]
) -> Iterator[PlannedVariant]:
    """The reference or a baseline: its replicas, and the controls that say how far they spread."""
    for number in range(study.replicas):
        yield PlannedVariant(variant, settings, number)
    control = jitter(variant)
    asked = 1 if study.jitter == "auto" else study.jitter
    for number in range(1, max(study.replicas - 1, asked) + 1):
        yield PlannedVariant(control, settings, number, against=variant)


def _replicas(
    study: Study,
    whole: Variant,
    settings: dict[str, Setting],
    units: list[_Unit],
    layout: Layout,
) -> Iterator[PlannedVariant]:
    """Realisations of a baseline that it does not contain itself.

    None where nothing uses them: where no unit is measured restored, and where windows are measured
    until units are decided. (A folder may go on under another half-width, or without one.)
    """
    restored = any(Direction.RESTORE in unit.directions for unit in units)
    if not restored or isinstance(study.goal, BestGoal):
        return
    count = _affordable(study, units, layout) if study.jitter == "auto" else study.jitter
    for number in range(study.replicas, study.replicas + count):
        yield PlannedVariant(replica(whole), settings, number)


def _affordable(study: Study, units: list[_Unit], layout: Layout) -> int:
    """How many replicas cost about `REPLICAS_COST` of a format's sweep, by blocks that run."""
    blocks, cell_of = layout.blocks, layout.cell_of
    sweep = blocks
    for unit in units:
        first = min(cell_of[name].block for name in unit.linears)
        sweep += (blocks - first) * len(unit.directions)
    found = round(REPLICAS_COST * sweep * study.replicas / blocks)
    return min(max(1, found), MOST_REPLICAS)


def setting_of(variant: Variant) -> Setting:
    """What a linear has that a baseline, or a unit in its direction, says is quantized."""
    return _setting(variant.format, Operands(variant.operands))


def _setting(name: str, operands: Operands) -> Setting:
    fmt = get_format(name)
    return Setting(
        weights=fmt if operands.weights else None,
        activations=fmt if operands.activations else None,
    )


def _units(study: Study, layout: Layout) -> Iterator[_Unit]:
    cells = layout.cells.items()
    if directions := study.directions(Level.COMPONENTS):
        for component in layout.components:
            names = [n for cell, found in cells if cell.component == component for n in found]
            yield _Unit("components", component, None, frozenset(names), directions)
    if directions := study.directions(Level.BLOCKS):
        for block in dict.fromkeys(cell.block for cell in layout.cells):
            names = [n for cell, found in cells if cell.block == block for n in found]
            yield _Unit("blocks", "", block, frozenset(names), directions)
    for pattern in study.patterns:
        names = layout.match(pattern)
        yield _Unit("patterns", pattern, None, frozenset(names), study.directions(None))
    if directions := study.directions(Level.CELLS):
        chosen = {n for pattern in study.cells or ("*",) for n in layout.match(pattern)}
        for component in layout.components:
            for cell, found in cells:
                if cell.component == component and chosen.intersection(found):
                    yield _Unit("cells", component, cell.block, frozenset(found), directions)
