"""When a sweep has measured enough, and what of it is still to be measured.

What it says depends on the jobs of the log and their order and on nothing else, except for a time
goal, so a sweep that was interrupted comes to the same decisions by reading its log again. The
full-precision and all-quantized models are measured to the end, as are units of levels about which
nothing is to be decided.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fp4scope.design import Contrast, Family, Run
from fp4scope.errors import StudyError
from fp4scope.ledger import Ledger, Log
from fp4scope.stats import (
    SIGNIFICANCE,
    BestSearch,
    Fate,
    Pairing,
    critical,
    standard_errors,
)
from fp4scope.study import BestGoal, Goal, TimeGoal, WidthGoal

MOST_WINDOWS = 8
"""In a job, where there is a goal: at least so often it is looked whether it is reached."""
_DECIDED_FIRST = ("experts", "layers", "patterns", "blocks", "projections")


def job_windows(goal: Goal, done: int) -> int:
    """How many windows the next job may have, behind `done` of them, for a look behind it.

    Of a decision most is decided early, and each look costs a share of the error. So it is looked
    when a quarter more has been measured.
    """
    if not isinstance(goal, BestGoal):
        return MOST_WINDOWS
    if done < MOST_WINDOWS:
        return MOST_WINDOWS - done
    return min(MOST_WINDOWS, done // 4)


def looks(goal: Goal | None, windows: int, most: int = MOST_WINDOWS) -> list[int]:
    """How many windows have been measured behind each job, up to all.

    Args:
        goal: What is looked for; without one jobs are as large as fits.
        windows: How many there are.
        most: As many as fit in a job.

    Example:
        >>> looks(BestGoal(10), 40)
        [8, 10, 12, 15, 18, 22, 27, 33, 40]
    """
    ends = [0]
    while ends[-1] < windows:
        size = most if goal is None else min(most, job_windows(goal, ends[-1]))
        ends.append(min(windows, ends[-1] + size))
    return ends[1:]


class Stopping:
    """What the jobs of a log, one after the other, say of a goal.

    Args:
        goal: When to stop; None measures everything.
        runs: All that the study runs.
        contrasts: What they are run for.
        started: When the run began, by `time.monotonic`; now.

    Raises:
        StudyError: The goal cannot be reached by any study of these contrasts.
    """

    def __init__(
        self,
        goal: Goal | None,
        runs: Sequence[Run],
        contrasts: Sequence[Contrast] = (),
        *,
        started: float | None = None,
    ) -> None:
        self.goal = goal
        self.reached = False
        self.runs = list(runs)
        self._contrasts = contrasts
        self._units = [contrast for contrast in contrasts if contrast.unit is not None]
        self._measure = goal.by if isinstance(goal, BestGoal) else "nll"
        self._keys = frozenset((unit.own, 0, self._measure) for unit in self._units)
        self._jobs = 0
        self._last_look = time.monotonic()
        self._started = self._last_look if started is None else started
        self._searches = _searches(goal, self._units)
        self._widest: float | None = None

    @property
    def remaining(self) -> list[Run]:
        """What the next job has to run."""
        settled = {
            unit
            for units, search in self._searches
            for unit, fate in zip(units, search.fates, strict=True)
            if fate is not Fate.UNDECIDED
        }
        open = {r for c in self._contrasts if c not in settled for r, _ in c.terms}
        dropped = {contrast.own for contrast in settled} - open
        return [run for run in self.runs if run.recipe not in dropped]

    def begin(self) -> None:
        """The first job begins now."""
        self._last_look = time.monotonic()

    def look(self, log: Log) -> None:
        """Take in the jobs that the log has got since the last look."""
        if isinstance(self.goal, TimeGoal):
            now = time.monotonic()
            took, self._last_look = now - self._last_look, now
            self.reached = self.reached or now + took - self._started > self.goal.seconds
            return
        jobs = [job for job in log.jobs if not self._keys.isdisjoint(job.keys)]
        for end in range(self._jobs + 1, len(jobs) + 1):
            windows = [window for job in jobs[:end] for window in job.windows]
            self._look(_Costs(log.ledger, windows, self._measure))
        self._jobs = len(jobs)

    def _look(self, costs: "_Costs") -> None:
        if self.reached or self.goal is None:
            return
        if isinstance(self.goal, WidthGoal):
            self._widest = costs.widest(self._units)
            self.reached = self._widest <= self.goal.nats
            return
        for units, search in self._searches:
            if not search.decided:
                search.look(costs.of([units[i] for i in search.active]))
        self.reached = all(search.decided for _, search in self._searches)

    def to_json(self, log: Log, available: int) -> dict[str, Any] | None:
        """What was decided when, for the results.

        Args:
            log: Of the study.
            available: How many windows the study has.
        """
        if self.goal is None:
            return None
        return {
            "goal": str(self.goal),
            "reached": self.reached,
            "anytime": not isinstance(self.goal, TimeGoal),
            "windows": len(log.windows),
            "available": available,
            "widest_nats": None if self._widest in (None, np.inf) else self._widest,
            "families": [self._family(units, search) for units, search in self._searches],
        }

    def _family(self, units: Sequence[Contrast], search: BestSearch) -> dict[str, Any]:
        found = zip(units, search.fates, search.windows, strict=True)
        return units[0].family.labels | {
            "k": search.goal.k,
            "by": search.goal.by,
            "within_nats": search.goal.within,
            "error": search.goal.error,
            "decided": search.decided,
            "windows": max(search.windows),
            "units": [
                {"fate": fate.value, "windows": windows}
                | {name: unit.labels[name] for name in ("unit", "block")}
                for unit, fate, windows in found
            ],
        }


def require_reachable(goal: Goal | None, contrasts: Sequence[Contrast]) -> None:
    """Refuse a goal about units that the study does not have.

    Raises:
        StudyError: There are no units, or not more than are to be found.
    """
    _searches(goal, [contrast for contrast in contrasts if contrast.unit is not None])


def _searches(
    goal: Goal | None, units: Sequence[Contrast]
) -> list[tuple[list[Contrast], BestSearch]]:
    """A search for every family of the level to decide about: layers if there are any."""
    if goal is None or isinstance(goal, TimeGoal):
        return []
    if not units:
        raise StudyError(
            f"stop_when is {str(goal)!r}, but the study has no units; name some with --sweep"
        )
    if not isinstance(goal, BestGoal):
        return []
    level = next(name for name in _DECIDED_FIRST if any(u.family.level == name for u in units))
    families: dict[Family, list[Contrast]] = {}
    for unit in units:
        if unit.family.level == level:
            families.setdefault(unit.family, []).append(unit)
    for family, members in families.items():
        if goal.k >= len(members):
            labels = family.labels
            raise StudyError(
                f"stop_when asks for the best {goal.k}, but there are only {len(members)} {level} "
                f"({labels['direction']}, {labels['format']}); give a smaller number"
            )
    return [(members, BestSearch(len(members), goal)) for members in families.values()]


class _Costs:
    """What units cost on some windows by a measure, by window, in the order of the text."""

    def __init__(self, ledger: Ledger, windows: Sequence[int], measure: str) -> None:
        self._windows = np.asarray(windows)
        self._pairing = Pairing(ledger, measure)

    def of(self, units: Sequence[Contrast]) -> np.ndarray:
        """Windows by units; all have seen all of these windows."""
        return np.stack([self._by_window(unit) for unit in units], axis=1)

    def widest(self, units: Sequence[Contrast]) -> float:
        """The largest half-width of the units' 95% confidence sequences, nats per token."""
        costs = self.of(units)
        n = len(costs)
        if n < 2:
            return float("inf")
        largest = float(standard_errors(costs).max())
        return critical(n, SIGNIFICANCE) * largest if largest else 0.0

    def _by_window(self, unit: Contrast) -> np.ndarray:
        series = self._pairing.difference(unit)
        assert series is not None, f"{unit.name} has nothing to be compared with"
        return series.values[np.isin(series.windows, self._windows)]
