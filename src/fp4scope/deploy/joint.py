"""Several texts, one recipe: their mean effects choose, and a bar has to be met on each.

Texts have windows of their own, so nothing is paired between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fp4scope.deploy.allocate import Floats
from fp4scope.deploy.bar import Bar, Verdict, all_of
from fp4scope.deploy.decide import Decider, Decision, Effects
from fp4scope.deploy.proof import Measured
from fp4scope.groups import Group
from fp4scope.recipes import Recipe
from fp4scope.stats import Estimate
from fp4scope.treatments import Setting

_MORE_IS_WORSE = {"kl": True, "nll": True, "top1": False}


@dataclass(frozen=True)
class JointEffects:
    """Effects of the same groups on several texts; an `Effects`.

    Attributes:
        texts: Those of each.
    """

    texts: tuple[Effects, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """Of all texts."""
        return self.texts[0].groups

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Of all texts."""
        return self.texts[0].settings

    @property
    def measure(self) -> str:
        """Of all texts."""
        return self.texts[0].measure

    @property
    def by_window(self) -> Floats:
        """Of the windows of one text after the other."""
        return np.concatenate([text.by_window for text in self.texts])

    def resampled(self, windows: NDArray[np.int64]) -> Floats:
        """Groups by settings: the mean over texts, each on those of its windows that are given."""
        found: list[Floats] = []
        first = 0
        for text in self.texts:
            count = len(text.by_window)
            own = windows[(windows >= first) & (windows < first + count)] - first
            found.append(text.resampled(own if len(own) else np.arange(count)))
            first += count
        return np.mean(found, axis=0)

    def predict(self, recipe: Recipe) -> Estimate:
        """What a recipe costs on the text where it may cost most."""
        return worst(self.measure, [text.predict(recipe) for text in self.texts])


def joint(deciders: Sequence[Decider]) -> Decider:
    """What chooses one recipe for several texts.

    Args:
        deciders: Of each text: of one model, with the same choices.
    """
    first = deciders[0]
    if len(deciders) == 1:
        return first
    return replace(
        first,
        kl=JointEffects(tuple(one.kl for one in deciders)),
        nll=JointEffects(tuple(one.nll for one in deciders)),
    )


def worst(measure: str, found: Sequence[Estimate]) -> Estimate:
    """The one that may be worst: of the highest upper end, or for `top1` the lowest lower end."""

    def reach(one: Estimate) -> float:
        if _MORE_IS_WORSE[measure]:
            return one.mean if one.high is None else one.high
        return -(one.mean if one.low is None else one.low)

    return max(found, key=reach)


@dataclass(frozen=True)
class MeasuredOnAll(Measured):
    """A recipe that was measured on several texts; `found` is the worst of them, by measure.

    Attributes:
        texts: What each says, in their order.
    """

    texts: tuple[Measured, ...] = ()

    def verdict(self, bars: Sequence[Bar]) -> Verdict:
        """Met where it is on each text, missed where it is on one, whichever may be worst."""
        return all_of(text.verdict(bars) for text in self.texts)

    @property
    def is_as_predicted(self) -> bool:
        """Whether it is on each text."""
        return all(text.is_as_predicted for text in self.texts)


def on_all(decision: Decision, texts: Sequence[Measured]) -> Measured:
    """What several texts say of one recipe, or one says.

    Args:
        decision: As it was chosen for all of them.
        texts: Measured on each, with what was predicted for it.
    """
    if len(texts) == 1:
        return replace(texts[0], decision=decision)
    found: Mapping[str, Sequence[Estimate]] = {
        measure: [text.found[measure] for text in texts] for measure in texts[0].found
    }
    worse = {measure: worst(measure, of) for measure, of in found.items()}
    return MeasuredOnAll(decision, worse, tuple(texts))


def of_text(found: Measured, place: int) -> Measured:
    """What the text at a place says of a recipe."""
    return found.texts[place] if isinstance(found, MeasuredOnAll) else found
