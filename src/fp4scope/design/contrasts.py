"""Contrasts: signed sums of recipes, each one number that a study wants. Pure data.

The sign is decided here, once: positive says that quantizing costs. Keeping a unit compares the
all-quantized model with the same less the unit; quantizing only a unit compares that with the
full-precision model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from fp4scope.errors import StudyError
from fp4scope.recipes import Edit, Recipe
from fp4scope.study import Direction
from fp4scope.treatments import Setting

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
