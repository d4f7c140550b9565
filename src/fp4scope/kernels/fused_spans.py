"""Quantize-dequantize on CUDA where a row, a square or a long block shares a scale: FP8.

One Triton kernel, bit for bit as `eager`. A program has a few spans, or one long one that it reads
twice, piece by piece: once for its amax, and once more, from a cache, for its values.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from fp4scope.formats import BlockFormat, ScaleRule
from fp4scope.kernels import fp32
from fp4scope.kernels.fused import INF, MAGNITUDE, TINY, quotient, rounding, to_element, two_to

_CHUNK = 1024
_WARPS = 2


def qdq(
    x: Float[Tensor, "rows cols"],
    size: int,
    fmt: BlockFormat,
    amax: Float[Tensor, " parts"] | None,
    out: Float[Tensor, "rows cols"],
    nonfinite: Bool[Tensor, ""] | None,
) -> None:
    """As `fused.qdq`, of formats that are `is_scaled_by_amax`; `size` numbers share a scale."""
    spans = x.numel() // size
    chunk = min(_CHUNK, triton.next_power_of_2(size))
    tile = _CHUNK // chunk
    powers = fmt.rule not in (ScaleRule.AMAX, ScaleRule.ONE)
    zero, carry, emax = fp32.scale_byte(fmt) if powers else (0, 0, 0)
    with torch.cuda.device_of(x):
        launch: Any = _kernel[(triton.cdiv(spans, tile),)]
        launch(
            x,
            out,
            x if amax is None else amax,
            x if nonfinite is None else nonfinite.view(torch.uint8),
            spans,
            x.shape[1] // size,
            size,
            FLAGGED=nonfinite is not None,
            ONE_AMAX=amax is None or amax.numel() == 1,
            TILE=tile,
            CHUNK=chunk,
            LIMIT=fp32.bits(torch.finfo(x.dtype).max),
            SHORT=x.dtype != torch.float32,
            HOW="POWER" if powers else "AMAX" if amax is None else "GIVEN",
            ZERO=zero,
            CARRY=carry,
            EMAX=emax,
            DIVISOR=fmt.element.max,
            ROUNDING=rounding(fmt.element),
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )


@triton.jit
@no_type_check
def _kernel(
    x, out, amax, flag, spans, spans_a_row, size,
    FLAGGED: tl.constexpr, ONE_AMAX: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    LIMIT: tl.constexpr, SHORT: tl.constexpr, HOW: tl.constexpr, ZERO: tl.constexpr,
    CARRY: tl.constexpr, EMAX: tl.constexpr, DIVISOR: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * TILE
    span = tl.arange(0, TILE)
    inside = span < tl.minimum(spans - first, TILE).to(tl.int32)
    starts = (first + span) * size
    within = tl.arange(0, CHUNK)

    peak = tl.zeros([TILE], tl.int32)
    if HOW != "GIVEN" or FLAGGED:
        for at in range(0, size, CHUNK):
            mask = inside[:, None] & (at + within < size)[None, :]
            loaded = tl.load(x + starts[:, None] + (at + within)[None, :], mask=mask, other=0.0)
            bits = loaded.to(tl.float32).to(tl.int32, bitcast=True) & MAGNITUDE
            peak = tl.maximum(peak, tl.max(bits, axis=1))
    if FLAGGED:
        tl.store(flag + tl.zeros_like(peak), 1, mask=peak >= INF)

    if HOW == "GIVEN":
        if ONE_AMAX:
            scale = tl.div_rn(tl.load(amax), DIVISOR) + tl.zeros([TILE], tl.float32)
        else:
            row = (first + span) // spans_a_row
            scale = tl.div_rn(tl.load(amax + row, mask=inside, other=0.0), DIVISOR)
    elif HOW == "AMAX":
        scale = tl.div_rn(peak.to(tl.float32, bitcast=True), DIVISOR)
    else:
        scale = two_to(tl.where(peak <= ZERO, 0, ((peak + CARRY) >> 23) - EMAX))

    # Away from the small end of FP32, as `quotient` wants it.
    up = tl.where(scale < TINY, 2.0**60, 1.0)
    divisor = (scale * up)[:, None]
    for at in range(0, size, CHUNK):
        mask = inside[:, None] & (at + within < size)[None, :]
        offsets = starts[:, None] + (at + within)[None, :]
        loaded = tl.load(x + offsets, mask=mask, other=0.0)
        bits = loaded.to(tl.float32).to(tl.int32, bitcast=True)
        magnitude = (bits & MAGNITUDE).to(tl.float32, bitcast=True) * up[:, None]
        q = to_element(quotient(magnitude, divisor, SHORT), ROUNDING)
        product = tl.minimum((q * scale[:, None]).to(tl.int32, bitcast=True), LIMIT)
        result = (product | (bits & (-1 - MAGNITUDE))).to(tl.float32, bitcast=True)
        tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)
