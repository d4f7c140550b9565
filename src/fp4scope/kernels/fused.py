"""Quantize-dequantize on CUDA: one Triton kernel, every tensor read once and written once.

This one has the formats with blocks of 16 or 32; `fused_spans` and `fused_hif4` have the others.

The results are those of `eager`, bit for bit. What keeps them so: divisions that are IEEE's or
proved to round alike (Triton's `/` is approximate on a GPU, though exact in its interpreter), and
no fused multiply-add that is not written.

The integer and comparison units are the first to be full, which is why elements are rounded with
multiply-adds and as much as can be is done once a tensor.
"""

from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from fp4scope.formats import BlockFormat
from fp4scope.formats.spec import E4M3, MSE_ABOVE, MSE_BELOW, ElementFormat
from fp4scope.kernels import fp32

INF = tl.constexpr(fp32.INF)
MAGNITUDE = tl.constexpr(fp32.MAGNITUDE)
_HALF = tl.constexpr(1 << 22)
_LAST = tl.constexpr((1 << 23) - 1)
TINY = tl.constexpr(2.0**-90)
ABOVE = tl.constexpr(MSE_ABOVE)
TRIED = tl.constexpr(MSE_ABOVE + 1 + MSE_BELOW)
_TILE_ELEMENTS = 1024
_WARPS = 2


def qdq(
    x: Float[Tensor, "rows cols"],
    fmt: BlockFormat,
    amax: Float[Tensor, " parts"] | None,
    out: Float[Tensor, "rows cols"],
    nonfinite: Bool[Tensor, ""] | None,
    gate: Float[Tensor, "rows cols"] | None = None,
    activation: str = "",
) -> None:
    """Quantize and dequantize whole blocks.

    Args:
        x: Contiguous; FP32, BF16 or FP16.
        fmt: The format.
        amax: FP32, of the whole tensor or of each row, for formats with a tensor scale.
        out: Where to write; may be `x`.
        nonfinite: Set to true if what is quantized holds NaN or Inf.
        gate: Like `x`. With it activation(gate) * x is quantized.
        activation: `silu` or `gelu_tanh`.
    """
    size = fmt.block_size
    blocks, tile = x.numel() // size, _TILE_ELEMENTS // size
    with torch.cuda.device_of(x):
        launch: Any = _kernel[(triton.cdiv(blocks, tile),)]
        launch(
            x,
            x if gate is None else gate,
            out,
            x if amax is None else amax,
            x if nonfinite is None else nonfinite.view(torch.uint8),
            blocks,
            x.shape[1] // size,
            FLAGGED=nonfinite is not None,
            ONE_AMAX=amax is None or amax.numel() == 1,
            ACTIVATION="" if gate is None else activation,
            SIZE=size,
            TILE=tile,
            **_constants(fmt, x.dtype),
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )


@cache
def _constants(fmt: BlockFormat, dtype: torch.dtype) -> dict[str, Any]:
    """What makes the kernel that of a format."""
    zero, carry, emax = fp32.scale_byte(fmt) if not fmt.uses_tensor_amax else (0, 0, 0)
    return {
        "LIMIT": fp32.bits(torch.finfo(dtype).max),
        "SHORT": dtype != torch.float32,
        "RULE": fmt.rule.name,
        "ZERO": zero,
        "CARRY": carry,
        "EMAX": emax,
        "ELEMENT_MAX": fmt.element.max,
        "DIVISOR": fmt.tensor_divisor,
        "ROUNDING": rounding(fmt.element),
        "SCALE_ROUNDING": rounding(E4M3),
        "INTEGER": fmt.element.integer,
    }


def rounding(element: ElementFormat) -> tuple[float, float, float]:
    """Constants of `to_element`: the largest, 1.5 times the smallest normal, 2^(23 - m)."""
    factor = 2.0 ** (fp32.MANTISSA_BITS - element.mantissa_bits)
    return element.max, 1.5 * 2.0**element.min_exponent, factor


@triton.jit
@no_type_check
def _kernel(
    x, gate, out, amax, flag, blocks, blocks_a_row,
    FLAGGED: tl.constexpr, ONE_AMAX: tl.constexpr, ACTIVATION: tl.constexpr,
    SIZE: tl.constexpr, TILE: tl.constexpr, LIMIT: tl.constexpr, SHORT: tl.constexpr,
    RULE: tl.constexpr, ZERO: tl.constexpr, CARRY: tl.constexpr, EMAX: tl.constexpr,
    ELEMENT_MAX: tl.constexpr, DIVISOR: tl.constexpr, ROUNDING: tl.constexpr,
    SCALE_ROUNDING: tl.constexpr, INTEGER: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    inside = block < tl.minimum(blocks - first, TILE).to(tl.int32)
    offsets = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    loaded = tl.load(x + first * SIZE + offsets, mask=inside[:, None], other=0.0)
    if ACTIVATION != "":
        entering = tl.load(gate + first * SIZE + offsets, mask=inside[:, None], other=0.0)
        active = _activated(entering.to(tl.float32), ACTIVATION, SHORT).to(loaded.dtype)
        loaded = (active.to(tl.float32) * loaded.to(tl.float32)).to(loaded.dtype)

    tiny = False
    if RULE == "TENSOR" or RULE == "FOUR_OVER_SIX" or RULE == "MSE":
        if ONE_AMAX:
            g = tl.div_rn(tl.load(amax), DIVISOR)
            tiny = g < TINY
            g += tl.zeros([TILE], tl.float32)
        else:
            row = (first + block) // blocks_a_row
            g = tl.div_rn(tl.load(amax + row, mask=inside, other=0.0), DIVISOR)
            tiny = True
        # Away from the small end of FP32, if the quotient is not far below every tie.
        up = tl.where(g < TINY, 2.0**60, 1.0)

    bits = loaded.to(tl.float32).to(tl.int32, bitcast=True)
    magnitude = (bits & MAGNITUDE).to(tl.float32, bitcast=True)
    if RULE == "TENSOR" or RULE == "FOUR_OVER_SIX" or RULE == "MSE":
        magnitude *= up[:, None]
    peak_bits = tl.max(magnitude.to(tl.int32, bitcast=True), axis=1)
    if FLAGGED:
        seen = peak_bits
        if tiny:  # times 2^60, finite numbers may have become infinite
            seen = tl.max(bits & MAGNITUDE, axis=1)
        tl.store(flag + tl.zeros_like(seen), 1, mask=seen >= INF)

    if RULE == "TENSOR" or RULE == "FOUR_OVER_SIX" or RULE == "MSE":
        peak = peak_bits.to(tl.float32, bitcast=True)
        largest = g * ELEMENT_MAX * up
        if RULE == "TENSOR":
            s = to_element(quotient(peak, largest, SHORT), SCALE_ROUNDING)
        else:
            ratio = tl.div_rn(peak, largest)
            if RULE == "MSE":
                s = _least_error(magnitude, ratio, g, up, SHORT, ROUNDING, SCALE_ROUNDING)
            else:
                s = _smaller_error(magnitude, ratio, g, up, SHORT, ROUNDING, SCALE_ROUNDING)
        scale = s * g
        y = quotient(magnitude, (scale * up)[:, None], SHORT)
    else:
        byte = tl.where(peak_bits <= ZERO, 0, ((peak_bits + CARRY) >> 23) - EMAX)
        scale = two_to(byte)
        y = magnitude * two_to(254 - byte)[:, None]

    product = (to_element(y, ROUNDING) * scale[:, None]).to(tl.int32, bitcast=True)
    if RULE != "FLOOR":
        product = tl.minimum(product, LIMIT)
    sign = bits & (-1 - MAGNITUDE)
    if INTEGER:
        sign = tl.where(product == 0, 0, sign)
    result = (product | sign).to(tl.float32, bitcast=True).to(out.dtype.element_ty)
    tl.store(out + first * SIZE + offsets, result, mask=inside[:, None])


@triton.jit
@no_type_check
def to_element(y, ROUNDING: tl.constexpr):
    """Magnitudes to the nearest element of m mantissa bits, ties to even, saturating.

    In the binade of 2^e elements are s = 2^(e - m) apart, and that is the last place of the FP32
    numbers in the binade of t 2^(23 - m), for t = y. So the difference t 2^(23 - m) - y, rounded
    once, is rounded to a multiple of s; what it lacks to t 2^(23 - m), exactly, is y rounded. A tie
    goes to the even one, because t 2^(23 - m) is an even multiple of s if y is a tie. Where the
    difference falls into the binade below, y is within 2^m units above 2^e, and goes there as well.
    Up to 1.5 times the smallest normal, t is that: the spacing stays the same, and so does the
    binade of the difference.
    """
    y = tl.minimum(y, ROUNDING[0])
    t = tl.maximum(y, ROUNDING[1])
    return tl.fma(t, ROUNDING[2], tl.fma(t, -ROUNDING[2], y))


@triton.jit
@no_type_check
def _activated(x, ACTIVATION: tl.constexpr, SHORT: tl.constexpr):
    """SiLU, x times the logistic function of x; GELU by tanh is that of something else."""
    t = x if ACTIVATION == "silu" else 1.5957691216057308 * (x + 0.044715 * x * x * x)
    below = 1.0 + tl.exp(-t)
    return x / below if SHORT else tl.div_rn(x, below)


@triton.jit
@no_type_check
def two_to(byte):
    """2^(byte - 127)."""
    return tl.maximum(byte << 23, _HALF).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def quotient(x, d, SHORT: tl.constexpr):
    """A quotient x / d on the side of every tie b of E4M3 and the elements where IEEE's is.

    IEEE's own for FP32. For BF16 and FP16, whose x have at most 8 or 11 significant bits (`SHORT`),
    it is enough, if d is not near the small end of FP32: `inverse` is within 2^-20 of 1 / d,
    relatively (the root is, to about 2^-23), so with the residual of the first quotient the second
    is within 2^-39 of x / d, and rounded. It is on IEEE's side unless x / d is as near to a
    midpoint of b and a number beside it.

    In integers, x = X 2^i, d = D 2^j, b = B 2^k, 2^23 <= D < 2^24, B odd and of L <= 5 bits, and
    the midpoint (A + s) 2^m with A = B 2^(25 - L) and s = 1 or -1, but below B = 1 A = 2^25 and
    s = -1. Near it X 2^l = (A + s) D + r with abs(r) < 2^10, and l >= 37, as the right side is
    above 2^47. All but s D + r is divisible by 2^(25 - L), so this is q 2^(25 - L), and
    D = s (q 2^(25 - L) - r). Then X 2^(l - 25 + L) = A D / 2^(25 - L) + q, where all but
    q - s r A / 2^(25 - L) is divisible by 2^(12 + L), which is more than it can be. So it is 0, and
    D = (A - s) r. As 0 < D < 2^24, that is A = 2^24, s = 1, r = 1: D = 2^24 - 1, near b = 2^k only.

    With this D, x / d is c (1 + 2^-24 + 2^-48 + ...) for a c of 11 bits, a trace above halfway if c
    is a power of two; IEEE takes it to the unit after c. With D - 1 it comes to that or the next
    unit, away from midpoints, and no tie lies between.

    A d of 0 makes NaN or infinity, which `to_element` takes to the largest element, to be
    multiplied by a scale of 0.
    """
    if not SHORT:
        return tl.div_rn(x, d)
    bits = d.to(tl.int32, bitcast=True)
    d = (bits - ((~bits & _LAST) == 0).to(tl.int32)).to(tl.float32, bitcast=True)
    root = tl.rsqrt(d)
    inverse = root * root
    y = x * inverse
    return tl.fma(tl.fma(-d, y, x), inverse, y)


@triton.jit
@no_type_check
def _smaller_error(
    x, ratio, g, up, SHORT: tl.constexpr, ROUNDING: tl.constexpr, SCALE_ROUNDING: tl.constexpr
):
    """Four over six: the scale with the smaller squared error, that for 6 on a tie."""
    exact = tl.div_rn(x, (g * up)[:, None])
    six, four = to_element(ratio, SCALE_ROUNDING), to_element(ratio * 1.5, SCALE_ROUNDING)
    error_six = _error(x, six, six * g, up, exact, SHORT, ROUNDING)
    error_four = _error(x, four, four * g, up, exact, SHORT, ROUNDING)
    return tl.where(error_four < error_six, four, six)


@triton.jit
@no_type_check
def _least_error(
    x, ratio, g, up, SHORT: tl.constexpr, ROUNDING: tl.constexpr, SCALE_ROUNDING: tl.constexpr
):
    """The scale with the least squared error of those around that for 6, the largest on a tie."""
    exact = tl.div_rn(x, (g * up)[:, None])
    six = to_element(ratio, SCALE_ROUNDING)
    code = (six.to(tl.int32, bitcast=True) >> 20) - 960
    code = tl.where(six < 2.0**-6, (six * 512.0).to(tl.int32), code)
    best = _e4m3_number(code + ABOVE)
    least = _error(x, best, best * g, up, exact, SHORT, ROUNDING)
    for step in range(1, TRIED):
        s = _e4m3_number(code + ABOVE - step)
        error = _error(x, s, s * g, up, exact, SHORT, ROUNDING)
        best = tl.where(error < least, s, best)
        least = tl.where(error < least, error, least)
    return best


@triton.jit
@no_type_check
def _e4m3_number(code):
    """The E4M3 number of a code, or the nearest end of E4M3 for what is beyond."""
    code = tl.minimum(tl.maximum(code, 0), 126)
    normal = ((code + 960) << 20).to(tl.float32, bitcast=True)
    return tl.where(code < 8, code.to(tl.float32) * 2.0**-9, normal)


@triton.jit
@no_type_check
def _error(x, s, scale, up, exact, SHORT: tl.constexpr, ROUNDING: tl.constexpr):
    """Squared error of each block, added in halves as `eager` does."""
    q = to_element(quotient(x, (scale * up)[:, None], SHORT), ROUNDING)
    difference = q * tl.where(scale == 0, 0.0, s)[:, None] - exact
    error = difference * difference
    tile: tl.constexpr = error.shape[0]
    half: tl.constexpr = error.shape[1] // 2
    error = tl.sum(tl.reshape(error, (tile, 2, half)), axis=1)
    error = tl.sum(tl.reshape(error, (tile, 2, half // 2)), axis=1)
    error = tl.sum(tl.reshape(error, (tile, 2, half // 4)), axis=1)
    return tl.sum(error, axis=1)
