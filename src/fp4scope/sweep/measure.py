"""A study's windows, chunk by chunk, through the wavefront and into the journal.

Chunks run through the windows in a seeded permutation, so that every prefix is a fair sample of
the text. A chunk is the unit of work, of the journal and of resumption. If memory runs out on the
way, the chunk is halved, this is said, and the sweep goes on.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from fp4scope.errors import StudyError
from fp4scope.inject import Injector
from fp4scope.models import LoadedModel
from fp4scope.records import Variant
from fp4scope.sweep.check import SelfCheck, self_check
from fp4scope.sweep.journal import Journal, Measured
from fp4scope.sweep.memory import Memory, Pass, Shape, free_memory, is_out_of_memory
from fp4scope.sweep.nonfinite import require_finite
from fp4scope.sweep.plan import PlannedVariant
from fp4scope.sweep.wavefront import Wavefront, head_in_blocks


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
    variants: Sequence[PlannedVariant],
    windows: int,
    seq_len: int,
    captured_bytes: int,
    budget: int | None = None,
) -> Forecast:
    """What a sweep of all these windows will take, without running anything.

    Raises:
        StudyError: No chunk is small enough for the memory.
    """
    memory = Memory(loaded, variants, seq_len, captured_bytes)
    budget = free_memory(loaded.device) if budget is None else budget
    shape = memory.shape(windows, budget)
    parts = memory.passes(shape.groups)
    return Forecast(
        shape=shape,
        memory_bytes=memory.needed(shape),
        budget_bytes=budget,
        executions=_executions(parts, loaded) * windows,
        work=_work(parts, loaded) * windows,
        passes=-(-windows // shape.windows) * len(parts),
    )


def _executions(parts: Sequence[Pass], loaded: LoadedModel) -> int:
    """Blocks to run on each window, the capture of their inputs among them."""
    return sum(part.tree.executions + loaded.layout.blocks for part in parts)


def _work(parts: Sequence[Pass], loaded: LoadedModel) -> float:
    heads = sum(len(part.variants) for part in parts)
    return _executions(parts, loaded) + heads * head_in_blocks(loaded)


class Sweep:
    """Measures a study's variants on its windows.

    Args:
        loaded: The model.
        ids: Token ids of all windows.
        variants: What to measure.
        injector: Of the same model.
        journal: Where each chunk's numbers go; windows that it has are not measured again.
        seed: Of the order of windows and of the perturbations.
        memory: Bytes to take beside the model; by default what is free, less a margin.

    Raises:
        ModelError: The self-check fails.
        StudyError: No chunk is small enough for the memory.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ids: Int[Tensor, "windows tokens"],
        variants: Sequence[PlannedVariant],
        injector: Injector,
        journal: Journal,
        *,
        seed: int = 0,
        memory: int | None = None,
    ) -> None:
        self._loaded, self._ids, self._variants = loaded, ids, variants
        self._injector, self._journal, self._seed = injector, journal, seed
        self.check: SelfCheck = self_check(loaded, ids)
        self._memory = Memory(loaded, variants, ids.shape[1], self.check.captured_bytes)
        self.budget = free_memory(loaded.device) if memory is None else memory
        self.notes: list[str] = []
        self.shape = self._first_shape()

    @property
    def _passes(self) -> list[Pass]:
        return self._memory.passes(self.shape.groups)

    @property
    def _realisations(self) -> list[tuple[Variant, int]]:
        return [v.realisation for v in self._variants]

    @property
    def memory_bytes(self) -> int:
        """What the sweep is expected to take beside the model."""
        return self._memory.needed(self.shape)

    @property
    def executions(self) -> int:
        """Blocks to run on each window, the capture of their inputs among them."""
        return _executions(self._passes, self._loaded)

    @property
    def work(self) -> float:
        """The same with the head, which counts as `head_in_blocks` blocks for each final state."""
        return _work(self._passes, self._loaded)

    def run(self, progress: Callable[[Progress], None] = lambda event: None) -> None:
        """Measure what the journal lacks.

        Raises:
            NonFiniteError: The NLL or KL of a variant, or a quantized input.
            OutputError: The journal cannot be written.
            StudyError: Memory ran out and nothing is left to halve.
        """
        generator = torch.Generator().manual_seed(self._seed)
        order = torch.randperm(len(self._ids), generator=generator).tolist()
        known = set(self._journal.done(self._realisations))
        left = [w for w in order if w not in known]
        total, work = len(order), self.work

        def tell(done: float, note: str | None = None) -> None:
            finished = total - len(left)
            progress(Progress(finished, finished * work + done, total * work, note))

        tell(0.0)
        while left:
            chunk = left[: self.shape.windows]
            done = 0.0

            def advance(share: float) -> None:
                nonlocal done
                done += share
                tell(done)

            try:
                measured = self._chunk(chunk, advance)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # Not the error itself: its traceback holds the states that must go.
                reason = str(error)
            else:
                self._journal.add(chunk, measured, self.shape.to_json())
                left = left[len(chunk) :]
                tell(0.0)
                continue
            self._shrink(reason)
            work = self.work
            tell(0.0, self.notes[-1])

    def _first_shape(self) -> Shape:
        shape = self._memory.shape(len(self._ids), self.budget)
        several = self.check.batches and not (
            self.check.flattens and self._injector.activation_amax is None
        )
        if not several:  # a state may not depend on what shares its batch
            shape = replace(shape, windows=1, block=1, head=shape.head if self.check.batches else 1)
        last = self._journal.last_shape(self._realisations)
        if last is None:
            return shape
        before = Shape(**last)
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
                f"out of memory with one window of {self._ids.shape[1]} tokens and one variant "
                f"at a time ({reason}); use a smaller --seq-len, or a device with more memory"
            )
        self.notes.append(
            f"out of memory with {_described(self.shape)}; going on with {_described(shape)}"
        )
        self.shape = shape
        gc.collect()
        if self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _chunk(self, windows: Sequence[int], advance: Callable[[float], None]) -> list[Measured]:
        found: dict[tuple[str, int], Measured] = {}
        ids = self._ids[list(windows)]
        for part in self._passes:
            wavefront = Wavefront(
                self._loaded,
                self._injector,
                part.variants,
                part.tree,
                self.shape.batches,
                self._seed,
            )
            results = wavefront.measure(ids, windows, advance)
            for planned, metrics in list(zip(part.variants, results, strict=True))[part.carried :]:
                for window, one in zip(windows, metrics, strict=True):
                    require_finite(self._loaded, self._injector, planned, one, self._ids, window)
                found[planned.variant.key, planned.replica] = Measured(
                    planned.variant, planned.replica, tuple(metrics)
                )
        return [found[v.variant.key, v.replica] for v in self._variants]


def _described(shape: Shape) -> str:
    parts = [f"{shape.windows} windows a chunk", f"batches of {shape.block}"]
    if shape.groups > 1:
        parts.append(f"{shape.groups} groups of variants")
    return ", ".join(parts) + (", states on the host" if shape.spill else "")
