"""From what a study asks to what has to be run: recipes, and contrasts of them. Pure data.

A contrast is a signed sum of recipes, and its sign is decided here, once: positive says that
quantizing costs. Keeping a unit compares the all-quantized model with the same less the unit;
quantizing only a unit compares that with the full-precision model.

Every recipe is run as it is, and again under perturbations as often as the study says. Controls
are the full-precision or an all-quantized model under a perturbation, compared with itself as it
is: they say how far runs spread. Replicas are further runs of an all-quantized model, compared
with the full-precision one: the control variate of the units that are kept.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, TypeVar

from fp4scope.designs import mixtures
from fp4scope.errors import StudyError, UnitError
from fp4scope.groups import fused_groups
from fp4scope.probes import gains, remedies, variants
from fp4scope.recipes import Edit, Recipe, Sites, expert_of
from fp4scope.study import BestGoal, Direction, Level, More, Study
from fp4scope.treatments import Amax, Setting, Treatment

_K = TypeVar("_K")

REPLICAS_COST = 0.08
"""What replicas of an all-quantized model may cost, of the sweep of its setting."""
MOST_REPLICAS = 8

GIVEN = "recipes"
"""The level of recipes that a user gives."""
MIXED = "designs"
"""The level of the runs of a designed sweep."""
CAUSES = "causes"
"""The level of what tells why units cost what they do."""
REMEDIES = "remedies"
"""The level of what is done to units instead of quantizing them as everything else."""
ROUTING = "routing"
"""The level of recipes that tell how much of a damage is routing."""
NOTHING = Recipe()
"""The full-precision model."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Sites that are switched together.

    Attributes:
        level: Which kind of unit.
        name: Of a projection or layer its projection, of a pattern the pattern; a block has none.
        block: Of a block or a layer.
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

    @property
    def labels(self) -> dict[str, Any]:
        """As tables name it."""
        return {
            "level": self.level,
            "format": self.setting.format,
            "precision": self.setting.precision,
            "direction": "" if self.direction is None else self.direction.value,
        }


@dataclass(frozen=True, slots=True)
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
        sign = -1 if self.family.direction is Direction.KEEP else 1
        return next(recipe for recipe, of in self.terms if of == sign)

    @property
    def quantized(self) -> Recipe:
        """The recipe that has more quantized: of what is kept, the all-quantized model."""
        return next(recipe for recipe, of in self.terms if of == 1)

    @property
    def labels(self) -> dict[str, Any]:
        """Its family's level, format, precision and direction, its unit's name and block."""
        unit = self.unit
        return self.family.labels | {
            "unit": "" if unit is None else unit.name,
            "block": None if unit is None else unit.block,
        }

    @property
    def name(self) -> str:
        """As messages call it; no other contrast of a study has it."""
        found = self.labels
        where = found["unit"] if found["block"] is None else f"{found['block']}.{found['unit']}"
        parts = (found["format"], found["precision"], found["direction"], found["level"], where)
        return "|".join(part for part in parts if part).rstrip(".")


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe that is run, as it is or perturbed, and what its predictions are compared with.

    Attributes:
        recipe: What is done to the model.
        replica: 0 is the model as it is; r > 0 is perturbed by one unit in the last place at the
            entrance of every block, by its own dice.
        against: The recipe with whose replica 0 KL and top-1 are taken.
        contrast: What it is run for; None for the full-precision model.
    """

    recipe: Recipe
    replica: int = 0
    against: Recipe = NOTHING
    contrast: Contrast | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """As messages call it."""
        return "the full-precision model" if self.contrast is None else self.contrast.name

    @property
    def is_cause(self) -> bool:
        """Whether nothing but causes needs it."""
        return self.contrast is not None and self.contrast.family.level == CAUSES

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole model, whose routing is kept router by router."""
        contrast = self.contrast
        whole = (ROUTING, GIVEN)
        return contrast is None or contrast.unit is None or contrast.family.level in whole

    @property
    def keeps_strata(self) -> bool:
        """Whether sums over strata of its targets are kept: of whole models as they are."""
        return self.is_whole and self.replica == 0

    @property
    def keeps_spread(self) -> bool:
        """Whether it is told how its KL spreads over tokens: the same but full precision."""
        return self.keeps_strata and self.recipe != NOTHING

    @property
    def measures(self) -> tuple[str, str, str]:
        """What its NLL, KL and top-1 are in the ledger."""
        again = self.recipe == self.against != NOTHING
        return ("nll", "rerun_kl", "rerun_top1") if again else ("nll", "kl", "top1")

    @property
    def keys(self) -> list[tuple[Recipe, int, str]]:
        """Where they stand in the ledger: recipe, replica and measure."""
        return [(self.recipe, self.replica, measure) for measure in self.measures]


def keys_of(runs: Iterable[Run]) -> list[tuple[Recipe, int, str]]:
    """The keys of all of them."""
    return [key for run in runs for key in run.keys]


@dataclass(frozen=True)
class Design:
    """What is to be run, and what of it is asked.

    Attributes:
        contrasts: In the order of the study.
        realisations: Of every recipe: the first is the model as it is, the others are perturbed.
        controls: Numbers of the perturbations that the full-precision and every all-quantized
            model is compared with itself under.
        replicas: Further realisations of all-quantized models.
        replays: What is run beside to tell damage by routing from damage by values.
        given: What quantizing as each recipe says costs.
        causes: What is run beside to tell why units cost what they do.
        mixtures: Makes what a designed sweep runs: only where that is asked for, since each run
            names half of a model's sites.
    """

    contrasts: tuple[Contrast, ...]
    realisations: int = 1
    controls: range = range(1, 2)
    replicas: Mapping[Recipe, range] = field(default_factory=dict)
    replays: tuple[Contrast, ...] = ()
    given: tuple[Contrast, ...] = ()
    causes: tuple[Contrast, ...] = ()
    mixtures: Callable[[], Sequence[Contrast]] = tuple

    @property
    def designed(self) -> list[Run]:
        """What a designed sweep runs beside `controls_alone`."""
        mixed = self.mixtures()
        return [Run(c.own, n, contrast=c) for c in mixed for n in range(self.realisations)]

    @property
    def runs(self) -> list[Run]:
        """All that has to run: the full-precision model first, then contrast by contrast."""
        return self._runs(everything=True)

    @property
    def controls_alone(self) -> list[Run]:
        """The full-precision and all-quantized models, without replicas that only units use."""
        return self._runs(everything=False)

    def _runs(self, *, everything: bool) -> list[Run]:
        found = [Run(NOTHING, number) for number in range(self.realisations)]
        found += [Run(NOTHING, number) for number in self.controls]
        for contrast in self.contrasts:
            own = contrast.own
            if contrast.unit is None or everything:
                found += [Run(own, n, contrast=contrast) for n in range(self.realisations)]
            if contrast.unit is None:
                found += [Run(own, n, own, contrast) for n in self.controls]
                more = self.replicas.get(own, ()) if everything else ()
                found += [Run(own, n, contrast=contrast) for n in more]
        beside = (*self.given, *self.causes, *self.replays)
        for contrast in beside if everything else self.given:
            found += [Run(contrast.own, n, contrast=contrast) for n in range(self.realisations)]
        return list(dict.fromkeys(found))


@contextmanager
def _without_collection() -> Iterator[None]:
    """No search for cycles: there are none, and among so many new objects it takes long."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@_without_collection()
def design(
    study: Study,
    sites: Sites,
    *,
    routed: bool = False,
    recipes: Mapping[str, Recipe] | None = None,
) -> Design:
    """Every contrast that a study asks for, setting by setting: the whole model, then its units.

    Args:
        study: What is asked.
        sites: Of the model.
        routed: Whether the model has experts that are told where tokens go.
        recipes: Of this model, by name: each is measured as a whole.

    Raises:
        UnitError: A pattern matches no site.
    """
    units = list(_units(study, sites))
    contrasts: list[Contrast] = []
    replays: list[Contrast] = []
    replicas: dict[Recipe, range] = {}
    more = _replicas(study, units, sites)
    fixed = _fixed(study, sites)
    swept, asked_for = study.swept, study.asked
    for setting in study.settings:
        contrasts.append(whole(setting, fixed))
        replays += replayed(setting, sites, fixed) if routed and setting in asked_for else []
        if setting not in swept:
            continue
        if more and setting.input is not None:  # with weights alone there is no noise to reduce
            replicas[Recipe(setting, fixed)] = more
        for direction in Direction:
            asked = [unit for unit, directions in units if direction in directions]
            contrasts += of_units(asked, setting, direction, fixed)
    numerics = study.numerics
    jitter = 1 if numerics.jitter == "auto" else numerics.jitter
    controls = range(1, max(numerics.replicas - 1, jitter) + 1)
    return Design(
        tuple(contrasts),
        numerics.replicas,
        controls,
        replicas,
        tuple(replays),
        tuple(given(name, recipe) for name, recipe in (recipes or {}).items()),
        tuple(causes(study, sites, fixed)),
        cache(partial(mixed, study, sites)),
    )


def _replicas(
    study: Study, units: Sequence[tuple[Unit, tuple[Direction, ...]]], sites: Sites
) -> range:
    """Numbers of the replicas that an all-quantized model has beside its realisations.

    None where nothing uses them: where no unit is kept, and where windows are measured until units
    are decided. (A folder may go on under another half-width, or without one.)
    """
    kept = any(Direction.KEEP in directions for _, directions in units)
    if not kept or isinstance(study.question.stop_when, BestGoal):
        return range(0)
    first, asked = study.numerics.replicas, study.numerics.jitter
    if asked != "auto":
        return range(first, first + asked)
    # So many as cost about `REPLICAS_COST` of a setting's sweep, by blocks that run.
    blocks = len(sites.blocks)
    sweep = blocks
    for unit, directions in units:
        earliest = min(map(sites.blocks_before, unit.sites))
        sweep += (blocks - earliest) * len(directions)
    found = round(REPLICAS_COST * sweep * first / blocks)
    return range(first, first + min(max(1, found), MOST_REPLICAS))


def _fixed(study: Study, sites: Sites) -> tuple[Edit, ...]:
    """Sites whose format is their own, whatever the linears have, and what is done to them.

    Of what attention multiplies every operand is a site, and is treated as an input.
    """
    amax = study.numerics.activation_scale.amax
    formats = {More.KV_CACHE: study.question.kv_cache, More.ATTENTION: study.question.attention}
    edits: list[Edit] = []
    for more, fmt in formats.items():
        names = frozenset(
            site.name
            for site in sites
            if not site.is_linear and site.projection.partition(".")[0] == more.value
        )
        if fmt is not None and names:
            window = fmt.uses_tensor_amax and amax is Amax.WINDOW
            edits.append(
                (names, Setting(input=Treatment(fmt, amax if window else Amax.CALIBRATED)))
            )
    return tuple(edits)


def replayed(setting: Setting, sites: Sites, fixed: tuple[Edit, ...] = ()) -> list[Contrast]:
    """What tells damage by routing from damage by values, for a model and for its experts alone.

    Both are run with the full-precision model's routing forced. Experts alone are run with their
    own routing too, which the all-quantized model is anyway.
    """
    every = frozenset(sites.by_name)
    experts = frozenset(s.name for s in sites if s.experts > 1 or s.expert is not None)
    recipes = {("all", every, True): Recipe(setting, fixed, replay=True)}
    if experts:
        recipes |= {
            ("experts", experts, replay): Recipe(None, ((experts, setting),), replay)
            for replay in (False, True)
        }
    found: list[Contrast] = []
    for (name, members, replay), recipe in recipes.items():
        unit = Unit(ROUTING, f"{name}, replayed" if replay else name, None, members)
        terms = (recipe, 1), (NOTHING, -1)
        found.append(Contrast(terms, unit, Family(ROUTING, setting, None)))
    return found


def causes(study: Study, sites: Sites, fixed: tuple[Edit, ...] = ()) -> Iterator[Contrast]:
    """What tells why projections, or layers too, cost what they do: each quantized alone.

    In every setting of the study, in its variants (`probes`), and with noise behind it.
    """
    swept = [setting for setting in study.swept if variants(setting)]
    noise = gains() if swept else []
    for level in study.question.causes.levels:
        alike = [replace(unit, level=CAUSES) for unit in _of_level(level, study, sites)]
        settings = [own for one in swept for own in (one, *variants(one).values())]
        for setting in (*settings, *noise):
            yield from of_units(alike, setting, Direction.ONLY, fixed)


def remedied(study: Study, sites: Sites, chosen: Iterable[tuple[Unit, Setting]]) -> Design:
    """What else can be done to some units, where everything is quantized in a setting.

    Args:
        study: What is asked.
        sites: Of the model.
        chosen: Units, each with the setting of all.

    Returns:
        The full-precision and the all-quantized models, and in `causes` each remedy of each unit,
        in the direction `keep`: what it saves.
    """
    fixed = _fixed(study, sites)
    wholes: dict[Setting, Contrast] = {}
    found: list[Contrast] = []
    for unit, setting in chosen:
        control = wholes.setdefault(setting, whole(setting, fixed)).own
        own = replace(unit, level=REMEDIES)
        linears = [sites.by_name[name] for name in sorted(unit.sites)]
        whole_only = any(
            site.part is not None or site.experts > 1 or expert_of(site.name) for site in linears
        )
        for other in remedies(setting, [site.cols for site in linears]).values():
            if other is not None and other.is_fitted and whole_only:
                continue
            recipe = Recipe(setting, (*fixed, (unit.sites, other)))
            family = Family(REMEDIES, setting, Direction.KEEP)
            found.append(Contrast(((control, 1), (recipe, -1)), own, family))
    nothing = range(0)
    return Design(tuple(wholes.values()), study.numerics.replicas, nothing, causes=tuple(found))


def like_remedied(study: Study, sites: Sites) -> Design:
    """As much as the remedies of a study will be, of units evenly out of each level."""
    chosen: list[tuple[Unit, Setting]] = []
    for level in study.question.causes.levels:
        units = list(_of_level(level, study, sites))
        step = max(1, len(units) // study.question.remedies)
        some = units[step // 2 :: step][: study.question.remedies]
        chosen += [(unit, setting) for unit in some for setting in study.swept]
    return remedied(study, sites, chosen)


def given(name: str, recipe: Recipe) -> Contrast:
    """What quantizing as a recipe says costs.

    Raises:
        StudyError: It quantizes nothing.
    """
    quantized = [recipe.base, *(setting for _, setting in recipe.edits)]
    first = next((setting for setting in quantized if setting is not None), None)
    if first is None:
        raise StudyError(f"recipe {name} quantizes nothing; name some sites and their formats")
    family = Family(GIVEN, first, None)
    return Contrast(((recipe, 1), (NOTHING, -1)), Unit(GIVEN, name, None, recipe.edited), family)


def mixed(study: Study, sites: Sites) -> list[Contrast]:
    """What each run of a designed sweep of the study costs; linears alone are switched."""
    settings = study.swept
    asked = study.question.design_runs
    runs = None if asked == "auto" else asked
    found = mixtures(fused_groups(sites), settings, study.numerics.seed, runs)
    # What is compared with something stands there already.
    fixed = ((), _fixed(study, sites))
    ends = {whole(setting, edits).own for setting in settings for edits in fixed}
    return [
        Contrast(
            ((recipe, 1), (NOTHING, -1)),
            Unit(MIXED, str(number), None, recipe.edited),
            Family(MIXED, settings[0], None),
        )
        for number, recipe in enumerate(found, 1)
        if recipe not in ends
    ]


def whole(setting: Setting, fixed: tuple[Edit, ...] = ()) -> Contrast:
    """What quantizing all sites costs; some have a setting of their own."""
    family = Family("model", setting, None)
    return Contrast(((Recipe(setting, fixed), 1), (NOTHING, -1)), None, family)


def of_units(
    units: Iterable[Unit],
    setting: Setting,
    direction: Direction,
    fixed: tuple[Edit, ...] = (),
) -> list[Contrast]:
    """What quantizing each unit costs, in one direction; some sites have a setting of their own."""
    # What they share is made once: a model of many experts has tens of thousands of units.
    family = cache(lambda level: Family(level, setting, direction))
    quantized, nothing = (Recipe(setting, fixed), 1), (NOTHING, -1)
    if direction is Direction.KEEP:
        kept = ((unit, Recipe(setting, (*fixed, (unit.sites, None)))) for unit in units)
        return [Contrast((quantized, (own, -1)), unit, family(unit.level)) for unit, own in kept]

    def alone(unit: Unit) -> Recipe:
        own = ((names & unit.sites, other) for names, other in fixed)
        return Recipe(None, ((unit.sites, setting), *own))

    only = ((unit, alone(unit)) for unit in units)
    return [Contrast(((own, 1), nothing), unit, family(unit.level)) for unit, own in only]


def _units(study: Study, sites: Sites) -> Iterator[tuple[Unit, tuple[Direction, ...]]]:
    """Every unit, and the directions in which its effect is asked for."""
    if directions := study.question.directions(Level.PROJECTIONS):
        for unit in _projections(sites):
            yield unit, directions
    if directions := study.question.directions(Level.BLOCKS):
        for block, names in _grouped(
            (s.block, s.name) for s in sites if s.block is not None
        ).items():
            yield Unit("blocks", "", block, names), directions
    if directions := study.question.directions(Level.EXPERTS):
        for (block, path), names in _experts(sites).items():
            yield Unit("experts", path, block, names), directions
    for pattern in study.question.patterns:
        yield Unit("patterns", pattern, None, sites.match(pattern)), study.question.directions(None)
    if kept := study.question.keep:
        together = frozenset().union(*map(sites.match, kept))
        yield Unit("patterns", " or ".join(kept), None, together), (Direction.KEEP,)
    if directions := study.question.directions(Level.LAYERS):
        for unit in _chosen_layers(study, sites):
            yield unit, directions


def _of_level(level: Level, study: Study, sites: Sites) -> Iterator[Unit]:
    return _projections(sites) if level is Level.PROJECTIONS else _chosen_layers(study, sites)


def _projections(sites: Sites) -> Iterator[Unit]:
    for projection, names in _grouped((s.projection, s.name) for s in sites).items():
        yield Unit("projections", projection, None, names)


def _chosen_layers(study: Study, sites: Sites) -> Iterator[Unit]:
    """Those that the study asks for."""
    chosen = frozenset().union(*map(sites.match, study.question.layers or ("*",)))
    return (unit for unit in _layers(sites) if chosen & unit.sites)


def _experts(sites: Sites) -> dict[tuple[int, str], frozenset[str]]:
    """All of one routed expert of a block, by its path there.

    Raises:
        UnitError: The model has none.
    """
    single = [
        (block, site)
        for block, members in enumerate(sites.blocks)
        for site in members
        if site.expert is not None or "*" in site.projection
    ]
    if not single:
        raise UnitError("sweep: experts, but the model has no routed experts that are quantized")
    return _grouped(((block, s.path.rpartition(".")[0]), s.name) for block, s in single)


def _layers(sites: Sites) -> Iterator[Unit]:
    """One projection in one block each, projection by projection."""
    inside = ((block, site) for block, members in enumerate(sites.blocks) for site in members)
    layers = _grouped(((s.projection, block), s.name) for block, s in inside)
    order = {projection: place for place, projection in enumerate(sites.projections)}
    for projection, block in sorted(layers, key=lambda layer: (order[layer[0]], layer[1])):
        yield Unit("layers", projection, block, layers[projection, block])


def _grouped(pairs: Iterable[tuple[_K, str]]) -> dict[_K, frozenset[str]]:
    """Names by key, keys in the order in which they come first."""
    found: dict[_K, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return {key: frozenset(names) for key, names in found.items()}
