"""From what a study asks to what has to be run: recipes, and contrasts of them. Pure data."""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

from fp4scope.design.contrasts import (
    CAUSES,
    MIXED,
    NOTHING,
    REMEDIES,
    ROUTING,
    Contrast,
    Family,
    Unit,
    given,
    of_units,
    whole,
)
from fp4scope.design.mixtures import mixtures
from fp4scope.design.probes import gains, remedies, variants
from fp4scope.design.runs import Design
from fp4scope.design.units import of_level, units_of
from fp4scope.groups import fused_groups
from fp4scope.recipes import Edit, Recipe, Sites, expert_of
from fp4scope.study import BestGoal, Direction, More, Study
from fp4scope.treatments import Amax, Setting, Treatment

_REPLICAS_COST = 0.08
"""What replicas of an all-quantized model may cost, of the sweep of its setting."""
_MOST_REPLICAS = 8


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
    units = list(units_of(study, sites))
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
    # So many as cost about `_REPLICAS_COST` of a setting's sweep, by blocks that run.
    blocks = len(sites.blocks)
    sweep = blocks
    for unit, directions in units:
        earliest = min(map(sites.blocks_before, unit.sites))
        sweep += (blocks - earliest) * len(directions)
    found = round(_REPLICAS_COST * sweep * first / blocks)
    return range(first, first + min(max(1, found), _MOST_REPLICAS))


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
        alike = [replace(unit, level=CAUSES) for unit in of_level(level, study, sites)]
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
        units = list(of_level(level, study, sites))
        step = max(1, len(units) // study.question.remedies)
        some = units[step // 2 :: step][: study.question.remedies]
        chosen += [(unit, setting) for unit in some for setting in study.swept]
    return remedied(study, sites, chosen)


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
