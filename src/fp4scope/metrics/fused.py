"""NLL, KL and top-1 of rows of logits on CUDA: one Triton kernel that reads each logit once."""

# pyright: basic

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Shaped
from torch import Tensor

_TILE = 1024
_WARPS = 4
# Exponentials of this much and their sums stay inside FP32.
_FAR = tl.constexpr(60.0)
_LOG2E = tl.constexpr(1.4426950408889634)


def compare_rows(
    logits: Shaped[Tensor, "variants rows vocab"],
    targets: Int[Tensor, " rows"],
    reference: Shaped[Tensor, "rows vocab"],
    reference_logsumexp: Float[Tensor, " rows"] | None,
    best: Int[Tensor, " rows"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """NLL, KL, top-1 agreement and log-sum-exp of each row (variants, rows).

    Args:
        logits: The last axis contiguous.
        targets: The tokens that came next.
        reference: Logits to compare with.
        reference_logsumexp: Of these; without it the KL means nothing.
        best: The reference's most likely token.
    """
    variants, rows, vocab = logits.shape
    shape = (variants, rows)
    nll, kl, logsumexp = (torch.empty(shape, device=logits.device) for _ in range(3))
    top1 = torch.empty(shape, dtype=torch.bool, device=logits.device)
    with torch.cuda.device_of(logits):
        # Variants of one row together: they share the reference's row in the cache.
        launch: Any = _kernel[(variants, rows)]
        launch(
            logits,
            targets,
            reference,
            # One kernel for both, so that the same logits have the same log-sum-exp to the bit.
            nll.new_zeros(rows) if reference_logsumexp is None else reference_logsumexp,
            best,
            nll,
            kl,
            top1.view(torch.uint8),
            logsumexp,
            rows,
            vocab,
            logits.stride(0),
            logits.stride(1),
            reference.stride(0),
            TILE=_TILE,
            num_warps=_WARPS,
        )
    return nll, kl, top1, logsumexp


@triton.jit
@no_type_check
def _kernel(
    logits, targets, reference, reference_logsumexp, best, nll, kl, top1, logsumexp,
    rows, vocab, variant_stride, row_stride, reference_stride, TILE: tl.constexpr,
):  # fmt: skip
    variant, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    mine = logits + variant * variant_stride + row * row_stride
    theirs = reference + row * reference_stride
    most, other = tl.load(best + row), tl.load(reference_logsumexp + row)
    # Exponentials are relative to the reference's largest logit: no tile waits for a maximum.
    shift = tl.load(theirs + most).to(tl.float32)
    peaks = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    divergence = tl.zeros((TILE,), tl.float32)
    for start in range(0, vocab, TILE):
        column = start + tl.arange(0, TILE)
        inside = column < vocab
        z = tl.load(mine + column, mask=inside, other=float("-inf")).to(tl.float32)
        r = tl.load(theirs + column, mask=inside, other=float("-inf")).to(tl.float32)
        peaks = tl.maximum(peaks, z)
        total += tl.exp2(z * _LOG2E - shift * _LOG2E)
        probability = tl.exp2(r * _LOG2E - other * _LOG2E)
        # 0 log 0 is 0: outside, and where the reference's logit is -inf.
        divergence += tl.where(probability > 0, probability * (r - z), 0.0)
    peak = tl.max(peaks, axis=0)
    if tl.abs(peak - shift) > _FAR:  # once more, relative to its own
        shift = peak
        total = tl.zeros((TILE,), tl.float32)
        for start in range(0, vocab, TILE):
            column = start + tl.arange(0, TILE)
            z = tl.load(mine + column, mask=column < vocab, other=float("-inf")).to(tl.float32)
            total += tl.exp2(z * _LOG2E - shift * _LOG2E)
    mine_logsumexp = tl.log(tl.sum(total, axis=0)) + shift
    place = variant * rows + row
    target = tl.load(mine + tl.load(targets + row)).to(tl.float32)
    likely = tl.load(mine + most).to(tl.float32)
    tl.store(nll + place, mine_logsumexp - target)
    tl.store(top1 + place, (likely >= peak).to(tl.uint8))
    tl.store(logsumexp + place, mine_logsumexp)
    tl.store(kl + place, tl.sum(divergence, axis=0) + (mine_logsumexp - other))
