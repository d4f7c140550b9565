"""Where effects do not add: a recipe is changed group by group, as measured and not as predicted.

A move gives one group another choice; where the bound has no room for it, a second group gives
that way. Moves are tried in the order of what effects predict, a few at a time, and the best as
measured is taken.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from fp4scope.deploy.allocate import Floats, Integers
from fp4scope.deploy.bar import Verdict
from fp4scope.deploy.bound import Bound
from fp4scope.deploy.decide import Decider, Decision
from fp4scope.deploy.proof import Measured
from fp4scope.recipes import Recipe

PASSES = 8
"""Passes over the windows at most."""
AT_ONCE = 8
"""Moves that one pass measures."""


@dataclass(frozen=True)
class Moves:
    """Changes a recipe under a bound.

    Attributes:
        found: What predicts.
        bound: What the recipe may cost or store.
    """

    found: Decider
    bound: Bound

    def next(self, at: Measured, tried: Collection[Recipe]) -> list[Decision]:
        """The most promising moves from a recipe that were not tried yet.

        Under a bar they all are smaller where the recipe meets it, else larger.
        """
        fresh = (
            decision
            for options in self._ranked(at)
            if (decision := self.found.of(options)).recipe not in tried and decision.recipe.settings
        )
        return list(islice(fresh, AT_ONCE))

    def best(self, at: Measured, tried: Sequence[Measured]) -> Measured | None:
        """The move to take; None where none is better than the recipe, as measured.

        Under a bar that is met, the smallest that meets it; under one that is not, what lowers KL
        most for its bits; under a size, what has the least KL.
        """
        bars, before = self.bound.bars, at.found["kl"].mean
        meets = [one for one in tried if bars and one.verdict(bars) is Verdict.MET]
        if bars and (meets or at.verdict(bars) is Verdict.MET):
            return min(meets, key=lambda one: one.decision.size.bits, default=None)

        def gain(one: Measured) -> float:
            saved = before - one.found["kl"].mean
            return saved / (one.decision.size.bits - at.decision.size.bits) if bars else saved

        chosen = max(tried, key=gain, default=None)
        return chosen if chosen is not None and chosen.found["kl"].mean < before else None

    def _ranked(self, at: Measured) -> Iterator[Integers]:
        """Options of every group after each move, the most promising first."""
        options = at.decision.options
        rows = np.arange(len(options))
        bits = self.found.bits - self.found.bits[rows, options][:, None]
        costs = self.found.cost - self.found.cost[rows, options][:, None]
        if not self.bound.bars:
            yield from self._within(options, bits, costs)
            return
        smaller = at.verdict(self.bound.bars) is Verdict.MET
        wanted = np.argwhere(bits < 0 if smaller else bits > 0)
        score = costs[tuple(wanted.T)] / np.abs(bits[tuple(wanted.T)])
        for group, choice in wanted[np.argsort(score, kind="stable")].tolist():
            yield _with(options, [(group, choice)])

    def _within(self, options: Integers, bits: Floats, costs: Floats) -> Iterator[Integers]:
        """Groups that get more, each alone or with the group that best makes room for it."""
        most = self.bound.most_bits(self.found) * self.found.parameters
        room = most - self.found.bits[np.arange(len(options)), options].sum() + 1e-6
        moves: list[tuple[float, list[tuple[int, int]]]] = []
        for group, choice in np.argwhere(bits > 0).tolist():
            cost, needed = float(costs[group, choice]), bits[group, choice] - room
            if needed <= 0:
                moves.append((cost, [(group, choice)]))
                continue
            makes_room = bits <= -needed
            makes_room[group] = False
            if makes_room.any():
                flat = int(np.where(makes_room, costs, np.inf).argmin())
                other = divmod(flat, bits.shape[1])
                moves.append((cost + float(costs[other]), [(group, choice), other]))
        for _, changed in sorted(moves, key=lambda move: move[0]):
            yield _with(options, changed)


def _with(options: Integers, changed: Sequence[tuple[int, int]]) -> Integers:
    found = options.copy()
    for group, choice in changed:
        found[group] = choice
    return found


@dataclass(frozen=True)
class Search:
    """A recipe that was changed move by move.

    Attributes:
        start: It before, as measured.
        end: It after; its prediction is what was measured of it.
        passes: Passes over the windows.
        moves: Moves that they measured.
    """

    start: Measured
    end: Measured
    passes: int
    moves: int


def search(
    moves: Moves, start: Measured, measure: Callable[[int, Sequence[Decision]], list[Measured]]
) -> Search:
    """Take the best of a few moves again and again, until none is better.

    Args:
        moves: What there is to try.
        start: The recipe whose prediction failed.
        measure: What recipes cost, on the same windows; hears the number of the pass, from 1.
    """
    bars, at, tried, passes = moves.bound.bars, start, {start.decision.recipe}, 0
    to_meet = bool(bars) and start.verdict(bars) is not Verdict.MET
    while passes < PASSES and (asked := moves.next(at, tried)):
        passes += 1
        tried |= {decision.recipe for decision in asked}
        best = moves.best(at, measure(passes, asked))
        at = best or at
        if best is None or (to_meet and at.verdict(bars) is Verdict.MET):
            break
    predicted = {name: at.found[name] for name in ("kl", "nll")}
    end = replace(at, decision=replace(at.decision, predicted=predicted))
    return Search(start, end, passes, len(tried) - 1)
