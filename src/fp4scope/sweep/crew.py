"""Who measures: a scheduler hands tasks to a crew, and takes back what each gave.

A crew takes as many tasks as it has workers, and gives them back in the order in which they end.
`Alone` is this process. `remote` has a crew of several.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fp4scope.ledger import Found
from fp4scope.sweep.memory import is_out_of_memory
from fp4scope.sweep.worker import Task, Worker


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a task ended: with what it gave, or without, since memory ran out.

    Attributes:
        task: It.
        rows: What it gave; None where memory ran out.
        reason: What the device said of its memory.
    """

    task: Task
    rows: Sequence[Found] | None
    reason: str = ""


def attempt(worker: Worker, task: Task, advance: Callable[[float], None]) -> Outcome:
    """Execute a task; memory that runs out is an outcome, and nothing of the task stays in it.

    Args:
        worker: Who does it.
        task: It.
        advance: As for `Worker.execute`.

    Raises:
        Fp4ScopeError: As for `Worker.execute`.
    """
    try:
        return Outcome(task, worker.execute(task, advance))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Not the error itself: its traceback holds the states that must go.
        reason = str(error)
    gc.collect()
    if worker.loaded.device.type == "cuda":
        torch.cuda.empty_cache()
    return Outcome(task, None, reason)


class Crew(ABC):
    """Takes tasks and gives back their outcomes.

    Attributes:
        under_way: What has been done of tasks that have not ended, in blocks run on one window.
    """

    under_way: float = 0.0

    @property
    def size(self) -> int:
        """How many workers it is meant to have; tasks are cut for so many."""
        return 1

    @property
    @abstractmethod
    def takes_more(self) -> bool:
        """Whether somebody is free."""

    @abstractmethod
    def hand(self, task: Task) -> None:
        """Give a task to somebody who is free."""

    @abstractmethod
    def wait(self, tell: Callable[[str | None], None]) -> Outcome | None:
        """The next task that ends, of those that were handed; None after a while.

        Args:
            tell: Called as the work goes on, now and then with a line for the user.

        Raises:
            Fp4ScopeError: As for `Worker.execute`.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Let everybody go, whatever is under way."""


class Alone(Crew):
    """One worker, in this process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._task: Task | None = None

    @property
    def takes_more(self) -> bool:
        return self._task is None

    def hand(self, task: Task) -> None:
        self._task = task

    def wait(self, tell: Callable[[str | None], None]) -> Outcome:
        task, self._task = self._task, None
        assert task is not None, "there is nothing to wait for"

        def advance(share: float) -> None:
            self.under_way += share
            tell(None)

        try:
            return attempt(self._worker, task, advance)
        finally:
            self.under_way = 0.0
