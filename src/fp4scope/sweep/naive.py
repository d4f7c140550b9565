"""The plain way to measure a variant: the model's own forward, once for every window.

It is simple enough to be right by reading, and shares nothing with the wavefront: put the
variant's settings on the model, run `model(ids)`, compare the logits with the reference's. Tests
hold the wavefront against it, the benchmark is a ratio to it, and it measures what the wavefront
cannot sweep.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from fp4scope.design import NOTHING, Run
from fp4scope.metrics import (
    ReferencePredictions,
    Routing,
    WindowMetrics,
    compare,
    reference_predictions,
)
from fp4scope.models import Axes, LoadedModel
from fp4scope.operands import Choice, Injector
from fp4scope.recipes import Recipe
from fp4scope.sweep.routing import alike, listening

Perturb = Callable[[Tensor, int, int, int], Tensor]
"""What enters a block (tokens, ...), replica, window and block to its perturbation."""


def measure_naively(
    loaded: LoadedModel,
    ids: Int[Tensor, "windows tokens"],
    runs: Sequence[Run],
    injector: Injector,
    perturb: Perturb | None = None,
    ran: Callable[[], None] = lambda: None,
) -> list[list[WindowMetrics]]:
    """Metrics of every run on every window, one forward each.

    Args:
        loaded: The model.
        ids: Token ids.
        runs: What to measure; what one is compared with may be among them or not.
        injector: Of the same model.
        perturb: What a replica does to the entrance of a block; only needed if there are any.
        ran: Called after every forward (`forwards` of them a window).
    """

    def forward(w: int, recipe: Recipe, replica: int = 0) -> tuple[Tensor, list[Choice]]:
        settings = dict(recipe.in_block(loaded.layout.sites))
        # No image is kept that the next forward does not need too.
        needed = {(name, setting.weight) for name, setting in settings.items()}
        injector.forget(injector.held - needed)
        moved = _moved(loaded, ids.shape[1], replica, w, perturb)
        with injector.applied(settings), moved, listening(loaded.model) as chosen:
            logits = loaded.logits(ids[w])[:-1]
        ran()
        return logits, chosen

    measured: list[list[WindowMetrics]] = [[] for _ in runs]
    for w, row in enumerate(ids):
        targets = row[1:].to(loaded.device)
        plain: list[Choice] = []
        for against in _references(runs):
            logits, chosen = forward(w, against)
            plain = chosen if against == NOTHING else plain
            reference = reference_predictions(logits)
            for run, results in zip(runs, measured, strict=True):
                if run.against != against:
                    continue
                own = logits, chosen
                if not _is(run, against):
                    own = forward(w, run.recipe, run.replica)
                results.append(_compared(*own, targets, reference, plain))
    return measured


def forwards(runs: Sequence[Run]) -> int:
    """How many forwards of a window it takes."""
    return len(_references(runs)) + sum(not _is(run, run.against) for run in runs)


def _references(runs: Sequence[Run]) -> list[Recipe]:
    """All that runs are compared with, the full-precision model first."""
    return list(dict.fromkeys([NOTHING, *(run.against for run in runs)]))


def _is(run: Run, reference: Recipe) -> bool:
    return run.recipe == reference and not run.replica


def _compared(
    logits: Tensor,
    chosen: Sequence[Choice],
    targets: Int[Tensor, " targets"],
    reference: ReferencePredictions,
    plain: Sequence[Choice],
) -> WindowMetrics:
    """One forward's metrics; of its routing, what is left of the full-precision model's."""
    (metrics,) = compare(logits[None], targets, reference).windows()
    sums = [alike(*both) for both in zip(chosen, plain, strict=True)]
    routing = Routing(*(sum(sums) / len(sums)).tolist()) if sums else None  # type: ignore
    return replace(metrics, routing=routing)


@contextmanager
def _moved(
    loaded: LoadedModel, tokens: int, replica: int, window: int, perturb: Perturb | None
) -> Iterator[None]:
    """Perturb what enters every block, until the `with` block ends."""
    hooks: list[Any] = []

    def move(index: int, _: nn.Module, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        assert perturb is not None
        hidden = args[0] if args else kwargs["hidden_states"]
        axes = Axes.of_stream(hidden, tokens) or Axes(0)
        moved = perturb(axes.first(hidden, 1)[0], replica, window, index)
        moved = axes.back(moved[None])
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

    blocks = loaded.model.get_submodule(loaded.layout.blocks_path).children() if replica else ()
    for index, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(partial(move, index), with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
