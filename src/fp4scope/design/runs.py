"""What has to be run for a study's contrasts. Pure data.

Every recipe is run as it is, and again under perturbations as often as the study says. Controls
are the full-precision or an all-quantized model under a perturbation, compared with itself as it
is: they say how far runs spread. Replicas are further runs of an all-quantized model, compared
with the full-precision one: the control variate of the units that are kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fp4scope.design.contrasts import CAUSES, GIVEN, NOTHING, ROUTING, Contrast
from fp4scope.recipes import Recipe


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
