"""From what a study asks to what has to be run: recipes, and contrasts of them. Pure data.

A contrast is a signed sum of recipes, and its sign is decided here, once: positive says that
quantizing costs. Keeping a unit compares the all-quantized model with the same less the unit;
quantizing only a unit compares that with the full-precision model.

Every recipe is run as it is, and again under perturbations as often as the study says. Controls
are the full-precision or an all-quantized model under a perturbation, compared with itself as it
is: they say how far runs spread. Replicas are further runs of an all-quantized model, compared
with the full-precision one: the control variate of the units that are kept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fp4scope.formats import BlockFormat
from fp4scope.recipes import Recipe, Sites
from fp4scope.study import ActivationScale, BestGoal, Direction, Level, Operands, Study
from fp4scope.treatments import Amax, Setting, Treatment

_K = TypeVar("_K")

REPLICAS_COST = 0.08
"""What replicas of an all-quantized model may cost, of the sweep of its setting."""
MOST_REPLICAS = 8

NOTHING = Recipe()
"""The full-precision model."""


@dataclass(frozen=True)
class Unit:
    """Sites that are switched together.

    Attributes:
        level: Which kind of unit.
        name: Of a component or cell its component, of a pattern the pattern; a block has none.
        block: Of a block or a cell.
        sites: By name.
    """

    level: str
    name: str
    block: int | None
    sites: frozenset[str]


@dataclass(frozen=True)
class Family:
    """Contrasts that are compared together: corrected for their number, ranked, put in groups.

    Attributes:
        level: Which kind of units; `model` for the whole model.
        setting: What quantizing means in them.
        direction: How a unit's effect is asked for; None for the whole model.
    """

    level: str
    setting: Setting
    direction: Direction | None


@dataclass(frozen=True)
class Contrast:
    """One number that a study wants: recipes, each with the sign that it enters with.

    Attributes:
        terms: Recipes and signs; they sum to zero.
        unit: What is switched; None for the whole model.
        family: What it is compared with.
    """

    terms: tuple[tuple[Recipe, int], ...]
    unit: Unit | None
    family: Family

    @property
    def own(self) -> Recipe:
        """The recipe that no other unit of the family has."""
        shared = Recipe(self.family.setting), NOTHING
        return next(r for r, _ in self.terms if self.unit is None or r not in shared)


@dataclass(frozen=True)
class Design:
    """What is to be run, and what of it is asked.

    Attributes:
        contrasts: In the order of the study.
        realisations: Of every recipe: the first is the model as it is, the others are perturbed.
        controls: Numbers of the perturbations that the full-precision and every all-quantized
            model is compared with itself under.
        replicas: Further realisations of all-quantized models.
    """

    contrasts: tuple[Contrast, ...]
    realisations: int = 1
    controls: range = range(1, 2)
    replicas: Mapping[Recipe, range] = field(default_factory=dict)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The different ones that have to be run, the full-precision model first."""
        terms = (recipe for contrast in self.contrasts for recipe, _ in contrast.terms)
        return tuple(dict.fromkeys((NOTHING, *terms)))


def design(study: Study, sites: Sites) -> Design:
    """Every contrast that a study asks for, setting by setting: the whole model, then its units.

    Raises:
        UnitError: A pattern matches no site.
    """
    units = list(_units(study, sites))
    static = study.numerics.activation_scale is ActivationScale.CALIBRATED
    amax = Amax.CALIBRATED if static else Amax.WINDOW
    contrasts: list[Contrast] = []
    replicas: dict[Recipe, range] = {}
    more = _replicas(study, units, sites)
    for configuration in study.question.configurations:
        setting = setting_of(*configuration, amax)
        contrasts.append(whole(setting))
        if configuration not in study.question.swept:
            continue
        if more and setting.input is not None:  # with weights alone there is no noise to reduce
            replicas[Recipe(setting)] = more
        for direction in Direction:
            contrasts += [
                of_unit(unit, setting, direction)
                for unit, directions in units
                if direction in directions
            ]
    numerics = study.numerics
    asked = 1 if numerics.jitter == "auto" else numerics.jitter
    controls = range(1, max(numerics.replicas - 1, asked) + 1)
    return Design(tuple(contrasts), numerics.replicas, controls, replicas)


def _replicas(
    study: Study, units: Sequence[tuple[Unit, tuple[Direction, ...]]], sites: Sites
) -> range:
    """Numbers of the replicas that an all-quantized model has beside its realisations.

    None where nothing uses them: where no unit is kept, and where windows are measured until units
    are decided. (A folder may go on under another half-width, or without one.)
    """
    kept = any(Direction.RESTORE in directions for _, directions in units)
    if not kept or isinstance(study.question.stop_when, BestGoal):
        return range(0)
    first, asked = study.numerics.replicas, study.numerics.jitter
    if asked != "auto":
        return range(first, first + asked)
    # So many as cost about `REPLICAS_COST` of a setting's sweep, by blocks that run.
    blocks = len(sites.blocks)
    sweep = blocks
    for unit, directions in units:
        earliest = min(sites.by_name[name].block for name in unit.sites)
        sweep += (blocks - earliest) * len(directions)
    found = round(REPLICAS_COST * sweep * first / blocks)
    return range(first, first + min(max(1, found), MOST_REPLICAS))


def whole(setting: Setting) -> Contrast:
    """What quantizing all sites costs."""
    return Contrast(((Recipe(setting), 1), (NOTHING, -1)), None, Family("model", setting, None))


def of_unit(unit: Unit, setting: Setting, direction: Direction) -> Contrast:
    """What quantizing a unit costs, in one direction."""
    family = Family(unit.level, setting, direction)
    if direction is Direction.RESTORE:
        kept = Recipe(setting, ((unit.sites, None),))
        return Contrast(((Recipe(setting), 1), (kept, -1)), unit, family)
    only = Recipe(None, ((unit.sites, setting),))
    return Contrast(((only, 1), (NOTHING, -1)), unit, family)


def setting_of(fmt: BlockFormat, operands: Operands, amax: Amax = Amax.CALIBRATED) -> Setting:
    """The setting that a format and the quantized operands mean."""
    return Setting(
        weight=Treatment(fmt) if operands.weights else None,
        # Without a tensor scale no amax is asked for, so that both spellings are one recipe.
        input=Treatment(fmt, amax if fmt.uses_tensor_amax else Amax.CALIBRATED)
        if operands.activations
        else None,
    )


def _units(study: Study, sites: Sites) -> Iterator[tuple[Unit, tuple[Direction, ...]]]:
    """Every unit, and the directions in which its effect is asked for."""
    if directions := study.question.directions(Level.COMPONENTS):
        for component, names in _grouped((s.component, s.name) for s in sites).items():
            yield Unit("components", component, None, names), directions
    if directions := study.question.directions(Level.BLOCKS):
        for block, members in enumerate(sites.blocks):
            if members:
                yield Unit("blocks", "", block, frozenset(s.name for s in members)), directions
    for pattern in study.question.patterns:
        yield Unit("patterns", pattern, None, sites.match(pattern)), study.question.directions(None)
    if directions := study.question.directions(Level.CELLS):
        chosen = frozenset().union(*map(sites.match, study.question.layers or ("*",)))
        for unit in _cells(sites):
            if chosen & unit.sites:
                yield unit, directions


def _cells(sites: Sites) -> Iterator[Unit]:
    """One component in one block each, component by component."""
    cells = _grouped(((s.component, s.block), s.name) for s in sites)
    order = {component: place for place, component in enumerate(sites.components)}
    for component, block in sorted(cells, key=lambda cell: (order[cell[0]], cell[1])):
        yield Unit("cells", component, block, cells[component, block])


def _grouped(pairs: Iterable[tuple[_K, str]]) -> dict[_K, frozenset[str]]:
    """Names by key, keys in the order in which they come first."""
    found: dict[_K, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return {key: frozenset(names) for key, names in found.items()}
