"""Effects of a designed sweep: what each group costs, on average over what else is quantized."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats

from fp4scope.design import NOTHING
from fp4scope.errors import StudyError
from fp4scope.groups import Group, fused_groups
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.designs import Fit, Integers, fit, shrunk
from fp4scope.stats.inference.intervals import CONFIDENCE, MIN_WINDOWS, Estimate
from fp4scope.stats.inference.sequences import critical
from fp4scope.stats.inference.series import Floats, aligned
from fp4scope.treatments import Setting


@dataclass(frozen=True)
class Effects:
    """What quantizing each group costs, in the middle of what a designed sweep mixed.

    Attributes:
        groups: Units, in the order of the model.
        settings: Levels beside full precision.
        by_window: Windows by groups by settings, nats per token, of `measure`.
        measure: `kl` or `nll`.
        windows: Numbers of the windows.
        levels: Of every run, the level of each group: 0 is full precision.
        fit: What else the runs say.
        anytime: Whether the number of windows depended on what was seen.
    """

    groups: tuple[Group, ...]
    settings: tuple[Setting, ...]
    by_window: Floats
    measure: str
    windows: Integers
    levels: Integers
    fit: Fit
    anytime: bool = False

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """What each group is: its name, the same in every block."""
        return tuple(group.name for group in self.groups)

    @cached_property
    def shrunk(self) -> Floats:
        """Groups by settings: means over all windows, drawn to those of their kind."""
        return self.resampled(np.arange(len(self.by_window)))

    def resampled(self, windows: Integers) -> Floats:
        """Groups by settings: means over these windows, drawn to those of their kind.

        Args:
            windows: Places in `by_window`; one may come several times.
        """
        means = self.by_window[windows].mean(axis=0)
        if len(self.by_window) < 2:
            return means
        errors = self._errors
        columns = [shrunk(m, e, self.kinds) for m, e in zip(means.T, errors.T, strict=True)]
        return np.stack(columns, axis=1)

    @cached_property
    def _errors(self) -> Floats:
        return np.hypot(standard_errors(self.by_window), self.fit.lack)

    def level(self, group: Group, recipe: Recipe) -> int:
        """Which level a group has in a recipe.

        Raises:
            StudyError: It has several, or one that the sweep has not.
        """
        place = _level(group, recipe, self.settings)
        if place is None:
            where = group.name if group.block is None else f"{group.name} of block {group.block}"
            known = ", ".join(f"{s.format} {s.precision}" for s in self.settings)
            raise StudyError(
                f"the recipe treats {where} in a way that this designed sweep cannot predict; it "
                f"has full precision, {known}, one for all sites of a group"
            )
        return place

    def predict(self, recipe: Recipe, level: float = CONFIDENCE) -> Estimate:
        """What a recipe costs over the full-precision model, nats per token.

        The interval holds the noise of effects and what sums of effects miss. It is for the mean
        over text such as this; a measurement on other windows has an error of its own.

        Args:
            recipe: Any mixture of the levels.
            level: Confidence of the interval.

        Raises:
            StudyError: It has other levels, or several in one group.
        """
        found = [(g, self.level(group, recipe) - 1) for g, group in enumerate(self.groups)]
        quantized = [(g, s) for g, s in found if s >= 0]
        n = len(self.by_window)
        if not quantized:
            return Estimate(0.0, 0.0, 0.0, 0.0, n)
        places = tuple(zip(*quantized, strict=True))
        total = self.by_window[:, places[0], places[1]].sum(axis=1)
        drawn = float(self.shrunk[places].sum() - total.mean())
        series = self.fit.by_window(total + drawn)
        mean = float(series.mean())
        if n < 2:
            return Estimate(mean, None, None, None, n)
        missed = self.fit.missed(float(total.mean()) + drawn)
        error = float(np.hypot(standard_errors(series), missed))
        if n < MIN_WINDOWS:
            return Estimate(mean, error, None, None, n)
        alpha = round(1 - level, 10)
        reach = critical(n, alpha) if self.anytime else float(stats.t.ppf(1 - alpha / 2, n - 1))
        return Estimate(mean, error, mean - reach * error, mean + reach * error, n)


def effects(results: Results, measure: str = "kl") -> Effects | None:
    """What the designed sweep of a study found.

    Args:
        results: Of the study.
        measure: `kl` or `nll`.

    Returns:
        None where there was no such sweep.
    """
    groups = fused_groups(results.sites)
    settings, mixtures = _mixtures(results, groups)
    series = {
        recipe: found
        for recipe in (NOTHING, *mixtures)
        if (found := by_window(results.ledger, recipe, measure)) is not None
    }
    if len(series) < 3 or NOTHING not in series:
        return None
    windows, values = aligned(list(series.values()))
    if not len(windows):
        return None
    costs = values[:, 1:] - (values[:, :1] if measure == "nll" else 0.0)
    levels = np.array([mixtures[recipe] for recipe in series if recipe != NOTHING], np.int64)
    found = fit(levels, costs, len(settings), [group.name for group in groups])
    return Effects(
        groups, settings, found.effects, measure, windows, levels, found, results.anytime
    )


def _mixtures(
    results: Results, groups: tuple[Group, ...]
) -> tuple[tuple[Setting, ...], Mapping[Recipe, list[int]]]:
    """The settings in the recipes that were run for nothing else; of each, every group's level."""
    others = {
        recipe for contrast in (*results.contrasts, *results.causes) for recipe, _ in contrast.terms
    }
    others |= {NOTHING, *results.given.values()}
    others |= {replace(recipe, replay=False) for recipe in results.ledger if recipe.replay}
    mixed = [r for r in results.ledger if r not in others and r.base is None and not r.replay]
    there = {setting for recipe in mixed for setting in recipe.settings}
    whole = (contrast.family.setting for contrast in results.contrasts if contrast.unit is None)
    settings = tuple(setting for setting in dict.fromkeys(whole) if setting in there)
    found: dict[Recipe, list[int]] = {}
    for recipe in mixed:
        places = [_level(group, recipe, settings) for group in groups]
        if None not in places:
            found[recipe] = [place for place in places if place is not None]
    return settings, found


def _level(group: Group, recipe: Recipe, settings: tuple[Setting, ...]) -> int | None:
    there = {recipe.at(name) for name in group.names}
    if len(there) != 1:
        return None
    (setting,) = there
    if setting is None:
        return 0
    return settings.index(setting) + 1 if setting in settings else None
