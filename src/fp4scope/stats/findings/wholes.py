"""Whole models beside each other: formats and recipes, what each costs and what it stores."""

from collections.abc import Iterator
from dataclasses import dataclass

from fp4scope.design import NOTHING
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.given import Size, size
from fp4scope.stats.findings.storage import sizes_known
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.intervals import Estimate, mean, paired
from fp4scope.stats.inference.series import aligned
from fp4scope.treatments import Setting, stored_bits


@dataclass(frozen=True)
class Whole:
    """A whole model that was measured.

    Attributes:
        recipe: What is quantized; nothing of the full-precision model.
        name: Its format, or the name of a recipe.
        precision: Bits of both operands; nothing of a recipe and of the full-precision model.
        given: Whether it is a recipe that was given.
        costs: By measure: `nll` and `kl` above the full-precision model, nats per token; `top1`, a
            share of targets.
        nll: Mean negative log-likelihood, nats per token.
        size: What it stores; None where results do not know how large the linears are.
    """

    recipe: Recipe
    name: str
    precision: str
    given: bool
    costs: dict[str, Estimate]
    nll: float
    size: Size | None

    @property
    def is_full_precision(self) -> bool:
        """Whether nothing is quantized."""
        return self.recipe == NOTHING

    @property
    def is_yardstick(self) -> bool:
        """Whether it has formats that nobody exports here: what people run already."""
        return any(s.weight is not None and s.weight.format.is_for_weights for s in self.settings)

    @property
    def row(self) -> dict[str, float | None]:
        """Its costs as rows of tables have them."""
        nll, kl = self.costs["nll"], self.costs["kl"]
        return nll.columns("delta_nll") | kl.columns("delta_kl")

    @property
    def settings(self) -> list[Setting]:
        """Those of its sites, in a fixed order."""
        return sorted(self.recipe.settings, key=lambda s: (s.format, s.precision))

    @property
    def bits(self) -> float:
        """Of each weight of the linears; where sizes are not known, of long rows."""
        if self.size is not None:
            return self.size.bits
        return max((stored_bits(setting, 1 << 20) for setting in self.settings), default=16.0)

    @property
    def title(self) -> str:
        """How sentences call it."""
        return f"{self.name} {self.precision}".rstrip()


def wholes(results: Results) -> list[Whole]:
    """The full-precision model, then every other whole model, the cheapest first."""
    names: dict[Recipe, tuple[str, str, bool]] = {NOTHING: ("full precision", "", False)}
    for contrast in results.contrasts:
        if contrast.unit is None:
            labels = contrast.labels
            names.setdefault(contrast.own, (labels["format"], labels["precision"], False))
    for name, recipe in results.given.items():
        names.setdefault(recipe, (name, "", True))
    found = [whole for recipe, said in names.items() for whole in _whole(results, recipe, *said)]
    plain = [whole for whole in found if whole.is_full_precision]
    rest = [whole for whole in found if not whole.is_full_precision]
    return [*plain, *sorted(rest, key=lambda whole: whole.costs["nll"].mean)]


def _whole(
    results: Results, recipe: Recipe, name: str, precision: str, given: bool
) -> Iterator[Whole]:
    """It, if it was measured on windows that the full-precision model has seen."""
    nll, top1 = (by_window(results.ledger, recipe, measure) for measure in ("nll", "top1"))
    costs: dict[str, Estimate] = {}
    for measure in ("nll", "kl"):
        both = [by_window(results.ledger, one, measure) for one in (recipe, NOTHING)]
        known = [one for one in both if one is not None]
        if len(known) < 2 or not len(aligned(known)[0]):
            return
        costs[measure] = paired(*aligned(known)[1].T, anytime=results.anytime)
    if nll is None or top1 is None:
        return
    costs["top1"] = mean(top1.values, anytime=results.anytime)
    stored = size(results, recipe) if sizes_known(results) else None
    yield Whole(recipe, name, precision, given, costs, float(nll.values.mean()), stored)
