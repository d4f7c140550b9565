"""Losses of one thing after another on the same windows: which step adds damage.

Every step is paired window by window. A step is *beyond* a room that is allowed to it where its
whole interval is, *within* where its whole interval is inside, and else *open*: more windows would
tell. Several steps are judged together, so their intervals hold for all of them at once
(Bonferroni). The room is what rounding explains: a tenth of what the format costs, since engines
round otherwise than the model's own forward (`matching.MEAN_ROOM`), what a second run of the same
model moved, and never less than `LEAST_ROOM`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fp4scope.stats.inference.intervals import Estimate, mean, paired, simultaneous, windows_for
from fp4scope.stats.inference.matching import MEAN_ROOM

Floats = NDArray[np.float64]
State = Literal["beyond", "within", "open"]
LEAST_ROOM = 1e-3
"""Nats per token: about a tenth of a percent of perplexity."""
_FAR = 100_000
"""Windows that nobody measures."""


@dataclass(frozen=True)
class Step:
    """What one step adds to the loss.

    Attributes:
        change: Mean over windows, nats per token, with an interval that holds for all steps.
        state: Where it lies.
        windows: About how many would tell, where it is open.
        proven: Whether it is known without these numbers to add nothing but rounding.
    """

    change: Estimate
    state: State
    windows: int | None = None
    proven: bool = False

    def with_proof(self) -> "Step":
        """Where it is proven to add nothing but rounding: windows have nothing left to tell.

        They still contradict a proof, where they show more than that.
        """
        if self.state == "beyond":
            return self
        return Step(self.change, "within", proven=True)


def room_of(cost: float, rerun: float = 0.0) -> float:
    """What a step may add, in nats per token.

    Args:
        cost: What the format is predicted to cost.
        rerun: What a second run of the same model moved.

    Example:
        >>> room_of(0.5), room_of(-0.2, 0.05), room_of(0.0)
        (0.05, 0.05, 0.001)
    """
    return max(MEAN_ROOM * abs(cost), abs(rerun), LEAST_ROOM)


def steps(changes: Sequence[Floats], room: float) -> list[Step]:
    """Where each of some changes lies.

    Args:
        changes: Loss of each thing less that of the one before it, (windows, tokens) each.
        room: What any may add.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = steps([rng.normal(m, 0.1, (64, 50)) for m in (0.0, 0.5)], 0.02)
        >>> [step.state for step in found]
        ['within', 'beyond']
    """
    means = [each.mean(axis=1) for each in changes]
    return [_step(simultaneous(mean(each), len(means)), room) for each in means]


def _step(change: Estimate, room: float) -> Step:
    if change.low is None or change.high is None:
        return Step(change, "open")
    if change.low > room or change.high < -room:
        return Step(change, "beyond")
    if -room <= change.low and change.high <= room:
        return Step(change, "within")
    half = (change.high - change.low) / 2
    distance = abs(room - abs(change.mean))
    if not distance or (half / distance) ** 2 * change.n > _FAR:
        return Step(change, "open")
    return Step(change, "open", windows_for(half, change.n, distance))


def total(more: Floats, less: Floats) -> Estimate:
    """Mean difference of two losses, (windows, tokens) each, in nats per token."""
    return paired(more.mean(axis=1), less.mean(axis=1))
