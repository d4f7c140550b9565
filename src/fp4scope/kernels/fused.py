"""Quantize-dequantize on CUDA: one Triton kernel, every tensor read once and written once.

The results are those of `eager`, bit for bit. What keeps them so: divisions that are IEEE's or
proved to round alike (Triton's `/` is approximate on a GPU, though exact in its interpreter), and
no fused multiply-add that is not written.
"""

from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from fp4scope.formats import BlockFormat, ScaleRule
from fp4scope.formats.spec import E4M3
from fp4scope.kernels import fp32

_INF = tl.constexpr(fp32.INF)
_MAGNITUDE = tl.constexpr(fp32.MAGNITUDE)
_HALF = tl.constexpr(1 << 22)
_ONE = tl.constexpr(1 << 23)
_STEP = tl.constexpr(1 << 20)
_SMALL = tl.constexpr((127 - 60) << 23)
_LARGE = tl.constexpr((127 + 60) << 23)

_TILE_ELEMENTS = 2048
_WARPS = 2


def qdq(
    x: Float[Tensor, "rows cols"],
    fmt: BlockFormat,
    amax: Float[Tensor, " parts"] | None,
    out: Float[Tensor, "rows cols"],
    nonfinite: Bool[Tensor, ""] | None,
) -> None:
    """Quantize and dequantize whole blocks.

    Args:
        x: Contiguous; FP32, BF16 or FP16.
        fmt: The format.
        amax: FP32, of the whole tensor or of each row, for formats with a tensor scale.
        out: Where to write; may be `x`.
        nonfinite: Set to true if `x` holds NaN or Inf.
    """
    size = fmt.block_size
    blocks, tile = x.numel() // size, _TILE_ELEMENTS // size
    with torch.cuda.device_of(x):
        launch: Any = _kernel[(triton.cdiv(blocks, tile),)]
        launch(
            x,
            out,
            x if amax is None else amax,
            x if nonfinite is None else nonfinite.view(torch.uint8),
            blocks,
            x.shape[1] // size,
            FLAGGED=nonfinite is not None,
            ONE_AMAX=amax is None or amax.numel() == 1,
            SIZE=size,
            TILE=tile,
            **_constants(fmt, x.dtype),
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )


@cache
def _constants(fmt: BlockFormat, dtype: torch.dtype) -> dict[str, Any]:
    """What makes the kernel that of a format."""
    element = fmt.element
    even = fmt.rule is ScaleRule.EVEN
    return {
        "LIMIT": fp32.bits(torch.finfo(dtype).max),
        "RULE": fmt.rule.name,
        "CARRY": (1 << 23) >> (element.mantissa_bits + 1) if even else 0,
        "EMAX": element.max_exponent,
        "ELEMENT_MAX": element.max,
        "DIVISOR": fmt.tensor_divisor,
        "ROUNDING": fp32.rounding(element),
        "SCALE_ROUNDING": fp32.rounding(E4M3),
        "INTEGER": element.integer,
    }


@triton.jit
@no_type_check
def _kernel(
    x, out, amax, flag, blocks, blocks_a_row,
    FLAGGED: tl.constexpr, ONE_AMAX: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr,
    LIMIT: tl.constexpr, RULE: tl.constexpr, CARRY: tl.constexpr, EMAX: tl.constexpr,
    ELEMENT_MAX: tl.constexpr, DIVISOR: tl.constexpr, ROUNDING: tl.constexpr,
    SCALE_ROUNDING: tl.constexpr, INTEGER: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = block < blocks
    offsets = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    value = tl.load(x + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    magnitude = (bits & _MAGNITUDE).to(tl.float32, bitcast=True)
    peak_bits = tl.max(bits & _MAGNITUDE, axis=1)
    peak = peak_bits.to(tl.float32, bitcast=True)

    if RULE == "TENSOR" or RULE == "FOUR_OVER_SIX":
        if ONE_AMAX:
            g = tl.div_rn(tl.load(amax), DIVISOR) + tl.zeros_like(peak)
        else:
            g = tl.div_rn(tl.load(amax + block // blocks_a_row, mask=inside, other=0.0), DIVISOR)
        if RULE == "FOUR_OVER_SIX":
            scale = _smaller_error(magnitude, peak, g, ELEMENT_MAX, ROUNDING, SCALE_ROUNDING)
            hard = tl.zeros_like(peak) == 0
        else:
            largest = g * ELEMENT_MAX
            scale = _round(_refined(peak, largest, 1.0 / largest), SCALE_ROUNDING) * g
            hard = _is_hard(largest) | _is_hard(scale) | (peak_bits > _LARGE)
        if tl.max(hard.to(tl.int32), axis=0) > 0:
            if FLAGGED:
                tl.store(flag, 1, mask=tl.max(peak_bits, axis=0) >= _INF)
            if RULE == "TENSOR":
                ratio = tl.div_rn(peak, _divisor(g * ELEMENT_MAX))
                scale = _round(ratio, SCALE_ROUNDING) * g
            y = tl.div_rn(magnitude, _divisor(scale)[:, None])
            product = (_round(y, ROUNDING) * scale[:, None]).to(tl.int32, bitcast=True)
            product = tl.minimum(product, LIMIT)
        else:
            y = _refined(magnitude, scale[:, None], (1.0 / scale)[:, None])
            product = (_round(y, ROUNDING) * scale[:, None]).to(tl.int32, bitcast=True)
            if LIMIT < _LARGE:
                product = tl.minimum(product, LIMIT)
    else:
        if FLAGGED:
            tl.store(flag, 1, mask=tl.max(peak_bits, axis=0) >= _INF)
        if RULE == "RCEIL":
            over = tl.div_rn(peak, ELEMENT_MAX).to(tl.int32, bitcast=True)
            byte = tl.where(over <= _HALF, 0, (over + (_ONE - 1)) >> 23)
        else:
            byte = tl.maximum(((peak_bits + CARRY) >> 23) - EMAX, 0)
        y = magnitude * _two_to(254 - byte)[:, None]
        product = (_round(y, ROUNDING) * _two_to(byte)[:, None]).to(tl.int32, bitcast=True)
        product = tl.minimum(product, LIMIT)

    sign = bits & (-1 - _MAGNITUDE)
    if INTEGER:
        sign = tl.where(product == 0, 0, sign)
    result = (product | sign).to(tl.float32, bitcast=True)
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
@no_type_check
def _round(y, ROUNDING: tl.constexpr):
    """Magnitudes to the nearest element, ties to even, saturating."""
    bits = tl.minimum(y.to(tl.int32, bitcast=True), ROUNDING[0])
    magic = (tl.maximum(bits & _INF, ROUNDING[1]) + ROUNDING[2]).to(tl.float32, bitcast=True)
    return (bits.to(tl.float32, bitcast=True) + magic) - magic


@triton.jit
@no_type_check
def _divisor(scale):
    return tl.where(scale == 0, float("inf"), scale)


@triton.jit
@no_type_check
def _two_to(byte):
    """2^(byte - 127)."""
    return tl.maximum(byte << 23, _HALF).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _refined(x, d, inverse):
    """A quotient that `_round` takes where it takes the IEEE one, unless `_is_hard(d)`.

    `inverse` may be two units off in its last place; with the residual of the first quotient the
    second is within 2^-43 of x / d, and rounded. The IEEE quotient is a tie of the elements or
    beside one, if x / d is on this or that side of b = m (1 +- 2^-25), where m has at most 5
    significant bits. In integers, x = X 2^i, d = D 2^j, b = B 2^k with X, D < 2^24 and B odd, of
    25 bits: X 2^l - B D is a multiple of 2^20 plus or minus D. So x / d is n 2^-49 from b if D is
    n from every multiple of 2^20, and n = 64 is enough. If D is such a multiple, so is the
    difference, and it is not zero, because X has no room for the 25 bits of B.
    """
    y = x * inverse
    return tl.fma(tl.fma(-d, y, x), inverse, y)


@triton.jit
@no_type_check
def _is_hard(d):
    """Whether `_refined` may go wrong: a significand beside a multiple of 2^20, zero, extremes."""
    bits = d.to(tl.int32, bitcast=True)
    place = (bits + 64) & (_STEP - 1)
    return ((place < 128) & (place != 64)) | (bits < _SMALL) | (bits > _LARGE)


@triton.jit
@no_type_check
def _smaller_error(
    x, peak, g, ELEMENT_MAX: tl.constexpr, ROUNDING: tl.constexpr, SCALE_ROUNDING: tl.constexpr
):
    """Four over six: the scale with the smaller squared error, that for 6 on a tie."""
    exact = tl.div_rn(x, _divisor(g)[:, None])
    ratio = tl.div_rn(peak, _divisor(g * ELEMENT_MAX))
    six, four = _round(ratio, SCALE_ROUNDING), _round(ratio * 1.5, SCALE_ROUNDING)
    error_six = _error(x, six, six * g, exact, ROUNDING)
    error_four = _error(x, four, four * g, exact, ROUNDING)
    return tl.where(error_four < error_six, four, six) * g


@triton.jit
@no_type_check
def _error(x, s, scale, exact, ROUNDING: tl.constexpr):
    """Squared error of each block, added in halves as `eager` does."""
    q = _round(tl.div_rn(x, _divisor(scale)[:, None]), ROUNDING)
    difference = q * s[:, None] - exact
    error = difference * difference
    tile: tl.constexpr = error.shape[0]
    half: tl.constexpr = error.shape[1] // 2
    error = tl.sum(tl.reshape(error, (tile, 2, half)), axis=1)
    error = tl.sum(tl.reshape(error, (tile, 2, half // 2)), axis=1)
    error = tl.sum(tl.reshape(error, (tile, 2, half // 4)), axis=1)
    return tl.sum(error, axis=1)
