"""Quantize-dequantize to HiF4 on CUDA: one Triton kernel, bit for bit as `eager`."""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from fp4scope.formats.spec import HIF4_BLOCK
from fp4scope.kernels import fp32
from fp4scope.kernels.fused import INF, MAGNITUDE

_TILE = 16
_WARPS = 2
_SEVENTH = tl.constexpr(float(torch.tensor(1 / 7, dtype=torch.bfloat16)))


def qdq(
    x: Float[Tensor, "rows cols"],
    out: Float[Tensor, "rows cols"],
    nonfinite: Bool[Tensor, ""] | None,
) -> None:
    """As `fused.qdq`."""
    blocks = x.numel() // HIF4_BLOCK
    with torch.cuda.device_of(x):
        launch: Any = _kernel[(triton.cdiv(blocks, _TILE),)]
        launch(
            x,
            out,
            x if nonfinite is None else nonfinite.view(torch.uint8),
            blocks,
            FLAGGED=nonfinite is not None,
            TILE=_TILE,
            LIMIT=fp32.bits(torch.finfo(x.dtype).max),
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )


@triton.jit
@no_type_check
def _kernel(x, out, flag, blocks, FLAGGED: tl.constexpr, TILE: tl.constexpr, LIMIT: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    inside = block < tl.minimum(blocks - first, TILE).to(tl.int32)
    offsets = first * 64 + block[:, None] * 64 + tl.arange(0, 64)[None, :]
    loaded = tl.load(x + offsets, mask=inside[:, None], other=0.0)
    bits = loaded.to(tl.float32).to(tl.int32, bitcast=True)
    magnitude_bits = bits & MAGNITUDE

    fours = tl.max(tl.reshape(magnitude_bits, (TILE, 16, 4)), axis=2)
    eights = tl.max(tl.reshape(fours, (TILE, 8, 2)), axis=2)
    peak = tl.max(eights, axis=1)
    if FLAGGED:
        tl.store(flag + tl.zeros_like(peak), 1, mask=peak >= INF)

    s = _rounded(_number(peak) * _SEVENTH, 16)
    s = _rounded(tl.minimum(tl.maximum(s, 2.0**-48), 49152.0), 21)
    r = _rounded(tl.div_rn(tl.full([TILE], 1.0, tl.float32), s), 16)[:, None]

    half8 = tl.where(_number(eights) * r >= 4.0, 0.5, 1.0)
    half8 = tl.reshape(tl.broadcast_to(half8[:, :, None], (TILE, 8, 2)), (TILE, 16))
    inverse = half8 * tl.where(_number(fours) * r * half8 >= 2.0, 0.5, 1.0)
    scale = tl.div_rn(tl.broadcast_to(s[:, None], (TILE, 16)), inverse)
    inverse = tl.reshape(tl.broadcast_to(inverse[:, :, None], (TILE, 16, 4)), (TILE, 64))
    scale = tl.reshape(tl.broadcast_to(scale[:, :, None], (TILE, 16, 4)), (TILE, 64))

    y = _number(magnitude_bits) * inverse * r
    q = tl.minimum(tl.floor(y * 4.0 + 0.5) * 0.25, 1.75)
    product = tl.minimum((q * scale).to(tl.int32, bitcast=True), LIMIT)
    result = _number(product | (bits & (-1 - MAGNITUDE)))
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
@no_type_check
def _number(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _rounded(x, DROPPED: tl.constexpr):
    """Magnitudes without their last so many bits, rounded to nearest, ties to even."""
    bits = x.to(tl.int32, bitcast=True)
    bits += (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)
    return ((bits >> DROPPED) << DROPPED).to(tl.float32, bitcast=True)
