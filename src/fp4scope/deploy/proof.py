"""Recipes measured as wholes: against what was predicted, and against a bar."""

from collections.abc import Sequence
from dataclasses import dataclass

from fp4scope.deploy.bar import Bar, Verdict, verdict
from fp4scope.deploy.decide import Decision
from fp4scope.design import NOTHING
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats import Estimate, by_window, mean, paired, simultaneous
from fp4scope.stats.inference.series import aligned


@dataclass(frozen=True)
class Measured:
    """A recipe, and what some windows say of it.

    Attributes:
        decision: What was chosen, and predicted.
        found: By measure: `nll` and `kl` above the full-precision model, nats per token; `top1`, a
            share of targets.
    """

    decision: Decision
    found: dict[str, Estimate]

    def verdict(self, bars: Sequence[Bar]) -> Verdict:
        """Of all bars together: met where each is, missed where one is."""
        return verdict(bars, self.found)

    @property
    def is_as_predicted(self) -> bool:
        """Whether the intervals of what was predicted and measured have something in common."""
        for measure, predicted in self.decision.predicted.items():
            own = self.found[measure]
            if predicted.low is None or predicted.high is None or own.low is None:
                continue
            if own.high is not None and (predicted.low > own.high or own.low > predicted.high):
                return False
        return True

    @property
    def is_hardly_predicted(self) -> bool:
        """Whether the interval of the KL predicted is wider than all that was measured.

        Such a prediction could hardly fail.
        """
        predicted = self.decision.predicted["kl"]
        if predicted.low is None or predicted.high is None:
            return False
        return predicted.high - predicted.low > self.found["kl"].mean


def measured(results: Results, decisions: Sequence[Decision], among: int = 1) -> list[Measured]:
    """What a study that measured recipes as wholes says of them.

    Args:
        results: Of the study.
        decisions: Whose recipes it measured.
        among: How many comparisons the intervals hold for at once.
    """
    return [Measured(one, _found(results, one.recipe, among)) for one in decisions]


def _found(results: Results, recipe: Recipe, among: int) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for measure in ("nll", "kl"):
        series = [by_window(results.ledger, one, measure) for one in (recipe, NOTHING)]
        both = [one for one in series if one is not None]
        found[measure] = paired(*aligned(both)[1].T, anytime=results.anytime)
    own = by_window(results.ledger, recipe, "top1")
    assert own is not None
    found["top1"] = mean(own.values, anytime=results.anytime)
    return {name: simultaneous(one, among) for name, one in found.items()}
