"""The plain way to measure a variant: the model's own forward, once for every window.

It is simple enough to be right by reading, and shares nothing with the wavefront: put the
variant's settings on the model, run `model(ids)`, compare the logits with the reference's. Tests
hold the wavefront against it, and the benchmark is a ratio to it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from fp4scope.design import NOTHING, Run
from fp4scope.metrics import Routing, WindowMetrics, compare, reference_predictions
from fp4scope.models import LoadedModel
from fp4scope.operands import Choice, Injector
from fp4scope.sweep.routing import alike, listening

Perturb = Callable[[Tensor, int, int, int], Tensor]
"""What enters a block (tokens, hidden), replica, window and block to its perturbation."""


def measure_naively(
    loaded: LoadedModel,
    ids: Int[Tensor, "windows tokens"],
    runs: Sequence[Run],
    injector: Injector,
    perturb: Perturb | None = None,
) -> list[list[WindowMetrics]]:
    """Metrics of every run on every window, one forward each.

    Args:
        loaded: The model.
        ids: Token ids.
        runs: What to measure; what one is compared with may be among them or not.
        injector: Of the same model.
        perturb: What a replica does to the entrance of a block; only needed if there are any.
    """
    sites = loaded.layout.sites
    measured: list[list[WindowMetrics]] = [[] for _ in runs]
    for w, row in enumerate(ids):
        targets = row[1:].to(loaded.device)
        compared = {}
        for against in dict.fromkeys([NOTHING, *(run.against for run in runs)]):
            with injector.applied(dict(against.in_block(sites))), listening(loaded.model) as chosen:
                compared[against] = reference_predictions(loaded.logits(row)[:-1]), chosen
        for run, results in zip(runs, measured, strict=True):
            against, chosen = compared[run.against]
            if run.recipe == run.against and not run.replica:
                logits = against.logits
            else:
                moved = _moved(loaded, run.replica, w, perturb)
                settings = dict(run.recipe.in_block(sites))
                with injector.applied(settings), moved, listening(loaded.model) as chosen:
                    logits = loaded.logits(row)[:-1]
            (metrics,) = compare(logits[None], targets, against).windows()
            results.append(replace(metrics, routing=_routing(chosen, compared[NOTHING][1])))
    return measured


def _routing(chosen: Sequence[Choice], reference: Sequence[Choice]) -> Routing | None:
    """What one forward's routers have left of the full-precision model's choices."""
    sums = [alike(*both) for both in zip(chosen, reference, strict=True)]
    return Routing(*(sum(sums) / len(sums)).tolist()) if sums else None  # type: ignore


@contextmanager
def _moved(
    loaded: LoadedModel, replica: int, window: int, perturb: Perturb | None
) -> Iterator[None]:
    """Perturb what enters every block, until the `with` block ends."""
    hooks: list[Any] = []
    blocks = loaded.model.get_submodule(loaded.layout.blocks_path).children() if replica else ()
    for index, block in enumerate(blocks):
        assert perturb is not None
        hook = partial(_move, perturb, (replica, window, index))
        hooks.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _move(
    perturb: Perturb,
    key: tuple[int, int, int],
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (perturb(args[0][0], *key)[None], *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": perturb(kwargs["hidden_states"][0], *key)[None]}
