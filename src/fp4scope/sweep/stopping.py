"""When a sweep has measured enough, and what of it is still to be measured.

Consulted after every chunk. What it says depends on the journal's chunks and their order and on
nothing else, except for a time goal, so a sweep that was interrupted comes to the same decisions
by reading its journal again. The reference, the baselines and their jitter controls are measured to
the end, as are units of levels about which nothing is to be decided.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fp4scope.errors import StudyError
from fp4scope.records import Observation, Variant
from fp4scope.stats import (
    SIGNIFICANCE,
    BestSearch,
    Fate,
    Pairing,
    by_window,
    critical,
    difference,
    family,
    standard_errors,
)
from fp4scope.study import BestGoal, Goal, TimeGoal, WidthGoal
from fp4scope.sweep.journal import Journal
from fp4scope.sweep.plan import PlannedVariant

MOST_WINDOWS = 8
"""In a chunk, where there is a goal: so often it is looked whether it is reached."""
_DECIDED_FIRST = ("cells", "patterns", "blocks", "components")


class Stopping:
    """Looks at what a journal has after every chunk.

    Args:
        goal: When to stop; None measures everything.
        variants: All variants of the study.
        journal: Chunks that it has already are looked at one after the other.
        started: When the run began, by `time.monotonic`; now.

    Raises:
        StudyError: The goal cannot be reached by any study of these variants.
    """

    def __init__(
        self,
        goal: Goal | None,
        variants: Sequence[PlannedVariant],
        journal: Journal,
        *,
        started: float | None = None,
    ) -> None:
        self.goal = goal
        self.reached = False
        self._variants = list(variants)
        self._journal = journal
        self._last_look = time.monotonic()
        self._started = self._last_look if started is None else started
        self._searches = _searches(goal, variants)
        self._widest: float | None = None
        if not isinstance(goal, TimeGoal):
            for end in range(1, len(journal.chunks_of_units) + 1):
                self._look(end)

    @property
    def remaining(self) -> list[PlannedVariant]:
        """The variants that the next chunk has to measure."""
        settled = {
            unit.key
            for units, search in self._searches
            for unit, fate in zip(units, search.fates, strict=True)
            if fate is not Fate.UNDECIDED
        }
        return [v for v in self._variants if v.variant.key not in settled]

    def look(self) -> None:
        """Take in the chunk that the journal has just got."""
        self._look(len(self._journal.chunks_of_units))

    def begin(self) -> None:
        """The first chunk begins now."""
        self._last_look = time.monotonic()

    def _look(self, chunks: int) -> None:
        if self.reached or self.goal is None:
            return
        if isinstance(self.goal, TimeGoal):
            now = time.monotonic()
            took, self._last_look = now - self._last_look, now
            self.reached = now + took - self._started > self.goal.seconds
            return
        windows = [w for chunk in self._journal.chunks_of_units[:chunks] for w in chunk]
        costs = _Costs(self._journal.observations, windows)
        if isinstance(self.goal, WidthGoal):
            self._widest = costs.widest(_units(self._variants))
            self.reached = self._widest <= self.goal.nats
            return
        for units, search in self._searches:
            if not search.decided:
                search.look(costs.of([units[i] for i in search.active]))
        self.reached = all(search.decided for _, search in self._searches)

    def to_json(self, available: int) -> dict[str, Any] | None:
        """What was decided when, for the results.

        Args:
            available: How many windows the study has.
        """
        if self.goal is None:
            return None
        return {
            "goal": str(self.goal),
            "reached": self.reached,
            "anytime": not isinstance(self.goal, TimeGoal),
            "windows": len(self._journal.windows),
            "available": available,
            "widest_nats": None if self._widest in (None, np.inf) else self._widest,
            "families": [self._family(units, search) for units, search in self._searches],
        }

    def _family(self, units: Sequence[Variant], search: BestSearch) -> dict[str, Any]:
        first = units[0]
        return {
            "level": first.level,
            "format": first.format,
            "operands": first.operands,
            "direction": first.direction,
            "k": search.goal.k,
            "within_nats": search.goal.within,
            "error": search.goal.error,
            "decided": search.decided,
            "windows": max(search.windows),
            "units": [
                {"unit": unit.unit, "block": unit.block, "fate": fate.value, "windows": windows}
                for unit, fate, windows in zip(units, search.fates, search.windows, strict=True)
            ],
        }


def require_reachable(goal: Goal | None, variants: Sequence[PlannedVariant]) -> None:
    """Refuse a goal about units that the study does not have.

    Raises:
        StudyError: There are no units, or not more than are to be found.
    """
    _searches(goal, variants)


def _searches(
    goal: Goal | None, variants: Sequence[PlannedVariant]
) -> list[tuple[list[Variant], BestSearch]]:
    """A search for every family of the level to decide about: cells if there are any."""
    if goal is None or isinstance(goal, TimeGoal):
        return []
    units = _units(variants)
    if not units:
        raise StudyError(
            f"stop_when is {str(goal)!r}, but the study has no units; name some with --sweep"
        )
    if not isinstance(goal, BestGoal):
        return []
    level = next(name for name in _DECIDED_FIRST if any(u.level == name for u in units))
    families: dict[Any, list[Variant]] = {}
    for unit in units:
        if unit.level == level:
            families.setdefault(family(unit), []).append(unit)
    for members in families.values():
        if goal.k >= len(members):
            raise StudyError(
                f"stop_when asks for the best {goal.k}, but there are only {len(members)} {level} "
                f"({members[0].direction}, {members[0].format}); give a smaller number"
            )
    return [(members, BestSearch(len(members), goal)) for members in families.values()]


def _units(variants: Iterable[PlannedVariant]) -> list[Variant]:
    return [v.variant for v in variants if not v.replica and not v.variant.is_control]


class _Costs:
    """What units cost on some windows, by window, in the order of the text."""

    def __init__(self, observations: dict[str, Observation], windows: Sequence[int]) -> None:
        self._windows = np.asarray(windows)
        self._observations = observations
        self._pairing = Pairing(observations)

    def of(self, units: Sequence[Variant]) -> np.ndarray:
        """Windows by units; all have seen all of these windows."""
        return np.stack([self._by_window(unit) for unit in units], axis=1)

    def widest(self, units: Sequence[Variant]) -> float:
        """The largest half-width of the units' 95% confidence sequences, nats per token."""
        costs = self.of(units)
        n = len(costs)
        if n < 2:
            return float("inf")
        largest = float(standard_errors(costs).max())
        return critical(n, SIGNIFICANCE) * largest if largest else 0.0

    def _by_window(self, unit: Variant) -> np.ndarray:
        observation = self._observations[unit.key]
        sides = self._pairing.sides(observation, by_window(observation, "nll"))
        assert sides is not None, f"{unit.key} has nothing to be compared with"
        series = difference(sides)
        return series.values[np.isin(series.windows, self._windows)]
