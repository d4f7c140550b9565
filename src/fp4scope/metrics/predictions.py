"""NLL, KL(reference || variant) and top-1 agreement of one window's logits.

Each goes over rows in tiles, in FP32 with FP64 sums, so that a vocabulary of 150,000 never
needs a second copy of the logits. The KL of logits equal to the reference's is exactly zero:
the difference of logits is taken first, then weighted.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

_TILE_ROWS = 128


@dataclass(frozen=True)
class WindowMetrics:
    """Sums over the targets of one window; NLL and KL in nats."""

    tokens: int
    nll: float
    kl: float
    top1: int


@dataclass(frozen=True)
class ReferencePredictions:
    """What later variants are compared with: the logits, each row's log-sum-exp and best token."""

    logits: Shaped[Tensor, "tokens vocab"]
    logsumexp: Float[Tensor, " tokens"]
    best: Int[Tensor, " tokens"]


def reference_metrics(
    logits: Shaped[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]
) -> tuple[WindowMetrics, ReferencePredictions]:
    """The reference's own metrics (KL 0, top-1 everywhere), and what to compare others with."""
    lse: list[Tensor] = []
    best: list[Tensor] = []
    nll = torch.zeros((), dtype=torch.float64, device=logits.device)
    for rows in _tiles(len(logits)):
        z = logits[rows].float()
        lse.append(torch.logsumexp(z, -1))
        best.append(z.argmax(-1))
        nll += (lse[-1] - _at(z, targets[rows])).sum(dtype=torch.float64)
    tokens = len(targets)
    predictions = ReferencePredictions(logits, torch.cat(lse), torch.cat(best))
    return WindowMetrics(tokens, nll.item(), 0.0, tokens), predictions


def compare(
    logits: Shaped[Tensor, "tokens vocab"],
    targets: Int[Tensor, " tokens"],
    reference: ReferencePredictions,
) -> WindowMetrics:
    """A variant's metrics against the reference on the same window."""
    zero = torch.zeros((), dtype=torch.float64, device=logits.device)
    nll, kl, top1 = zero.clone(), zero.clone(), zero.clone()
    for rows in _tiles(len(logits)):
        z, z_ref = logits[rows].float(), reference.logits[rows].float()
        lse, lse_ref = torch.logsumexp(z, -1), reference.logsumexp[rows]
        nll += (lse - _at(z, targets[rows])).sum(dtype=torch.float64)
        top1 += (z.argmax(-1) == reference.best[rows]).sum()
        p = (z_ref - lse_ref[:, None]).exp_()
        kl += (p.mul_(z_ref - z).sum(-1) + (lse - lse_ref)).sum(dtype=torch.float64)
    return WindowMetrics(len(targets), nll.item(), kl.item(), int(top1.item()))


def _tiles(rows: int) -> list[slice]:
    return [slice(start, start + _TILE_ROWS) for start in range(0, rows, _TILE_ROWS)]


def _at(z: Tensor, targets: Tensor) -> Tensor:
    return z.gather(-1, targets[:, None])[:, 0]
