"""Losses of tokens, by a model's own forward, however its operands are treated meanwhile."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from fp4scope.models import LoadedModel
from fp4scope.operands import Injector
from fp4scope.sweep import entering, perturbation, perturbed

Ran = Callable[[], None]
"""Called after each window."""
Looked = Callable[[int, Tensor], None]
"""Given a window's number and its logits, (targets, vocabulary)."""


def _nothing() -> None:
    pass


@torch.no_grad()
def losses_of(
    loaded: LoadedModel,
    ids: Int[Tensor, "windows tokens"],
    ran: Ran = _nothing,
    *,
    replica: int = 0,
    look: Looked | None = None,
) -> Float64[np.ndarray, "windows targets"]:
    """The loss of every token but the first of its window, by the model's own forward, in nats.

    Args:
        loaded: The model.
        ids: Token ids.
        ran: Called after each window.
        replica: With a number other than 0 what enters each block is moved by one unit in the last
            place, as rounding in another order does.
        look: Sees the logits of each window.
    """
    rows = []
    for number, row in enumerate(ids):
        with _jittered(loaded, replica, number):
            logits = loaded.logits(row)[:-1].float()
        targets = row[1:].to(logits.device)
        rows.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        if look is not None:
            look(number, logits)
        ran()
    return torch.stack(rows).double().cpu().numpy()


def _jittered(loaded: LoadedModel, replica: int, window: int) -> AbstractContextManager[None]:
    if not replica:
        return nullcontext()

    def move(block: int, hidden: Tensor) -> Tensor:
        key = {"replica": replica, "window": window, "block": block}
        steps = perturbation(hidden.shape, seed=0, device=hidden.device, **key)
        return perturbed(hidden, steps)

    return entering(loaded, move)


@contextmanager
def scaled(injector: Injector, factors: Mapping[str, float]) -> Iterator[None]:
    """Weights times a factor each, by site, until the `with` block ends."""
    undo = []
    try:
        for site, factor in factors.items():
            product = injector.product(site)
            moved = (product.parameter.detach().float() * factor).to(product.parameter.dtype)
            undo.append(product.put(nn.Parameter(moved, requires_grad=False)))
        yield
    finally:
        for put_back in undo:
            put_back()
