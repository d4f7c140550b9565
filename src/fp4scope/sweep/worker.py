"""Runs tasks: some recipes on some windows, to what each gave on each.

What a task gives depends on the task alone, and on the model, text, calibration and seed that the
worker was made with: not on what it has run before, nor on who else works.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from fp4scope.data import strata_of
from fp4scope.design import Run
from fp4scope.ledger import STRATA, Found
from fp4scope.metrics import WindowMetrics
from fp4scope.models import LoadedModel
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.sweep.check import SelfCheck, still_the_same
from fp4scope.sweep.naive import measure_naively
from fp4scope.sweep.nonfinite import require_finite
from fp4scope.sweep.passes import Pass
from fp4scope.sweep.perturb import perturbation, perturbed
from fp4scope.sweep.routing import Routers, routing_values
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.wavefront import Wavefront, head_in_blocks

NUMERICS_VERSION = 3
"""Changes when any number that a task gives does: rows of two versions must not be mixed."""
FORWARDS_BETWEEN_CHECKS = 256
"""Two forwards in so many: less than one percent of a sweep."""


@dataclass(frozen=True, eq=False)
class Task:
    """What to measure together: a job to be, once the log has its rows.

    Attributes:
        runs: With the replica 0 of whatever they are compared with.
        windows: Of the text, by their numbers.
        shape: How much runs at once.
        passes: The runs in as many groups as the shape has.
    """

    runs: Sequence[Run]
    windows: Sequence[int]
    shape: Shape
    passes: Sequence[Pass]


class Worker:
    """Measures on one model.

    Args:
        loaded: The model.
        ids: Token ids of all windows.
        injector: Of the same model.
        seed: Of the perturbations.
        check: What the self-check found. Then the wavefront is compared with the model's own
            forward again, once in many forwards' work.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ids: Int[Tensor, "windows tokens"],
        injector: Injector,
        seed: int = 0,
        check: SelfCheck | None = None,
    ) -> None:
        self.loaded, self.ids, self.seed = loaded, ids, seed
        self.check = check
        self._unchecked = 0.0
        self._injector = injector
        self._routers = Routers(loaded, ids[0])

    @cached_property
    def _strata(self) -> UInt8[np.ndarray, "windows kinds targets"]:
        """Those of all targets of the text, whoever measures which window."""
        return strata_of(self.loaded.tokenizer, self.ids)

    def execute(
        self, task: Task, advance: Callable[[float], None] = lambda share: None
    ) -> list[Found]:
        """What every realisation of a recipe gave.

        Args:
            task: What to measure.
            advance: Told as the work goes on how much of it was done since the last time, in
                blocks run on one window.

        Raises:
            ModelError: The model's forwards are not always the same.
            NonFiniteError: The NLL or KL of a run, or a quantized input.
        """

        def counted(share: float) -> None:
            self._unchecked += share
            advance(share)

        found: dict[tuple[Recipe, int], dict[str, list[Any]]] = {}
        measure = self._one_by_one if task.shape.whole else self._together
        for part in task.passes:
            results = measure(task, part, counted)
            for run, metrics in list(zip(part.runs, results, strict=True))[part.carried :]:
                for window, one in zip(task.windows, metrics, strict=True):
                    require_finite(self.loaded, self._injector, run, one, self.ids, window)
                columns = zip(*((m.nll, m.kl, m.top1) for m in metrics), strict=True)
                values = {name: list(c) for name, c in zip(run.measures, columns, strict=True)}
                values |= routing_values(run, metrics)
                values |= token_values(run, metrics)
                found.setdefault((run.recipe, run.replica), {}).update(values)
        self._compare_again(task.windows[0])
        realisations = dict.fromkeys((run.recipe, run.replica) for run in task.runs)
        return [Found(recipe, replica, found[recipe, replica]) for recipe, replica in realisations]

    def _compare_again(self, window: int) -> None:
        """Once in many forwards' work: is the wavefront still the model's own forward?"""
        enough = FORWARDS_BETWEEN_CHECKS * self.loaded.layout.blocks
        if self.check is not None and self._unchecked >= enough:
            self._unchecked = 0.0
            still_the_same(self.loaded, self.ids, window, self.check)

    def _together(
        self, task: Task, part: Pass, advance: Callable[[float], None]
    ) -> list[list[WindowMetrics]]:
        ids = self.ids[list(task.windows)]
        wavefront = Wavefront(
            self.loaded,
            self._injector,
            part.runs,
            part.tree,
            task.shape,
            self.seed,
            self._routers,
            self._strata,
        )
        return wavefront.measure(ids, task.windows, advance)

    def _one_by_one(
        self, task: Task, part: Pass, advance: Callable[[float], None]
    ) -> list[list[WindowMetrics]]:
        blocks = self.loaded.layout.blocks + head_in_blocks(self.loaded)

        def perturb(entering: Tensor, replica: int, place: int, block: int) -> Tensor:
            key = {"replica": replica, "window": task.windows[place], "block": block}
            device = entering.device
            return perturbed(
                entering, perturbation(entering.shape, seed=self.seed, device=device, **key)
            )

        ids = self.ids[list(task.windows)]
        self._injector.forget()
        return measure_naively(
            self.loaded,
            ids,
            part.runs,
            self._injector,
            perturb,
            lambda: advance(blocks),
            self._routers,
            self._strata[list(task.windows)],
        )


def token_values(run: Run, metrics: Sequence[WindowMetrics]) -> dict[str, list[Any]]:
    """What is kept of a run's targets, a value for each window; only of whole models.

    How its KL spreads over them, and sums over their strata.
    """
    spreads = [m.spread for m in metrics if run.keeps_spread and m.spread is not None]
    strata = [m.strata for m in metrics if run.keeps_strata and m.strata is not None]
    found: dict[str, list[Any]] = {}
    if spreads:
        found |= {"kl_max": [s.largest for s in spreads], "kl_bins": [s.bins for s in spreads]}
    if strata:
        found |= {name: [getattr(s, kind) for s in strata] for kind, name in STRATA.items()}
    return found
