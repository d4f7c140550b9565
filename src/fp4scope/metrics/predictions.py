"""NLL, KL(reference || variant) and top-1 agreement, row by row of logits.

The arithmetic is FP32, over pieces small enough for a CPU's cache, or in one Triton kernel on CUDA;
sums over a window are FP64.
The KL of logits equal to the reference's is exactly zero: the difference of logits is taken
first, then weighted; a token that the reference never predicts (a logit of -inf) adds nothing. A
row counts for top-1 when the reference's most likely token is also the variant's, or as likely as
it: BF16 logits are often tied.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped, UInt8
from torch import Tensor

from fp4scope.kernels import backend
from fp4scope.metrics.strata import Strata, sums_over
from fp4scope.stats.inference.tails import counts_in_bins

_CPU_PIECE_ROWS = 16


@dataclass(frozen=True)
class Spread:
    """How KL spreads over the targets of one window: the largest, and the targets in each bin."""

    largest: float
    bins: list[int]


@dataclass(frozen=True)
class WindowMetrics:
    """Sums over the targets of one window; NLL and KL in nats.

    `spread` and `strata` where they are wanted. `routing`: at each router what is left of the
    full-precision model's choices, NaN where that is not known; None of a model without routers.
    """

    tokens: int
    nll: float
    kl: float
    top1: int
    spread: Spread | None = field(default=None, compare=False)
    strata: Strata | None = field(default=None, compare=False)
    routing: Float64[np.ndarray, "routers kinds"] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class RowMetrics:
    """The same before summing: one value for each row of logits.

    `confidence` is the probability that the reference gives to its most likely token, `reference`
    its NLL.
    """

    nll: Float[Tensor, "variants rows"]
    kl: Float[Tensor, "variants rows"]
    top1: Bool[Tensor, "variants rows"]
    confidence: Float[Tensor, "variants rows"]
    reference: Float[Tensor, "variants rows"]

    @classmethod
    def empty(cls, variants: int, rows: int, device: torch.device) -> "RowMetrics":
        """Room for so many values."""
        nll, kl, sure, plain = (torch.empty(variants, rows, device=device) for _ in range(4))
        top1 = torch.empty(variants, rows, dtype=torch.bool, device=device)
        return cls(nll, kl, top1, sure, plain)

    def put(self, variants: slice, rows: slice, other: "RowMetrics") -> None:
        """Fill in a part."""
        self.nll[variants, rows] = other.nll
        self.kl[variants, rows] = other.kl
        self.top1[variants, rows] = other.top1
        self.confidence[variants, rows] = other.confidence
        self.reference[variants, rows] = other.reference

    def leaving(self) -> Callable[[], "RowMetrics"]:
        """The same on the host: the copy starts now, and what is returned waits for it."""
        values = [getattr(self, column.name) for column in fields(self)]
        copies = [x.to("cpu", non_blocking=True) for x in values]
        done = None
        if self.nll.is_cuda:
            done = torch.cuda.Event()
            done.record()

        def arrived() -> RowMetrics:
            if done is not None:
                done.synchronize()
            return RowMetrics(*copies)

        return arrived

    def windows(
        self,
        whole: Container[int] = (),
        strata: UInt8[np.ndarray, "kinds rows"] | None = None,
    ) -> list[WindowMetrics]:
        """The sums of each variant's rows, which make up one window.

        Args:
            whole: Variants of which it is also told how KL spreads over rows, and over strata.
            strata: Those of each row.
        """
        rows = self.nll.shape[-1]
        by_row = self.kl.cpu().numpy()
        losses = self.nll.cpu().numpy()
        nll, kl = (x.astype(np.float64).sum(-1) for x in (losses, by_row))
        top1 = self.top1.cpu().numpy().sum(-1)
        return [
            WindowMetrics(
                rows,
                float(nll[v]),
                float(kl[v]),
                int(top1[v]),
                Spread(float(own.max()), counts_in_bins(own)) if v in whole else None,
                self._sums(strata, v) if v in whole and strata is not None else None,
            )
            for v, own in enumerate(by_row)
        ]

    def _sums(self, strata: UInt8[np.ndarray, "kinds rows"], variant: int) -> Strata:
        columns = (self.confidence, self.nll, self.kl, self.reference)
        return sums_over(strata, *(each[variant].cpu().numpy() for each in columns))


@dataclass(frozen=True)
class ReferencePredictions:
    """What others are compared with: logits, probabilities, log-sum-exp and best token.

    On CUDA the probabilities are made where they are used; `confidence` is that of the best token.
    """

    logits: Shaped[Tensor, "rows vocab"]
    probabilities: Float[Tensor, "rows vocab"] | None
    logsumexp: Float[Tensor, " rows"]
    best: Int[Tensor, " rows"]

    def nll(self, targets: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Of the tokens that came next."""
        return self.logsumexp - _at(self.logits, targets).float()

    @property
    def confidence(self) -> Float[Tensor, " rows"]:
        return (_at(self.logits, self.best).float() - self.logsumexp).exp_()


def reference_predictions(logits: Shaped[Tensor, "rows vocab"]) -> ReferencePredictions:
    """What these logits predict, ready for others to be compared with."""
    if _is_fused(logits):
        from fp4scope.metrics import fused

        most = logits.argmax(-1)
        *_, logsumexp = fused.compare_rows(logits[None], most, logits, None, most)
        return ReferencePredictions(logits, None, logsumexp[0], most)
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
    logits: Shaped[Tensor, "variants rows vocab"],
    targets: Int[Tensor, " rows"],
    reference: ReferencePredictions,
) -> RowMetrics:
    """Metrics of each row against the reference's; the reference's own KL is exactly 0.

    Args:
        logits: Of variants on the same rows.
        targets: The tokens that came next.
        reference: On the same rows.
    """
    if reference.probabilities is None:
        from fp4scope.metrics import fused

        found = fused.compare_rows(
            logits, targets, reference.logits, reference.logsumexp, reference.best
        )
        own = (reference.confidence, reference.nll(targets))
        return RowMetrics(*found[:3], *(each.expand_as(found[0]) for each in own))
    out = RowMetrics.empty(logits.shape[0], logits.shape[1], logits.device)
    out.confidence[:] = reference.confidence
    out.reference[:] = reference.nll(targets)
    # On a CPU one variant at a time, so that a piece stays in the cache.
    for v in range(len(logits)) if logits.device.type == "cpu" else (slice(None),):
        for r in _pieces(logits):
            z = logits[v, r].float()
            peak = z.amax(-1)
            lse = _logsumexp(z, peak)
            out.nll[v, r] = lse - _at(z, targets[r])
            out.top1[v, r] = _at(z, reference.best[r]) >= peak
            difference = reference.logits[r].float() - z
            # 0 log 0 is 0, also where a logit is -inf; NaN logits show in the log-sum-exp.
            weighted = difference.mul_(reference.probabilities[r]).nansum(-1)
            out.kl[v, r] = weighted + (lse - reference.logsumexp[r])
    return out


def _is_fused(logits: Tensor) -> bool:
    return backend(logits.device) == "triton"


def _pieces(logits: Tensor) -> Iterator[slice]:
    rows = logits.shape[-2]
    step = _CPU_PIECE_ROWS if logits.device.type == "cpu" else rows
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _logsumexp(z: Float[Tensor, "*lead vocab"], peak: Float[Tensor, "*lead"]) -> Tensor:
    return (z - peak[..., None]).exp_().sum(-1).log_().add_(peak)


def _at(z: Shaped[Tensor, "*lead vocab"], tokens: Int[Tensor, " rows"]) -> Tensor:
    index = tokens.expand(z.shape[:-1])[..., None]
    return z.gather(-1, index)[..., 0]
