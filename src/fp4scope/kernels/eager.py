"""Quantize-dequantize in plain torch, exact and in few passes, on any device.

* The amax of a block is taken on the *bits*: with the sign cleared, FP32 orders like int32,
  and an integer `amax` over short rows is several times faster than a float one. The bits
  also hand over the exponent, so no logarithm is ever taken (float log2 gets blocks next to
  a power of two wrong). NaN and Inf are the largest bit patterns: one comparison finds them.
* Rounding to the element is one addition and one subtraction: adding 2^k pushes every
  bit below the wanted spacing out of the FP32 significand, with the hardware's own
  round-to-nearest-even.
* Magnitudes only, in place, in two buffers; the sign comes back at the end.

Divisions by a tensor scale use a tensor, never a Python number: on CUDA torch turns a
division by a host scalar into a multiplication by its reciprocal, which is not the same.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fp4scope.formats import BlockFormat, ScaleRule
from fp4scope.formats.spec import E4M3, MSE_ABOVE, MSE_BELOW, ElementFormat
from fp4scope.kernels import fp32

LARGEST_E4M3 = 126
"""The code of 448."""
_E4M3_LAST = fp32.MANTISSA_BITS - E4M3.mantissa_bits
_E4M3_BIAS = (127 - E4M3.bias) << E4M3.mantissa_bits
_E4M3_NORMAL = 2.0**E4M3.min_exponent


class Quantized(NamedTuple):
    """Blocks as magnitudes in units of their scale, and that scale.

    `values` are magnitudes of the element format; `scale` is what they are multiplied by. `stored`
    is the part of the scale that a block keeps: E8M0's byte, the value of the E4M3 or FP32 scale,
    HiF4's four bytes.
    """

    values: Float[Tensor, "rows blocks size"]
    scale: Float[Tensor, "#rows #blocks #size"]
    stored: Tensor


def qdq_blocks(
    x: Float[Tensor, "rows blocks size"],
    fmt: BlockFormat,
    g: Float[Tensor, "parts 1 1"] | None,
    out: Float[Tensor, "rows blocks size"],
    limit: float,
    nonfinite: Bool[Tensor, ""] | None = None,
) -> None:
    """Quantize and dequantize whole blocks.

    Args:
        x: Contiguous.
        fmt: The format.
        g: Tensor scale, one or one for each row, for the formats that have one.
        out: Where to write; may be `x`.
        limit: Largest magnitude to write.
        nonfinite: Set to true if `x` holds NaN or Inf.
    """
    magnitudes, amax_bits = _magnitudes(x)
    may_exceed = _look_at(amax_bits, limit, nonfinite)
    values, scale, _ = quantize_magnitudes_(magnitudes, amax_bits, fmt, g)
    q = values.mul_(scale)
    if may_exceed:
        q.clamp_(max=limit)
    torch.copysign(q, x, out=out)
    if fmt.element.integer:
        out.add_(0.0)  # no negative zero


def quantize_blocks(
    x: Float[Tensor, "rows blocks size"],
    fmt: BlockFormat,
    g: Float[Tensor, "parts 1 1"] | None,
) -> Quantized:
    """Magnitudes and scales of whole blocks of finite values."""
    return quantize_magnitudes_(*_magnitudes(x), fmt, g)


def _magnitudes(x: Tensor) -> tuple[Tensor, Int[Tensor, "rows blocks 1"]]:
    magnitudes = x.view(torch.int32) & fp32.MAGNITUDE
    return magnitudes.view(torch.float32), magnitudes.amax(-1, keepdim=True)


def _look_at(amax_bits: Tensor, limit: float, nonfinite: Tensor | None) -> bool:
    """Raise the flag where it is due; whether a dequantized value may be larger than `limit`."""
    if amax_bits.is_cuda:  # nothing waits there
        if nonfinite is not None:
            nonfinite.logical_or_((amax_bits >= fp32.INF).any())
        return True
    top = int(amax_bits.max())
    if nonfinite is not None and top >= fp32.INF:
        nonfinite.fill_(True)
    # Rounding a scale up makes a value at most four times as large.
    return top >= fp32.bits(limit / 4)


def quantize_magnitudes_(
    y: Float[Tensor, "rows blocks size"],
    amax_bits: Int[Tensor, "rows blocks 1"],
    fmt: BlockFormat,
    g: Float[Tensor, "parts 1 1"] | None,
) -> Quantized:
    """Quantize magnitudes in place.

    Args:
        y: Magnitudes; overwritten, and maybe returned.
        amax_bits: The bits of each block's largest.
        fmt: The format.
        g: Tensor scale, one or one for each row, for the formats that have one.
    """
    scratch = torch.empty_like(y)
    if fmt.rule is ScaleRule.HIF4:
        return _hif4(y, amax_bits.view(torch.float32))
    if fmt.rule in (ScaleRule.AMAX, ScaleRule.ONE):
        amax = amax_bits.view(torch.float32)
        scale = amax / torch.full_like(amax, fmt.element.max) if g is None else g
        return Quantized(round_(y.div_(_divisor(scale)), fmt.element, scratch), scale, scale)
    if g is None:
        scale, inverse, byte = _power_of_two_scale(amax_bits, fmt)
        return Quantized(round_(y.mul_(inverse), fmt.element, scratch), scale, byte)
    ratio = _block_scale(amax_bits.view(torch.float32), g, fmt)
    if fmt.rule is ScaleRule.TENSOR:
        s = round_(ratio, E4M3)
        scale = s * g
        return Quantized(round_(y.div_(_divisor(scale)), fmt.element, scratch), scale, s)
    return _least_error(y, _candidates(ratio, fmt), g, fmt, scratch)


def _power_of_two_scale(
    amax_bits: Int[Tensor, "rows blocks 1"], fmt: BlockFormat
) -> tuple[Tensor, Tensor, Tensor]:
    """E8M0 scale from the bits of the amax: the scale, its inverse, its byte."""
    zero, carry, emax = fp32.scale_byte(fmt)
    byte = ((amax_bits + carry) >> fp32.MANTISSA_BITS) - emax
    byte = torch.where(amax_bits <= zero, 0, byte)
    return two_to(byte), two_to(254 - byte), byte


def two_to(byte: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """2^(byte - 127); byte 0 is 2^-127, which FP32 holds only as a subnormal: no shift makes it."""
    half = 1 << (fp32.MANTISSA_BITS - 1)
    return (byte << fp32.MANTISSA_BITS).clamp_(min=half).view(torch.float32)


def _block_scale(
    amax: Float[Tensor, "rows blocks 1"], g: Float[Tensor, "parts 1 1"], fmt: BlockFormat
) -> Float[Tensor, "rows blocks 1"]:
    """What becomes the E4M3 scale, before rounding, in ModelOpt's order: a / (max * g)."""
    return amax / _divisor(fmt.element.max * g)


def _divisor(scale: Tensor) -> Tensor:
    """Inf for a scale of zero: such a block becomes zeros."""
    return torch.where(scale == 0, torch.inf, scale)


def _candidates(
    ratio: Float[Tensor, "rows blocks 1"], fmt: BlockFormat
) -> Iterator[Float[Tensor, "rows blocks 1"]]:
    """The E4M3 scales that a rule tries, in its order."""
    six = round_(ratio.clone(), E4M3)
    if fmt.rule is ScaleRule.FOUR_OVER_SIX:
        yield from (six, round_(ratio * 1.5, E4M3))
        return
    code = e4m3_code(six)
    for step in range(MSE_ABOVE, -MSE_BELOW - 1, -1):
        # A block of zeros has a scale of zero, as under any rule.
        yield e4m3_number(torch.where(ratio == 0, 0, code + step).clamp_(0, LARGEST_E4M3))


def e4m3_code(s: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The code of an E4M3 number that is not negative."""
    normal = (s.view(torch.int32) >> _E4M3_LAST) - _E4M3_BIAS
    return torch.where(s < _E4M3_NORMAL, (s / E4M3.smallest).to(torch.int32), normal)


def e4m3_number(code: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The E4M3 number of a code.

    Example:
        >>> e4m3_number(e4m3_code(torch.tensor([0.0, 2.0**-9, 1.125, 448.0]))).tolist()
        [0.0, 0.001953125, 1.125, 448.0]
    """
    normal = ((code + _E4M3_BIAS) << _E4M3_LAST).view(torch.float32)
    return torch.where(code < 8, code * E4M3.smallest, normal)


def _least_error(
    y: Float[Tensor, "rows blocks size"],
    scales: Iterable[Float[Tensor, "rows blocks 1"]],
    g: Float[Tensor, "parts 1 1"],
    fmt: BlockFormat,
    scratch: Tensor,
) -> Quantized:
    """Of several E4M3 scales, for each block the one with the least error, the first on a tie.

    Errors are in units of the tensor scale, so that their squares neither overflow nor vanish.
    They are added in halves, an order that every backend can keep.
    """
    exact = y / _divisor(g)
    best: Quantized | None = None
    least: Tensor | None = None
    for s in scales:
        scale = s * g
        q = round_(y / _divisor(scale), fmt.element, scratch)
        error = (q * s).sub_(exact).square_()
        while (half := error.shape[-1] // 2) > 0:
            error = error[..., :half] + error[..., half:]
        own = Quantized(q, scale, s)
        if best is None or least is None:
            best, least = own, error
            continue
        better = error < least
        best = Quantized(*(torch.where(better, b, a) for a, b in zip(best, own, strict=True)))
        least = torch.where(better, error, least)
    assert best is not None
    return best


def _hif4(y: Float[Tensor, "rows blocks 64"], amax: Float[Tensor, "rows blocks 1"]) -> Quantized:
    """HiF4's order of operations. Halves are rounded up, in FP32, as `floor(4 y + 1/2)`.

    Stored are four bytes: E6M2, a bit for each group of 8, and for each group of 4, first lowest.
    """
    s = hif4_scale(amax)
    r = (1 / s).to(torch.bfloat16).float()
    eights, fours = y.unflatten(-1, (8, 8)), y.unflatten(-1, (16, 4))
    double8 = eights.amax(-1, keepdim=True) * r[..., None] >= 4
    m8 = torch.where(double8, 2.0, 1.0)
    own8 = m8.repeat_interleave(2, -2)
    double4 = fours.amax(-1, keepdim=True) * r[..., None] / own8 >= 2
    multiplier = own8 * torch.where(double4, 2.0, 1.0)
    q = fours.div(multiplier).mul_(r[..., None]).mul_(4).add_(0.5).floor_().div_(4).clamp_(max=1.75)
    bits = torch.cat([double8.squeeze(-1), double4.squeeze(-1)], -1).unflatten(-1, (3, 8))
    weights = 1 << torch.arange(8, dtype=torch.int32, device=y.device)
    code = (s.view(torch.int32) >> (fp32.MANTISSA_BITS - 2)) - ((127 - 48) << 2)
    stored = torch.cat([code, (bits * weights).sum(-1, dtype=torch.int32)], -1)
    scale = (multiplier * s[..., None]).expand_as(fours)
    return Quantized(q.flatten(-2), scale.flatten(-2), stored)


def hif4_scale(amax: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The E6M2 scale of blocks of HiF4 from their amax."""
    seventh = torch.tensor(1 / 7, dtype=torch.bfloat16, device=amax.device).float()
    s = (amax * seventh).to(torch.bfloat16).float().clamp_(2.0**-48, 49152.0)
    # Two mantissa bits, ties to even, by integers: what is half or above carries.
    bits = s.view(torch.int32)
    last = fp32.MANTISSA_BITS - 2
    half = (1 << (last - 1)) - 1
    return ((bits + half + ((bits >> last) & 1)) >> last << last).view(torch.float32)


def round_(
    y: Float[Tensor, "*shape"], element: ElementFormat, scratch: Tensor | None = None
) -> Float[Tensor, "*shape"]:
    """Round magnitudes to the nearest of `element` in place: ties to even, saturating.

    Args:
        y: FP32, not negative, in units of the block scale.
        element: Element format to round to.
        scratch: A buffer like `y`, overwritten.

    Source: OCP MX v1.0 section 6.3 (conversion).

    Example:
        >>> from fp4scope.formats.spec import E2M1
        >>> round_(torch.tensor([0.3, 2.5, 99.0]), E2M1).tolist()
        [0.5, 2.0, 6.0]
    """
    y.clamp_(max=element.max)
    scratch = torch.empty_like(y) if scratch is None else scratch
    # 2^E of each magnitude, at least that of the smallest normal; times 2^(23 - m) it has the
    # wanted spacing as its last place.
    smallest = (element.min_exponent + 127) << fp32.MANTISSA_BITS
    torch.bitwise_and(y.view(torch.int32), fp32.INF, out=scratch.view(torch.int32))
    scratch.view(torch.int32).clamp_(min=smallest)
    shift = 2.0 ** (fp32.MANTISSA_BITS - element.mantissa_bits)
    return y.add_(scratch, alpha=shift).sub_(scratch, alpha=shift)
