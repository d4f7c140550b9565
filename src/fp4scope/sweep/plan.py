"""A study and a model's sites to the list of variants to measure."""

from collections.abc import Iterator
from dataclasses import dataclass

from fp4scope.design import NOTHING, Contrast, Design, design
from fp4scope.recipes import Recipe, Sites
from fp4scope.records import REFERENCE, Variant, baseline, jitter, replica
from fp4scope.study import Operands, Study
from fp4scope.treatments import Setting


@dataclass(frozen=True)
class PlannedVariant:
    """A realisation of a recipe, and what it is called in the results.

    Replica 0 is the model as it is; replica r > 0 is perturbed by one unit in the last place at
    the entrance of every block, by its own dice. KL and top-1 are taken against replica 0 of
    `against`. Of a unit or an all-quantized model, `contrast` says what is asked of it.
    """

    variant: Variant
    recipe: Recipe
    replica: int = 0
    against: Variant = REFERENCE
    contrast: Contrast | None = None

    @property
    def realisation(self) -> tuple[Variant, int]:
        return self.variant, self.replica


def plan(study: Study, sites: Sites) -> list[PlannedVariant]:
    """Every realisation of every variant: the reference, then format by format.

    Raises:
        UnitError: A pattern matches nothing.
    """
    wanted = design(study, sites)
    variants = [*_whole(wanted, REFERENCE, NOTHING, None)]
    for contrast in wanted.contrasts:
        setting, unit = contrast.family.setting, contrast.unit
        name, operands = format_of(setting), operands_of(setting)
        if unit is None:
            variants += _whole(wanted, baseline(name, operands), contrast.own, contrast)
            continue
        assert contrast.family.direction is not None
        variant = Variant(
            format=name,
            operands=operands,
            direction=contrast.family.direction.value,
            level=unit.level,
            unit=unit.name,
            block=unit.block,
        )
        variants += [
            PlannedVariant(variant, contrast.own, number, contrast=contrast)
            for number in range(wanted.realisations)
        ]
    return variants


def _whole(
    wanted: Design, variant: Variant, recipe: Recipe, contrast: Contrast | None
) -> Iterator[PlannedVariant]:
    """The full-precision or an all-quantized model: as it is, its controls, its replicas."""
    for number in range(wanted.realisations):
        yield PlannedVariant(variant, recipe, number, contrast=contrast)
    for number in wanted.controls:
        yield PlannedVariant(jitter(variant), recipe, number, against=variant)
    for number in wanted.replicas.get(recipe, ()):
        yield PlannedVariant(replica(variant), recipe, number)


def format_of(setting: Setting) -> str:
    """The name of the one format of a setting."""
    treated = setting.weight or setting.input
    assert treated is not None
    return treated.format.name


def operands_of(setting: Setting) -> str:
    """Which operands a setting treats, in a study's word."""
    treated = setting.weight is not None, setting.input is not None
    return next(o.value for o in Operands if (o.weights, o.activations) == treated)
