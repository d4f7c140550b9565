"""Quantize-dequantize one block, by the definition, in exact arithmetic. Only tests use it.

Every value is a `Fraction`; `f32` rounds where the format says that FP32 arithmetic
happens, `_nearest` finds the element by comparing distances. Nothing here shares a trick
with the kernels: no bits, no magic constants, no vectors.

Source: OCP MX v1.0 sections 5.3.3 and 6.3 (MXFP4); NVIDIA ModelOpt's order of operations
(NVFP4).
"""

import math
from fractions import Fraction

from fp4scope.formats.spec import BlockFormat, ScaleRule

_F32_MAX = Fraction((2 - 2**-23) * 2.0**127)


def _round_even(x: Fraction, quantum: Fraction) -> Fraction:
    # Python's round() on a Fraction is exact and takes ties to even.
    return round(x / quantum) * quantum


def _exponent(x: Fraction) -> int:
    """floor(log2 x) of a positive rational."""
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1


def f32(x: Fraction) -> Fraction:
    """The FP32 number nearest to `x`, ties to even. Overflow is the caller's to rule out."""
    if x == 0:
        return x
    return _round_even(x, Fraction(2) ** (max(_exponent(abs(x)), -126) - 23))


def e4m3(x: Fraction) -> Fraction:
    """The E4M3 number nearest to `x`, which is in [0, 448]."""
    if x == 0:
        return x
    return _round_even(x, Fraction(2) ** (max(_exponent(x), -6) - 3))


def nearest_element(y: Fraction, fmt: BlockFormat) -> Fraction:
    """The element nearest to `y`, ties to the even code, saturating; sign kept."""
    grid = [Fraction(m) for m in fmt.element.magnitudes]
    code = min(range(len(grid)), key=lambda c: (abs(abs(y) - grid[c]), c % 2))
    return -grid[code] if y < 0 else grid[code]


def block_scale(amax: Fraction, fmt: BlockFormat, tensor_amax: Fraction) -> Fraction:
    """The number that a block's elements are multiplied by on the way back."""
    if amax == 0:
        return Fraction(0)
    if fmt.rule is ScaleRule.TENSOR:
        g = f32(tensor_amax / 2688)
        if g == 0:
            return Fraction(0)
        s = e4m3(min(f32(amax / f32(6 * g)), Fraction(448)))
        return f32(s * g)
    emax = fmt.element.max_exponent
    if fmt.rule is ScaleRule.RCEIL:
        q = f32(amax / Fraction(fmt.element.max))
        e = -127 if q == 0 else _exponent(q) + (Fraction(2) ** _exponent(q) != q)
    else:
        e = _exponent(amax) - emax
        if fmt.rule is ScaleRule.EVEN and amax / Fraction(2) ** _exponent(amax) >= Fraction(7, 4):
            e += 1
    return Fraction(2) ** max(-127, min(e, 127))


def fake_quantize_block(
    values: list[float], fmt: BlockFormat, tensor_amax: float | None = None
) -> list[float]:
    """One block of finite FP32 values, quantized and dequantized in FP32.

    Args:
        values: At most `fmt.block_size` values of one row; missing ones count as zeros.
        fmt: The format.
        tensor_amax: Amax of the tensor that the block belongs to (NVFP4 only); by default
            the block's own.
    """
    exact = [Fraction(v) for v in values]
    amax = max((abs(v) for v in exact), default=Fraction(0))
    scale = block_scale(amax, fmt, amax if tensor_amax is None else Fraction(tensor_amax))
    out: list[float] = []
    for value, x in zip(values, exact, strict=True):
        if scale == 0:
            y = Fraction(0)
        else:
            y = x / scale
            # MX divides by a power of two and NVFP4 in FP32: both round only in FP32.
            y = f32(y) if abs(y) < _F32_MAX else y
            y = nearest_element(y, fmt) * scale
            y = min(max(f32(y), -_F32_MAX), _F32_MAX)
        out.append(math.copysign(float(abs(y)), value))
    return out
