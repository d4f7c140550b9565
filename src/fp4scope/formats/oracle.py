"""Quantize-dequantize one block, by the definition, in exact arithmetic. Only tests use it.

Every value is a `Fraction`; `f32` rounds where the format says that FP32 arithmetic
happens, `_nearest` finds the element by comparing distances. Nothing here shares a trick
with the kernels: no bits, no magic constants, no vectors.

Source: OCP MX v1.0 sections 5.3.3 and 6.3 (MX); NVIDIA ModelOpt's order of operations (NVFP4);
arXiv 2512.02010 (four over six); HiFloat4's published GPU emulation.
"""

import math
from bisect import bisect_right
from fractions import Fraction
from functools import cache

from fp4scope.formats.spec import (
    E4M3,
    MSE_ABOVE,
    MSE_BELOW,
    BlockFormat,
    ElementFormat,
    ScaleRule,
)

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


def bf16(x: Fraction) -> Fraction:
    """The BF16 number nearest to `x`, ties to even."""
    return _round_even(x, Fraction(2) ** (max(_exponent(abs(x)), -126) - 7)) if x else x


def e4m3(x: Fraction) -> Fraction:
    """The E4M3 number nearest to `x`, which is in [0, 448]."""
    if x == 0:
        return x
    return _round_even(x, Fraction(2) ** (max(_exponent(x), -6) - 3))


def nearest_element(y: Fraction, fmt: BlockFormat) -> Fraction:
    """The element nearest to `y`, ties to the even code, saturating; sign kept."""
    grid = _grid(fmt.element)
    above = bisect_right(grid, abs(y))
    code = min(
        range(len(grid))[above - 1 : above + 1], key=lambda c: (abs(abs(y) - grid[c]), c % 2)
    )
    return -grid[code] if y < 0 else grid[code]


@cache
def _grid(element: ElementFormat) -> list[Fraction]:
    return [Fraction(m) for m in element.magnitudes]


def tensor_scale(tensor_amax: Fraction, fmt: BlockFormat) -> Fraction:
    """The FP32 scale of a whole tensor."""
    return f32(tensor_amax / Fraction(fmt.tensor_divisor))


def block_scale(amax: Fraction, fmt: BlockFormat, tensor_amax: Fraction) -> Fraction:
    """The number that a block's elements are multiplied by on the way back.

    Where a rule tries several, this is the scale that maps the amax to 6.
    """
    if amax == 0:
        return Fraction(0)
    if fmt.rule is ScaleRule.ONE:
        return Fraction(1)
    if fmt.rule is ScaleRule.AMAX:
        return f32((tensor_amax if fmt.uses_tensor_amax else amax) / Fraction(fmt.element.max))
    if fmt.uses_tensor_amax:
        g = tensor_scale(tensor_amax, fmt)
        return f32(_stored_scale(amax, fmt, g, Fraction(1)) * g)
    emax = fmt.element.max_exponent
    if fmt.rule is ScaleRule.RCEIL:
        q = f32(amax / Fraction(fmt.element.max))
        e = -127 if q == 0 else _exponent(q) + (Fraction(2) ** _exponent(q) != q)
    else:
        e = _exponent(amax) - emax
        if fmt.rule is ScaleRule.EVEN:
            steps = Fraction(2) ** (fmt.element.mantissa_bits + 1)
            e += amax / Fraction(2) ** _exponent(amax) >= 2 - 1 / steps
    return Fraction(2) ** max(-127, min(e, 127))


def _stored_scale(amax: Fraction, fmt: BlockFormat, g: Fraction, factor: Fraction) -> Fraction:
    """The E4M3 scale of a block."""
    if g == 0:
        return Fraction(0)
    ratio = amax / f32(Fraction(fmt.element.max) * g)
    if ratio >= 448:
        return Fraction(448)
    return e4m3(min(f32(f32(ratio) * factor), Fraction(448)))


def _candidates(amax: Fraction, fmt: BlockFormat, g: Fraction) -> list[Fraction]:
    """The E4M3 scales that a rule tries, in its order."""
    six = _stored_scale(amax, fmt, g, Fraction(1))
    if fmt.rule is ScaleRule.FOUR_OVER_SIX:
        return [six, _stored_scale(amax, fmt, g, Fraction(3, 2))]
    every = [Fraction(m) for m in E4M3.magnitudes]
    own = every.index(six)
    return every[max(0, own - MSE_BELOW) : own + MSE_ABOVE + 1][::-1]


def _least_error(
    exact: list[Fraction], amax: Fraction, fmt: BlockFormat, tensor_amax: Fraction
) -> Fraction:
    """The block's scale: of several the one with the least squared error, the first on a tie.

    An |x| / g, or its square, beyond FP32 is Inf in the kernels and a large number here. Either
    way it is a tie: no element is large enough to be seen beside it.
    """
    g = tensor_scale(tensor_amax, fmt)
    if g == 0:
        return Fraction(0)
    found: list[tuple[Fraction, Fraction]] = []
    for s in _candidates(amax, fmt, g):
        scale = f32(s * g)
        errors: list[Fraction] = []
        for x in [*exact, *[Fraction(0)] * (fmt.block_size - len(exact))]:
            q = Fraction(0) if scale == 0 else nearest_element(f32(abs(x) / scale), fmt)
            difference = f32(f32(q * s) - f32(abs(x) / g))
            errors.append(f32(difference * difference))
        while len(errors) > 1:
            half = len(errors) // 2
            errors = [f32(a + b) for a, b in zip(errors[:half], errors[half:], strict=True)]
        found.append((errors[0], scale))
    return min(found, key=lambda each: each[0])[1]


def hif4_scale(amax: Fraction) -> Fraction:
    """The E6M2 scale of a block of HiF4: two mantissa bits, exponents from -48 to 15."""
    seventh = bf16(f32(amax * bf16(Fraction(1, 7))))
    s = min(max(seventh, Fraction(1, 2**48)), Fraction(49152))
    return _round_even(s, Fraction(2) ** (_exponent(s) - 2))


def _hif4(exact: list[Fraction]) -> list[Fraction]:
    """Magnitudes of a block after a round trip through HiF4."""
    s = hif4_scale(max(exact))
    r = bf16(f32(1 / s))
    out: list[Fraction] = []
    for eight in (exact[i : i + 8] for i in range(0, len(exact), 8)):
        m8 = 2 if f32(max(eight) * r) >= 4 else 1
        for four in (eight[i : i + 4] for i in range(0, len(eight), 4)):
            m4 = 2 if f32(max(four) * r) / m8 >= 2 else 1
            for x in four:
                y = f32(f32(x / m8 / m4) * r)
                q = Fraction(math.floor(f32(4 * y + Fraction(1, 2))), 4)
                out.append(min(q, Fraction(7, 4)) * m8 * m4 * s)
    return out


def fake_quantize_block(
    values: list[float], fmt: BlockFormat, tensor_amax: float | None = None
) -> list[float]:
    """One block of finite FP32 values, quantized and dequantized in FP32.

    Args:
        values: What shares a scale. Of a block of a row, at most `fmt.block_size`; missing ones
            count as zeros.
        fmt: The format.
        tensor_amax: Amax of the tensor that the block belongs to, of formats that use it; by
            default the block's own.
    """
    exact = [Fraction(v) for v in values]
    amax = max((abs(v) for v in exact), default=Fraction(0))
    whole = amax if tensor_amax is None else Fraction(tensor_amax)
    if fmt.rule is ScaleRule.HIF4 and exact:
        quantized = _hif4([abs(v) for v in exact])
        return [math.copysign(float(q), v) for q, v in zip(quantized, values, strict=True)]
    if fmt.rule in (ScaleRule.FOUR_OVER_SIX, ScaleRule.MSE) and amax > 0:
        scale = _least_error(exact, amax, fmt, whole)
    else:
        scale = block_scale(amax, fmt, whole)
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
        # Two's complement has no negative zero.
        signed = value if y != 0 or not fmt.element.integer else 1.0
        out.append(math.copysign(float(abs(y)), signed))
    return out
