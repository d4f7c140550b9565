"""The choice of a recipe from measured effects: what each group gets under a bound.

Groups are what engines have as one, so that every recipe can be served. The sum of their effects on
KL is minimised, exactly, under a bound on what is stored. The smallest recipe whose prediction
clears a bar is found along the front that these make.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fp4scope.deploy.allocate import Floats, Integers, frequencies, least_cost
from fp4scope.deploy.bar import Bar
from fp4scope.deploy.palette import Choice
from fp4scope.errors import StudyError
from fp4scope.groups import Group
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats import Estimate, Size, size
from fp4scope.treatments import FULL_PRECISION_BITS, Setting, stored_bits

POINTS = 25
"""Recipes on a front."""


@runtime_checkable
class Effects(Protocol):
    """What quantizing each group costs, and what follows for whole recipes."""

    @property
    def groups(self) -> tuple[Group, ...]: ...
    @property
    def settings(self) -> tuple[Setting, ...]: ...
    @property
    def by_window(self) -> Floats: ...
    @property
    def measure(self) -> str: ...
    def resampled(self, windows: NDArray[np.int64]) -> Floats:
        """Groups by settings: means over these windows, shrunk."""
        ...

    def predict(self, recipe: Recipe) -> Estimate:
        """What a recipe costs."""
        ...


@dataclass(frozen=True)
class Decision:
    """A recipe that was chosen.

    Attributes:
        recipe: It.
        options: By group, in the order of the model: which choice of the palette.
        size: What it stores.
        predicted: By measure, `kl` and `nll`: what it costs, nats per token.
        frequency: Groups by choices: how often each is chosen over resampled windows; None where
            that was not asked for.
    """

    recipe: Recipe
    options: Integers
    size: Size
    predicted: Mapping[str, Estimate]
    frequency: Floats | None = None

    def clears(self, bars: Iterable[Bar]) -> bool:
        """Whether the intervals of its predictions are inside all bars.

        Raises:
            StudyError: A bar is on what cannot be predicted.
        """
        for bar in bars:
            if bar.measure not in self.predicted:
                raise StudyError(
                    f"accept is {bar.text}, but {bar.measure} is not predicted, only measured; use "
                    "a bar on ppl, mnat or kl"
                )
        return all(
            (high := self.predicted[bar.measure].high) is not None and high < bar.limit
            for bar in bars
        )


@dataclass(frozen=True)
class Decider:
    """Chooses recipes from the effects that one study found.

    Attributes:
        results: Of the study.
        kl: Effects on KL, which are minimised.
        nll: Effects on NLL.
        choices: What there is to choose from.
    """

    results: Results
    kl: Effects
    nll: Effects
    choices: tuple[Choice, ...]

    @cached_property
    def bits(self) -> Floats:
        """Groups by choices: what each stores."""
        return np.array(
            [
                [
                    sum(s.parameters * stored_bits(c.setting, s.cols) for s in group.sites)
                    for c in self.choices
                ]
                for group in self.kl.groups
            ],
            np.float64,
        )

    @cached_property
    def parameters(self) -> int:
        """Of all groups."""
        return sum(group.parameters for group in self.kl.groups)

    @property
    def range(self) -> tuple[float, float]:
        """The fewest and the most average bits of the linears."""
        fewest, most = self.bits.min(axis=1).sum(), self.bits.max(axis=1).sum()
        return float(fewest / self.parameters), float(most / self.parameters)

    def _costs(self, windows: NDArray[np.int64]) -> Floats:
        """Groups by choices: shrunk means over these windows; full precision costs nothing."""
        effects = self.kl.resampled(windows)
        found = np.zeros((len(effects), len(self.choices)))
        for place, choice in enumerate(self.choices):
            if choice.setting is not None:
                found[:, place] = effects[:, self.kl.settings.index(choice.setting)]
        return found

    @cached_property
    def _all_windows(self) -> NDArray[np.int64]:
        return np.arange(len(self.kl.by_window))

    @cached_property
    def cost(self) -> Floats:
        """Groups by choices: shrunk means over all windows, nats per token."""
        return self._costs(self._all_windows)

    def under(self, bits: float) -> Decision:
        """The recipe of least predicted KL whose linears have at most so many bits on average.

        Raises:
            StudyError: Even the smallest recipe has more.
        """
        fewest, _ = self.range
        if bits < fewest - 1e-9:
            raise StudyError(
                f"no recipe has {bits:.4g} bits on average: with this palette the smallest has "
                f"{fewest:.4g}; allow more, or give a palette with smaller formats"
            )
        return self.of(least_cost(self.cost, self.bits, bits * self.parameters))

    def bits_of(self, stored: float) -> float:
        """Average bits of the linears in a checkpoint of so many bytes.

        Raises:
            StudyError: What is not quantized takes all of that, or its size is not known.
        """
        parameters = self.results.model.get("parameters")
        if parameters is None:
            raise StudyError("the results do not say how many parameters there are; use --max-bits")
        rest = FULL_PRECISION_BITS * (parameters - self.parameters) / 8
        if stored <= rest:
            raise StudyError(
                f"max_size is {stored / 1e9:.4g} GB, and embeddings, head and norms alone take "
                f"{rest / 1e9:.4g}; allow more"
            )
        return (stored - rest) * 8 / self.parameters

    def front(self, points: int = POINTS) -> list[Decision]:
        """Recipes from the smallest to the largest, each of least KL for its size."""
        fewest, most = self.range
        found = [self.under(bits) for bits in np.linspace(fewest, most, points)]
        return list({decision.recipe: decision for decision in found}.values())

    def within(self, bars: Sequence[Bar]) -> Decision:
        """The smallest recipe on the front whose predictions clear every bar.

        Raises:
            StudyError: None does.
        """
        front = self.front()
        for decision in front:
            if decision.clears(bars):
                return decision
        best = front[-1]
        said = ", ".join(f"{bar.text} ({_milli(best.predicted[bar.measure])})" for bar in bars)
        raise StudyError(
            f"no recipe is predicted to meet {said}, not even the largest; allow more, or measure "
            "more windows, which makes intervals narrower"
        )

    def sure(self, decision: Decision) -> Decision:
        """The same decision, with how often each choice is made over resampled windows."""
        most = decision.size.bits * self.parameters

        def solve(windows: NDArray[np.int64]) -> Integers:
            return least_cost(self._costs(windows), self.bits, most)

        found = frequencies(solve, len(self.kl.by_window), len(self.choices))
        return replace(decision, frequency=found)

    def of(self, options: Integers) -> Decision:
        """The recipe that gives each group one of the choices, by number."""
        by_setting: dict[Setting, set[str]] = {}
        for group, option in zip(self.kl.groups, options, strict=True):
            setting = self.choices[option].setting
            if setting is not None:
                by_setting.setdefault(setting, set()).update(group.names)
        recipe = Recipe(None, tuple((frozenset(n), s) for s, n in by_setting.items()))
        predicted = {effects.measure: effects.predict(recipe) for effects in (self.kl, self.nll)}
        return Decision(recipe, options, size(self.results, recipe), predicted)

    def by_projection(
        self, decision: Decision
    ) -> Iterator[tuple[str, str, list[int | None], float]]:
        """Groups of one name with one choice: name, choice, blocks, and how often it was chosen."""
        found: dict[tuple[str, int], list[int]] = {}
        for place, (group, option) in enumerate(zip(self.kl.groups, decision.options, strict=True)):
            found.setdefault((group.name, int(option)), []).append(place)
        order = Counter(dict.fromkeys((group.name for group in self.kl.groups), 0))
        for name in order:
            for (own, option), places in sorted(found.items(), key=lambda item: item[0][1]):
                if own == name:
                    shares = [
                        1.0 if decision.frequency is None else float(decision.frequency[p, option])
                        for p in places
                    ]
                    blocks = [self.kl.groups[p].block for p in places]
                    yield name, self.choices[option].name, blocks, sum(shares) / len(shares)


def _milli(found: Estimate) -> str:
    high = "" if found.high is None else f", at most {1e3 * found.high:.3g}"
    return f"predicted {1e3 * found.mean:.3g} millinats{high}"


def numbers(decider: Decider, decision: Decision) -> dict[str, Any]:
    """What a recipe's file says of how it was chosen."""
    found: dict[str, Any] = {
        "bits": decision.size.bits,
        "model_bits": decision.size.model_bits,
        "bytes": decision.size.bytes,
        "palette": [choice.name for choice in decider.choices],
        "predicted_nats_per_token": {
            name: {"mean": p.mean, "low": p.low, "high": p.high}
            for name, p in decision.predicted.items()
        },
        "windows": len(decider.kl.by_window),
    }
    if decision.frequency is not None:
        found["chosen_over_resampled_windows"] = {
            f"{group.block}.{group.name}": round(float(shares[option]), 3)
            for group, option, shares in zip(
                decider.kl.groups, decision.options, decision.frequency, strict=True
            )
        }
    return found
