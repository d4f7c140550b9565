"""A study's windows, task by task, through a worker and into the log. In this process.

Tasks go through the windows in a seeded permutation, so that every prefix is a fair sample of the
text, and their rows are committed in that order. If memory runs out on the way, the same windows
are handed out again with less at once: fewer windows a task, then groups of runs, smaller
batches, fewer rows of logits (`Memory.smaller`). After each task it is asked whether that is
enough, and which runs are still wanted (`stopping`).
"""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from fp4scope.design import keys_of
from fp4scope.errors import StudyError
from fp4scope.ledger import Found, Log
from fp4scope.sweep.check import SelfCheck, still_the_same
from fp4scope.sweep.memory import Memory, is_out_of_memory
from fp4scope.sweep.progress import Listener, Progress
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.stopping import MOST_WINDOWS, Stopping
from fp4scope.sweep.worker import Task, Worker
from fp4scope.treatments import Amax

FORWARDS_BETWEEN_CHECKS = 256
"""Two forwards in so many: less than one percent of a sweep."""


def schedule(
    worker: Worker,
    memory: Memory,
    log: Log,
    check: SelfCheck,
    stopping: Stopping | None = None,
    windows: Sequence[int] | None = None,
) -> "Scheduler":
    """A sweep, its shape decided: that of the log's last job if that fits.

    Args:
        worker: Of the model and its windows.
        memory: Of what is to be measured: all that is wanted still.
        log: Where each task's rows go; windows that it has are not measured again.
        check: What the self-check of these windows found.
        stopping: Says after each task what is still to be measured; by default everything is.
        windows: Which of the worker's to measure; by default all.

    Raises:
        StudyError: No chunk is small enough for the memory.
    """
    stopping = stopping or Stopping(None, memory.runs)
    windows = range(len(worker.ids)) if windows is None else windows
    count = len(windows)
    most = count if stopping.goal is None else min(count, MOST_WINDOWS)
    shape = memory.shape(most)
    inputs = {s.input for run in memory.runs for s in run.recipe.settings}
    by_window = any(x is not None and x.tensor_scale is Amax.WINDOW for x in inputs)
    if not shape.whole and (not check.batches or (check.flattens and by_window)):
        # A state may not depend on what shares its batch.
        shape = replace(shape, windows=1, block=1, head=shape.head if check.batches else 1)
    notes: list[str] = []
    if check.reason is not None:
        forwards = memory.executions(shape) // worker.loaded.layout.blocks
        notes.append(
            f"{check.reason}; every recipe is measured by the model's own forward instead, one at "
            f"a time: {forwards} forwards of each window"
        )
    last = log.last_shape(keys_of(memory.runs))
    if last is not None and last.get("whole", False) == shape.whole:
        before = replace(Shape(**last), windows=min(last["windows"], most))
        if len(memory.runs) < len(stopping.runs):
            before = memory.fewer_groups(before)
        if before == shape or memory.fits(before):
            shape = before
        else:
            notes.append(
                "warning: less memory is free than when this folder was begun, so batches are "
                "smaller now; W4A4 results of both shapes are compared with each other"
            )
    return Scheduler(worker, memory, log, check, stopping, shape, notes, windows)


@dataclass
class Scheduler:
    """Hands out tasks and commits what they give. `schedule` makes one; `notes` are for users."""

    worker: Worker
    memory: Memory
    log: Log
    check: SelfCheck
    stopping: Stopping
    shape: Shape
    notes: list[str]
    windows: Sequence[int]
    _unchecked: int = 0
    """Blocks run since the last comparison with the model's own forward."""

    @property
    def memory_bytes(self) -> int:
        """What the sweep is expected to take beside the model."""
        return self.memory.needed(self.shape)

    @property
    def executions(self) -> int:
        """Blocks to run on each window."""
        return self.memory.executions(self.shape)

    @property
    def work(self) -> float:
        """The same with the head, in blocks."""
        return self.memory.work(self.shape)

    def run(self, tell: Listener = lambda event: None) -> None:
        """Measure what the log lacks.

        Raises:
            ModelError: The model's forwards are not always the same.
            NonFiniteError: The NLL or KL of a run, or a quantized input.
            OutputError: The log cannot be written.
            StudyError: Memory ran out and nothing is left to halve.
        """
        generator = torch.Generator().manual_seed(self.worker.seed)
        shuffled = torch.randperm(len(self.worker.ids), generator=generator).tolist()
        order = [window for window in shuffled if window in self.windows]
        known = set(self.log.done(keys_of(self.memory.runs)))
        left = [w for w in order if w not in known]
        work = self.work
        spent = Counter({work: len(known)})  # windows by the work that each took

        def told(done: float, note: str | None = None) -> None:
            before = sum(each * windows for each, windows in spent.items())
            ahead = 0 if self.stopping.reached else len(left) * work
            windows = len(order) - len(left)
            detail = f"{windows} of {len(order)} windows"
            done = before + min(done, work * len(left[: self.shape.windows]))  # shares are rounded
            tell(Progress("measuring", done, before + ahead, detail, note, windows))

        told(0.0)
        self.stopping.begin()
        while left and not self.stopping.reached:
            passes = self.memory.passes(self.shape.groups)
            task = Task(self.memory.runs, left[: self.shape.windows], self.shape, passes)
            rows = self._tried(task, told)
            if rows is None:
                work = self.work
                told(0.0, self.notes[-1])
                continue
            targets = [self.worker.ids.shape[1] - 1] * len(task.windows)
            self.log.add(task.windows, targets, rows, task.shape.to_json())
            left = left[len(task.windows) :]
            spent[work] += len(task.windows)
            self._look()
            work = self.work
            told(0.0)

    def _tried(self, task: Task, told: Callable[[float], None]) -> list[Found] | None:
        """What a task gave; None where memory ran out, and then the next has a smaller shape."""
        done = 0.0

        def advance(share: float) -> None:
            nonlocal done
            done += share
            told(done)

        try:
            rows = self.worker.execute(task, advance)
            self._compare_again(task.windows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Not the error itself: its traceback holds the states that must go.
            reason = str(error)
        else:
            return rows
        self._shrink(reason)
        return None

    def _compare_again(self, windows: Sequence[int]) -> None:
        """Once in many forwards' work: is the wavefront still the model's own forward?"""
        loaded, ids = self.worker.loaded, self.worker.ids
        self._unchecked += len(windows) * self.executions
        if self._unchecked >= FORWARDS_BETWEEN_CHECKS * loaded.layout.blocks:
            self._unchecked = 0
            still_the_same(loaded, ids, windows[0], self.check)

    def _look(self) -> None:
        """Ask what the next task has to measure; fewer runs may need fewer passes."""
        self.stopping.look(self.log)
        remaining = self.stopping.remaining
        if len(remaining) < len(self.memory.runs) and not self.stopping.reached:
            self.memory = self.memory.of(remaining)
            self.shape = self.memory.fewer_groups(self.shape)

    def _shrink(self, reason: str) -> None:
        shape = self.memory.smaller(self.shape)
        if shape is None:
            raise StudyError(
                f"out of memory with one window of {self.worker.ids.shape[1]} tokens and one "
                f"recipe at a time ({reason}); use a smaller --seq-len, or a device with more "
                "memory"
            )
        self.notes.append(f"out of memory with {self.shape}; going on with {shape}")
        self.shape = shape
        gc.collect()
        if self.worker.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
