"""A study's windows, chunk by chunk, through the wavefront and into the log.

Chunks run through the windows in a seeded permutation, so that every prefix is a fair sample of
the text. A chunk is the unit of work, of the log and of resumption. If memory runs out on the
way, the sweep says so and goes on with less at once: fewer windows a chunk, then groups of
variants, smaller batches, fewer rows of logits (`Memory.smaller`). After each chunk it is asked
whether that is enough, and which variants are still wanted (`stopping`).
"""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from fp4scope.design import Run
from fp4scope.errors import StudyError
from fp4scope.ledger import Found, Key, Log
from fp4scope.models import LoadedModel
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.sweep.check import SelfCheck, self_check, still_the_same
from fp4scope.sweep.memory import Memory, Pass, Shape, free_memory, is_out_of_memory
from fp4scope.sweep.nonfinite import require_finite
from fp4scope.sweep.stopping import MOST_WINDOWS, Stopping
from fp4scope.sweep.wavefront import Wavefront, head_in_blocks, head_runs
from fp4scope.treatments import Amax

# Two forwards in this many: less than one percent of a sweep.
_FORWARDS_BETWEEN_CHECKS = 256


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: windows measured, and work done, in blocks run on one window.

    `note` is a line worth reading once.
    """

    windows: int
    done: float
    total: float
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a sweep will take: its shape, bytes beside the model, and work.

    `work` is in blocks run on one window, the head counted as `head_in_blocks` for each final
    state; `executions` is without the head. `passes` is how often the weights are read.
    """

    shape: Shape
    memory_bytes: int
    budget_bytes: int
    executions: int
    work: float
    passes: int


def forecast_sweep(
    loaded: LoadedModel,
    runs: Sequence[Run],
    windows: int,
    seq_len: int,
    captured_bytes: int,
    budget: int | None = None,
    most: int | None = None,
) -> Forecast:
    """What a sweep of all these windows will take, without running anything.

    Args:
        loaded: The model.
        runs: What is measured.
        windows: How many.
        seq_len: Tokens in each.
        captured_bytes: What the model hands its blocks, for one window.
        budget: Bytes to take beside the model; by default what is free, less a margin.
        most: Windows in a chunk at most.

    Raises:
        StudyError: No chunk is small enough for the memory.
    """
    memory = Memory(loaded, runs, seq_len, captured_bytes)
    budget = free_memory(loaded.device) if budget is None else budget
    shape = memory.shape(min(windows, most or windows), budget)
    parts = memory.passes(shape.groups)
    return Forecast(
        shape=shape,
        memory_bytes=memory.needed(shape),
        budget_bytes=budget,
        executions=_executions(parts) * windows,
        work=_work(parts, loaded) * windows,
        passes=-(-windows // shape.windows) * len(parts),
    )


def _executions(parts: Sequence[Pass]) -> int:
    """Blocks to run on each window."""
    return sum(part.tree.executions for part in parts)


def _work(parts: Sequence[Pass], loaded: LoadedModel) -> float:
    heads = sum(head_runs(part.runs, part.tree) for part in parts)
    return _executions(parts) + heads * head_in_blocks(loaded)


class Sweep:
    """Measures what a study runs on its windows.

    Args:
        loaded: The model.
        ids: Token ids of all windows.
        runs: What to measure.
        injector: Of the same model.
        log: Where each job's numbers go; windows that it has are not measured again.
        seed: Of the order of windows and of the perturbations.
        memory: Bytes to take beside the model; by default what is free, less a margin.
        stopping: Says after each chunk what is still to be measured; by default everything is.
        check: What the self-check of these windows found; by default it is made here.

    Raises:
        ModelError: The self-check fails.
        StudyError: No chunk is small enough for the memory.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ids: Int[Tensor, "windows tokens"],
        runs: Sequence[Run],
        injector: Injector,
        log: Log,
        *,
        seed: int = 0,
        memory: int | None = None,
        stopping: Stopping | None = None,
        check: SelfCheck | None = None,
    ) -> None:
        self._stopping = stopping or Stopping(None, runs)
        self._loaded, self._ids, self._runs = loaded, ids, self._stopping.remaining
        self._injector, self._log, self._seed = injector, log, seed
        self.check: SelfCheck = check or self_check(loaded, ids)
        self._unchecked = 0
        """Blocks run since the last comparison with the model's own forward."""
        self._memory = self._memory_of(self._runs)
        self.budget = free_memory(loaded.device) if memory is None else memory
        self.notes: list[str] = []
        self.shape = self._first_shape(runs)

    @property
    def _passes(self) -> list[Pass]:
        return self._memory.passes(self.shape.groups)

    @property
    def _keys(self) -> list[Key]:
        return [key for run in self._runs for key in run.keys]

    @property
    def memory_bytes(self) -> int:
        """What the sweep is expected to take beside the model."""
        return self._memory.needed(self.shape)

    @property
    def executions(self) -> int:
        """Blocks to run on each window."""
        return _executions(self._passes)

    @property
    def work(self) -> float:
        """The same with the head, which counts as `head_in_blocks` blocks for each final state."""
        return _work(self._passes, self._loaded)

    def run(self, progress: Callable[[Progress], None] = lambda event: None) -> None:
        """Measure what the log lacks.

        Raises:
            ModelError: The model's forwards are not always the same.
            NonFiniteError: The NLL or KL of a run, or a quantized input.
            OutputError: The log cannot be written.
            StudyError: Memory ran out and nothing is left to halve.
        """
        generator = torch.Generator().manual_seed(self._seed)
        order = torch.randperm(len(self._ids), generator=generator).tolist()
        known = set(self._log.done(self._keys))
        left = [w for w in order if w not in known]
        work = self.work
        spent = Counter({work: len(known)})  # windows by the work that each took

        def tell(done: float, note: str | None = None) -> None:
            done = min(done, work)  # shares are rounded
            before = sum(each * windows for each, windows in spent.items())
            ahead = 0 if self._stopping.reached else len(left) * work
            progress(Progress(len(order) - len(left), before + done, before + ahead, note))

        tell(0.0)
        self._stopping.begin()
        while left and not self._stopping.reached:
            chunk = left[: self.shape.windows]
            done = 0.0

            def advance(share: float) -> None:
                nonlocal done
                done += share
                tell(done)

            try:
                measured = self._chunk(chunk, advance)
                self._compare_again(chunk)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # Not the error itself: its traceback holds the states that must go.
                reason = str(error)
            else:
                tokens = [self._ids.shape[1] - 1] * len(chunk)
                self._log.add(chunk, tokens, measured, self.shape.to_json())
                left = left[len(chunk) :]
                spent[work] += len(chunk)
                self._look()
                work = self.work
                tell(0.0)
                continue
            self._shrink(reason)
            work = self.work
            tell(0.0, self.notes[-1])

    def _compare_again(self, chunk: Sequence[int]) -> None:
        """Once in many forwards' work: is the wavefront still the model's own forward?"""
        self._unchecked += len(chunk) * self.executions
        if self._unchecked >= _FORWARDS_BETWEEN_CHECKS * self._loaded.layout.blocks:
            self._unchecked = 0
            still_the_same(self._loaded, self._ids, chunk[0], self.check)

    def _memory_of(self, runs: Sequence[Run]) -> Memory:
        return Memory(self._loaded, runs, self._ids.shape[1], self.check.captured_bytes)

    def _look(self) -> None:
        """Ask what the next chunk has to measure; fewer runs may need fewer passes."""
        self._stopping.look(self._log)
        remaining = self._stopping.remaining
        if len(remaining) < len(self._runs) and not self._stopping.reached:
            self._runs = remaining
            self._memory = self._memory_of(remaining)
            self.shape = self._memory.fewer_groups(self.shape, self.budget)

    def _first_shape(self, asked: Sequence[Run]) -> Shape:
        most = len(self._ids)
        if self._stopping.goal is not None:
            most = min(most, MOST_WINDOWS)
        shape = self._memory.shape(most, self.budget)
        inputs = {s.input for run in asked for s in run.recipe.settings}
        by_window = any(x is not None and x.tensor_scale is Amax.WINDOW for x in inputs)
        several = self.check.batches and not (self.check.flattens and by_window)
        if not several:  # a state may not depend on what shares its batch
            shape = replace(shape, windows=1, block=1, head=shape.head if self.check.batches else 1)
        last = self._log.last_shape(self._keys)
        if last is None:
            return shape
        before = replace(Shape(**last), windows=min(last["windows"], most))
        if len(self._runs) < len(asked):
            before = self._memory.fewer_groups(before, self.budget)
        if before == shape or self._memory.needed(before) <= self.budget:
            return before
        self.notes.append(
            "warning: less memory is free than when this folder was begun, so batches are "
            "smaller now; W4A4 results of both shapes are compared with each other"
        )
        return shape

    def _shrink(self, reason: str) -> None:
        shape = self._memory.smaller(self.shape)
        if shape is None:
            raise StudyError(
                f"out of memory with one window of {self._ids.shape[1]} tokens and one recipe "
                f"at a time ({reason}); use a smaller --seq-len, or a device with more memory"
            )
        self.notes.append(
            f"out of memory with {_described(self.shape)}; going on with {_described(shape)}"
        )
        self.shape = shape
        gc.collect()
        if self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _chunk(self, windows: Sequence[int], advance: Callable[[float], None]) -> list[Found]:
        found: dict[tuple[Recipe, int], dict[str, list[float]]] = {}
        ids = self._ids[list(windows)]
        for part in self._passes:
            wavefront = Wavefront(
                self._loaded,
                self._injector,
                part.runs,
                part.tree,
                self.shape.batches,
                self._seed,
            )
            results = wavefront.measure(ids, windows, advance)
            for run, metrics in list(zip(part.runs, results, strict=True))[part.carried :]:
                for window, one in zip(windows, metrics, strict=True):
                    require_finite(self._loaded, self._injector, run, one, self._ids, window)
                columns = zip(*((m.nll, m.kl, m.top1) for m in metrics), strict=True)
                values = {name: list(c) for name, c in zip(run.measures, columns, strict=True)}
                found.setdefault((run.recipe, run.replica), {}).update(values)
        realisations = dict.fromkeys((run.recipe, run.replica) for run in self._runs)
        return [Found(recipe, replica, found[recipe, replica]) for recipe, replica in realisations]


def _described(shape: Shape) -> str:
    parts = [f"{shape.windows} windows a chunk", f"batches of {shape.block}"]
    if shape.groups > 1:
        parts.append(f"{shape.groups} groups of recipes")
    return ", ".join(parts) + (", states on the host" if shape.spill else "")
