"""A study's windows, task by task, through a crew and into the log.

Tasks go through the windows in a seeded permutation, so that every prefix is a fair sample of the
text, and their rows are committed in that order, whoever is ready first. If memory runs out on the
way, the same windows are handed out again with less at once: fewer windows a task, then groups of
runs, smaller batches, fewer rows of logits (`Memory.smaller`). After each commit it is asked
whether that is enough, and which runs are still wanted (`stopping`). What others have measured by
then of runs that are not is left out, so the log is that of one worker.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from fp4scope.design import keys_of
from fp4scope.errors import StudyError
from fp4scope.ledger import Found, Log
from fp4scope.models import LoadedModel
from fp4scope.sweep.check import SelfCheck
from fp4scope.sweep.crew import Alone, Crew, Outcome
from fp4scope.sweep.memory import Memory
from fp4scope.sweep.progress import Listener, Progress
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.stopping import MOST_WINDOWS, Stopping, job_windows
from fp4scope.sweep.worker import Task, Worker
from fp4scope.treatments import Amax

_ROUNDS = 3
"""Tasks for each of several workers, where more are not needed: one that is late has fewer."""
_BUSY = {"cuda": 32_768}
"""Tokens of a task, by kind of device, below which it waits for its kernels to be launched."""


def schedule(
    worker: Worker,
    memory: Memory,
    log: Log,
    check: SelfCheck,
    stopping: Stopping | None = None,
    windows: Sequence[int] | None = None,
    crew: Crew | None = None,
) -> "Scheduler":
    """A sweep, its shape decided: that of the log's last job if that fits.

    Args:
        worker: Of the model and its windows.
        memory: Of what is to be measured: all that is wanted still.
        log: Where each task's rows go; windows that it has are not measured again.
        check: What the self-check of these windows found.
        stopping: Says after each task what is still to be measured; by default everything is.
        windows: Which of the worker's to measure; by default all.
        crew: Who measures; by default the worker alone.

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
    crew = crew or Alone(worker)
    return Scheduler(worker, memory, log, stopping, shape, notes, windows, crew)


def task_windows(left: int, most: int, tokens: int, loaded: LoadedModel, workers: int) -> int:
    """How many windows a task has: as many as fit, or, for several workers, equal parts.

    Args:
        left: Windows to be measured.
        most: That fit.
        tokens: Of a window.
        loaded: The model. If its blocks wait on the host every task copies them all, so tasks are
            as few as can be.
        workers: How many share them.
    """
    if workers == 1:
        return most
    waits = loaded.offloaded is not None
    filled = 1 if waits else left * tokens // (workers * _BUSY.get(loaded.device.type, 1))
    rounds = max(-(-left // (workers * most)), min(filled, _ROUNDS), 1)
    return -(-left // (workers * rounds))


@dataclass(eq=False)
class _Piece:
    """Windows that are measured together: waiting, handed out as a task, or done."""

    windows: list[int]
    task: Task | None = None
    rows: Sequence[Found] | None = None


@dataclass
class Scheduler:
    """Hands out tasks and commits what they give. `schedule` makes one; `notes` are for users."""

    worker: Worker
    memory: Memory
    log: Log
    stopping: Stopping
    shape: Shape
    notes: list[str]
    windows: Sequence[int]
    crew: Crew
    _left: list[int] = field(default_factory=list)
    """Windows that are in no piece yet."""
    _line: deque[_Piece] = field(default_factory=deque)
    """What has been cut and not been committed, in the order of commits."""
    _size: int = 0
    """Windows of a task, for `_cut_for`: the most that fit, and workers."""
    _cut_for: tuple[int, int] | None = None

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
        self._left = [w for w in order if w not in known]
        self._line.clear()
        self._cut_for = None
        work = self.work
        spent = Counter({work: len(known)})  # windows by the work that each took

        def told(note: str | None = None) -> None:
            before = sum(each * windows for each, windows in spent.items())
            cut = sum(len(piece.windows) for piece in self._line)
            done = sum(len(piece.windows) for piece in self._line if piece.rows is not None)
            left = cut + len(self._left)
            ahead = left * work
            # Shares are rounded.
            so_far = done * work + min(self.crew.under_way, work * (cut - done))
            if self.stopping.reached:
                ahead = so_far = 0
            windows = len(order) - left
            detail = f"{windows} of {len(order)} windows"
            tell(Progress("measuring", before + so_far, before + ahead, detail, note, windows))

        def heard(note: str | None) -> None:
            if note is not None:
                self.notes.append(note)
            told(note)

        told()
        self.stopping.begin()
        while (self._left or self._line) and not self.stopping.reached:
            self._hand_out()
            if (outcome := self.crew.wait(heard)) is None:
                continue
            shape = self.shape
            if not self._take(outcome):
                work = self.work
                told(self.notes[-1] if self.shape != shape else None)
                continue
            while self._line and self._line[0].rows is not None and not self.stopping.reached:
                piece = self._line.popleft()
                self._commit(piece)
                spent[work] += len(piece.windows)
                self._look()
                work = self.work
                told()

    def _hand_out(self) -> None:
        """Keep everybody busy: first with what has come back, then with new windows."""
        for piece in self._line:
            if piece.task is None and self.crew.takes_more:
                self._hand(piece)
        while self._left and self.crew.takes_more:
            size = self._windows_of_a_task()
            self._line.append(piece := _Piece(self._left[:size]))
            self._left = self._left[size:]
            self._hand(piece)

    def _windows_of_a_task(self) -> int:
        """As many as one worker would take, or, for several, equal parts of what is left.

        Equal ones end together. Smaller ones would be launches more than work. A goal is looked at
        behind each task, so under one they are those of one worker.
        """
        most, workers = self.shape.windows, self.crew.size
        if self.stopping.goal is not None:
            done = len(self.windows) - len(self._left)
            return min(most, job_windows(self.stopping.goal, done))
        if self._cut_for != (most, workers):
            loaded, tokens = self.worker.loaded, self.worker.ids.shape[1]
            self._size = task_windows(len(self._left), most, tokens, loaded, workers)
            self._cut_for = most, workers
        return self._size

    def _hand(self, piece: _Piece) -> None:
        passes = self.memory.passes(self.shape.groups)
        piece.task = Task(self.memory.runs, piece.windows, self.shape, passes)
        self.crew.hand(piece.task)

    def _take(self, outcome: Outcome) -> bool:
        """Keep what a task gave; where memory ran out, cut its windows again, for less at once."""
        place = next(i for i, piece in enumerate(self._line) if piece.task is outcome.task)
        if outcome.rows is not None:
            self._line[place].rows = outcome.rows
            return True
        if outcome.task.shape == self.shape:  # others may have run out of memory before
            self._shrink(outcome.reason, len(outcome.task.windows))
        windows, size = self._line[place].windows, self.shape.windows
        del self._line[place]
        for start in reversed(range(0, len(windows), size)):
            self._line.insert(place, _Piece(windows[start : start + size]))
        return False

    def _commit(self, piece: _Piece) -> None:
        assert piece.task is not None
        assert piece.rows is not None
        wanted = {(run.recipe, run.replica) for run in self.memory.runs}
        rows = [found for found in piece.rows if (found.recipe, found.replica) in wanted]
        targets = [self.worker.ids.shape[1] - 1] * len(piece.windows)
        self.log.add(piece.windows, targets, rows, piece.task.shape.to_json())

    def _look(self) -> None:
        """Ask what the next task has to measure; fewer runs may need fewer passes."""
        self.stopping.look(self.log)
        remaining = self.stopping.remaining
        if len(remaining) < len(self.memory.runs) and not self.stopping.reached:
            self.memory = self.memory.of(remaining)
            self.shape = self.memory.fewer_groups(self.shape)

    def _shrink(self, reason: str, ran: int) -> None:
        """Take less at once than what ran out of memory, which had so many windows."""
        tried = replace(self.shape, windows=min(self.shape.windows, ran))
        shape = self.memory.smaller(tried)
        if shape is None:
            raise StudyError(
                f"out of memory with one window of {self.worker.ids.shape[1]} tokens and one "
                f"recipe at a time ({reason}); use a smaller --seq-len, or a device with more "
                "memory"
            )
        self.notes.append(f"out of memory with {tried}; going on with {shape}")
        self.shape = shape
