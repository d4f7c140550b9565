"""What a worker in another process does: say where it is, make itself ready, execute tasks.

Nothing here knows of Ray. What is asked and what is answered are plain values, which travel: runs
once, then numbers of windows and a shape, and sums back. An error that a task raises is an answer.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fp4scope.design import Run
from fp4scope.errors import Fp4ScopeError
from fp4scope.ledger import Found
from fp4scope.sweep.check import still_the_same, witness
from fp4scope.sweep.crew import attempt
from fp4scope.sweep.passes import Pass, passes
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.worker import NUMERICS_VERSION, Task, Worker


@dataclass(frozen=True)
class Card:
    """Where a worker computes.

    Attributes:
        host: Name of the machine.
        device: Name of the GPU; the instruction set where there is none.
        uuid: Of the GPU; None where there is none.
        numerics: `NUMERICS_VERSION` of its fp4scope.
        libraries: What its numbers may depend on besides.
    """

    host: str
    device: str
    uuid: str | None
    numerics: int
    libraries: str


def card_of(device: str) -> Card:
    """That of this process.

    Args:
        device: Such as `cuda`, the first that it sees, `cuda:1`, or `cpu`.
    """
    host, libraries = platform.node(), f"torch {torch.__version__}"
    if torch.device(device).type != "cuda":
        kind = torch.backends.cpu.get_cpu_capability()
        return Card(host, kind, None, NUMERICS_VERSION, libraries)
    found = torch.cuda.get_device_properties(device)
    return Card(host, found.name, str(found.uuid), NUMERICS_VERSION, libraries)


@dataclass(frozen=True)
class Answer:
    """What a task gave: values in the order of its realisations, a reason why not, or an error."""

    values: Sequence[Mapping[str, Sequence[Any]]] | None = None
    reason: str = ""
    error: Fp4ScopeError | None = None


class Station:
    """A worker in a process of its own.

    Args:
        build: Makes the worker.
        device: Where it computes.
        threads: Of torch: those of the process that sends the tasks, since sums depend on them.
    """

    def __init__(self, build: Callable[[], Worker], device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._build, self._device = build, device
        self._worker: Worker | None = None
        self._runs: Sequence[Run] = ()
        self._passes: dict[int, Sequence[Pass]] = {}

    def card(self) -> Card:
        """Where it is; nothing is loaded for that."""
        return card_of(self._device)

    def open(self) -> np.ndarray | Fp4ScopeError:
        """Load the model.

        Returns:
            What it gives on the first window, as `witness` does; or why it cannot measure.
        """
        try:
            worker = self._worker = self._build()
            if worker.check is not None:
                still_the_same(worker.loaded, worker.ids, 0, worker.check)
            return witness(worker.loaded, worker.ids).numpy()
        except Fp4ScopeError as error:
            return error

    def learn(self, runs: Sequence[Run]) -> None:
        """What is measured from now on."""
        self._runs, self._passes = runs, {}

    def execute(self, windows: Sequence[int], shape: Shape) -> Answer:
        """Measure it on some windows."""
        assert self._worker is not None, "open comes first"
        if shape.groups not in self._passes:
            sites = self._worker.loaded.layout.sites
            self._passes[shape.groups] = passes(self._runs, shape.groups, sites)
        task = Task(self._runs, windows, shape, self._passes[shape.groups])
        try:
            outcome = attempt(self._worker, task, lambda share: None)
        except Fp4ScopeError as error:
            return Answer(error=error.with_traceback(None))
        if outcome.rows is None:
            return Answer(reason=outcome.reason)
        return Answer([found.values for found in outcome.rows])


def rows_of(task: Task, answer: Answer) -> list[Found]:
    """The rows of an answer to a task."""
    assert answer.values is not None
    realisations = dict.fromkeys((run.recipe, run.replica) for run in task.runs)
    return [
        Found(recipe, replica, values)
        for (recipe, replica), values in zip(realisations, answer.values, strict=True)
    ]
