"""The plain way to measure a variant: the model's own forward, once for every window.

It is simple enough to be right by reading, and shares nothing with the wavefront: put the
variant's settings on the model, run `model(ids)`, compare the logits with the reference's. Tests
hold the wavefront against it, the benchmark is a ratio to it, and it measures what the wavefront
cannot sweep.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int, UInt8
from torch import Tensor, nn

from fp4scope.design import NOTHING, Run
from fp4scope.ledger import ROUTING
from fp4scope.metrics import (
    WindowMetrics,
    compare,
    reference_predictions,
)
from fp4scope.models import Axes, LoadedModel
from fp4scope.operands import Choice, Injector
from fp4scope.recipes import Recipe
from fp4scope.sweep.entrances import entering
from fp4scope.sweep.routing import Routers, Seen, alike

_Chosen = list[tuple[nn.Module, Choice]]
"""What routers chose in a forward, and for which experts."""
Perturb = Callable[[Tensor, int, int, int], Tensor]
"""What enters a block (tokens, ...), replica, window and block to its perturbation."""


def measure_naively(
    loaded: LoadedModel,
    ids: Int[Tensor, "windows tokens"],
    runs: Sequence[Run],
    injector: Injector,
    perturb: Perturb | None = None,
    ran: Callable[[], None] = lambda: None,
    routers: Routers | None = None,
    strata: UInt8[np.ndarray, "windows kinds targets"] | None = None,
) -> list[list[WindowMetrics]]:
    """Metrics of every run on every window, one forward each.

    Args:
        loaded: The model.
        ids: Token ids.
        runs: What to measure; what one is compared with may be among them or not.
        injector: Of the same model.
        perturb: What a replica does to the entrance of a block; only needed if there are any.
        ran: Called after every forward (`forwards` of them a window).
        routers: Of the model, if they are known already.
        strata: Of the targets, if sums over these are wanted.
    """
    routers = Routers(loaded, ids[0]) if routers is None else routers
    plain: _Chosen = []

    def forward(w: int, recipe: Recipe, replica: int = 0) -> tuple[Tensor, _Chosen]:
        settings = dict(recipe.in_block(loaded.layout.sites.everywhere))
        # No image is kept that the next forward does not need too.
        needed = {(name, setting.weight) for name, setting in settings.items()}
        injector.forget(injector.held - needed)
        moved = _moved(loaded, ids.shape[1], replica, w, perturb)
        forced = iter(plain if recipe.replay else ())
        heard = routers.listening(lambda _: next(forced, (None, None))[1])
        with injector.applied(settings), moved, heard as chosen:
            logits = loaded.logits(ids[w])[:-1]
        ran()
        return logits, chosen

    measured: list[list[WindowMetrics]] = [[] for _ in runs]
    for w, row in enumerate(ids):
        targets = row[1:].to(loaded.device)
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
                rows = compare(own[0][None], targets, reference)
                whole = {0} if run.keeps_strata else ()
                (metrics,) = rows.windows(whole, None if strata is None else strata[w])
                results.append(replace(metrics, routing=_routing(routers, own[1], plain)))
    return measured


def forwards(runs: Sequence[Run]) -> int:
    """How many forwards of a window it takes."""
    return len(_references(runs)) + sum(not _is(run, run.against) for run in runs)


def _references(runs: Sequence[Run]) -> list[Recipe]:
    """All that runs are compared with, the full-precision model first."""
    return list(dict.fromkeys([NOTHING, *(run.against for run in runs)]))


def _is(run: Run, reference: Recipe) -> bool:
    return run.recipe == reference and not run.replica


def _routing(
    routers: Routers, chosen: _Chosen, plain: _Chosen
) -> Float64[np.ndarray, "routers kinds"] | None:
    """What one forward's routers have left of the full-precision model's choices."""
    if not len(routers):
        return None
    found = np.full((len(routers), len(ROUTING)), np.nan)
    for (experts, own), (_, other) in zip(chosen, plain, strict=True):
        if experts in routers.places:
            sums = alike(Seen.of(own), Seen.of(other))
            found[routers.places[experts]] = sums.cpu().numpy()
    return found


def _moved(
    loaded: LoadedModel, tokens: int, replica: int, window: int, perturb: Perturb | None
) -> AbstractContextManager[None]:
    """Perturb what enters every block, until the `with` block ends."""
    if not replica:
        return nullcontext()

    def move(index: int, hidden: Tensor) -> Tensor:
        assert perturb is not None
        axes = Axes.of_stream(hidden, tokens) or Axes(0)
        moved = perturb(axes.first(hidden, 1)[0], replica, window, index)
        return axes.back(moved[None])

    return entering(loaded, move)
