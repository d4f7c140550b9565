"""NLL, KL(reference || variant) and top-1 agreement, row by row of logits.

The arithmetic is FP32, over pieces small enough for a CPU's cache; sums over a window are FP64.
The KL of logits equal to the reference's is exactly zero: the difference of logits is taken
first, then weighted. A row counts for top-1 when the reference's most likely token is also the
variant's, or as likely as it: BF16 logits are often tied.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

_CPU_PIECE_ROWS = 16


@dataclass(frozen=True)
class WindowMetrics:
    """Sums over the targets of one window; NLL and KL in nats."""

    tokens: int
    nll: float
    kl: float
    top1: int


@dataclass(frozen=True)
class RowMetrics:
    """The same before summing: one value for each row of logits."""

    nll: Float[Tensor, "*lead rows"]
    kl: Float[Tensor, "*lead rows"]
    top1: Bool[Tensor, "*lead rows"]

    def window(self) -> WindowMetrics:
        """The sums, of rows that make up one window."""
        nll, kl = (x.sum(-1, dtype=torch.float64).item() for x in (self.nll, self.kl))
        return WindowMetrics(self.nll.shape[-1], nll, kl, int(self.top1.sum()))


@dataclass(frozen=True)
class ReferencePredictions:
    """What others are compared with: logits, probabilities, log-sum-exp and best token."""

    logits: Shaped[Tensor, "rows vocab"]
    probabilities: Float[Tensor, "rows vocab"]
    logsumexp: Float[Tensor, " rows"]
    best: Int[Tensor, " rows"]


def reference_predictions(logits: Shaped[Tensor, "rows vocab"]) -> ReferencePredictions:
    """What these logits predict, ready for others to be compared with."""
    probabilities = torch.empty_like(logits, dtype=torch.float32)
    lse: list[Tensor] = []
    best: list[Tensor] = []
    for rows in _pieces(logits):
        z = logits[rows].float()
        lse.append(_logsumexp(z, z.amax(-1)))
        best.append(z.argmax(-1))
        torch.sub(z, lse[-1][:, None], out=probabilities[rows]).exp_()
    return ReferencePredictions(logits, probabilities, torch.cat(lse), torch.cat(best))


def compare(
    logits: Shaped[Tensor, "*lead rows vocab"],
    targets: Int[Tensor, " rows"],
    reference: ReferencePredictions,
) -> RowMetrics:
    """Metrics of each row against the reference's; the reference's own KL is exactly 0.

    Args:
        logits: Of one or several variants on the same rows.
        targets: The tokens that came next.
        reference: On the same rows.
    """
    *lead, rows, vocab = logits.shape
    several = logits.reshape(-1, rows, vocab)
    nll = torch.empty(several.shape[:2], device=logits.device)
    kl, top1 = torch.empty_like(nll), torch.empty_like(nll, dtype=torch.bool)
    # On a CPU one variant at a time, so that a piece stays in the cache.
    for v in range(len(several)) if logits.device.type == "cpu" else (slice(None),):
        for r in _pieces(logits):
            z = several[v, r].float()
            peak = z.amax(-1)
            lse = _logsumexp(z, peak)
            nll[v, r] = lse - _at(z, targets[r])
            top1[v, r] = _at(z, reference.best[r]) >= peak
            difference = reference.logits[r].float() - z
            weighted = difference.mul_(reference.probabilities[r]).sum(-1)
            kl[v, r] = weighted + (lse - reference.logsumexp[r])
    shape = (*lead, rows)
    return RowMetrics(nll.view(shape), kl.view(shape), top1.view(shape))


def _pieces(logits: Tensor) -> Iterator[slice]:
    rows = logits.shape[-2]
    step = _CPU_PIECE_ROWS if logits.device.type == "cpu" else rows
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _logsumexp(z: Float[Tensor, "*lead vocab"], peak: Float[Tensor, "*lead"]) -> Tensor:
    return (z - peak[..., None]).exp_().sum(-1).log_().add_(peak)


def _at(z: Float[Tensor, "*lead vocab"], tokens: Int[Tensor, " rows"]) -> Tensor:
    index = tokens.expand(z.shape[:-1])[..., None]
    return z.gather(-1, index)[..., 0]
