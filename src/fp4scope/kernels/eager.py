"""Quantize-dequantize in plain torch, exact and in few passes.

Three observations make it cheap.

* The amax of a block is taken on the *bits*: with the sign cleared, FP32 orders like int32,
  and an integer `amax` over short rows is several times faster than a float one. The bits
  also hand over the exponent, so no logarithm is ever taken (float log2 gets blocks next to
  a power of two wrong). NaN and Inf are the largest bit patterns: one comparison finds them.
* Rounding to the element is one addition and one subtraction: adding 1.5 * 2^k pushes every
  bit below the wanted spacing out of the FP32 significand, with the hardware's own
  round-to-nearest-even.
* Work goes through the cache in pieces, so that a pass costs arithmetic and not memory.

Divisions by a tensor scale use a tensor, never a Python number: on CUDA torch turns a
division by a host scalar into a multiplication by its reciprocal, which is not the same.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from fp4scope.formats import BlockFormat, ScaleRule
from fp4scope.formats.spec import ElementFormat

NUMERICS_VERSION = 1
"""Changes when any quantized value does: results of two versions must not be mixed."""

_INF_BITS = 0x7F800000
_MANTISSA_BITS = 23
_PIECE_ELEMENTS = 1 << 17


def qdq(
    x: Float[Tensor, "*shape"],
    fmt: BlockFormat,
    amax: Float[Tensor, "*lead"] | None = None,
    nonfinite: Bool[Tensor, ""] | None = None,
) -> Float[Tensor, "*shape"]:
    """Quantize the blocks of the last axis to `fmt` and dequantize them again.

    Args:
        x: FP32, BF16 or FP16, on any device; a last axis that is no multiple of the block
            is computed as if padded with zeros.
        fmt: The format.
        amax: FP32 amax that fixes the tensor scale (NVFP4): one number, or a shape that
            broadcasts against `x` with a last axis of 1, one number for each such part.
            By default the amax of the whole of `x`. The MX formats take none.
        nonfinite: Set to true if `x` holds NaN or Inf. Nothing waits for it; read it when
            convenient. The values of such a block are unspecified.

    Returns:
        A new contiguous tensor of the shape and dtype of `x`. Arithmetic is FP32; the one
        cast back saturates at the largest finite value of the dtype.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return out
    cols = x.shape[-1] if x.ndim else 1
    rows_in, rows_out = x.reshape(-1, cols), out.view(-1, cols)
    row_amax = _row_amax(x, amax) if fmt.uses_tensor_amax else None

    step = rows_in.shape[0] if x.is_cuda else max(1, _PIECE_ELEMENTS // cols)
    for start in range(0, rows_in.shape[0], step):
        rows = slice(start, start + step)
        values = _qdq_rows(
            rows_in[rows],
            fmt,
            None if row_amax is None else row_amax[rows],
            nonfinite,
        )
        rows_out[rows] = values
    return out


def _row_amax(x: Float[Tensor, "*shape"], amax: Tensor | None) -> Float[Tensor, "rows 1"]:
    if amax is None:
        amax = x.abs().amax()
    amax = amax.to(device=x.device, dtype=torch.float32)
    lead = (*x.shape[:-1], 1) if x.ndim else (1,)
    return amax.expand(lead).reshape(-1, 1)


def _qdq_rows(
    x: Float[Tensor, "rows cols"],
    fmt: BlockFormat,
    row_amax: Float[Tensor, "rows 1"] | None,
    nonfinite: Bool[Tensor, ""] | None,
) -> Float[Tensor, "rows cols"]:
    """FP32 values of one piece, already inside the finite range of the dtype of `x`."""
    rows, cols = x.shape
    ragged = -cols % fmt.block_size
    y = x.to(torch.float32)
    if ragged:
        y = torch.nn.functional.pad(y, (0, ragged))
    y = y.reshape(rows, -1, fmt.block_size)

    bits = y.view(torch.int32) & 0x7FFFFFFF
    amax_bits = bits.amax(-1, keepdim=True)
    if nonfinite is not None:
        nonfinite.logical_or_((amax_bits >= _INF_BITS).any())

    if row_amax is None:
        scale = _power_of_two_scale(amax_bits, fmt)
        divisor = scale
    else:
        scale = _two_level_scale(amax_bits.view(torch.float32), row_amax.unsqueeze(-1))
        # A scale of zero means a block of zeros: x / inf is 0 with the sign of x.
        divisor = torch.where(scale == 0, torch.inf, scale)

    q = round_to_element_(y / divisor, fmt.element).mul_(scale).copysign_(y)
    limit = torch.finfo(x.dtype).max
    q = q.clamp_(-limit, limit).reshape(rows, -1)
    return q[:, :cols] if ragged else q


def _power_of_two_scale(
    amax_bits: Int[Tensor, "rows blocks 1"], fmt: BlockFormat
) -> Float[Tensor, "rows blocks 1"]:
    """E8M0 scale from the bits of the amax, for the three MX rules."""
    one = 1 << _MANTISSA_BITS
    if fmt.rule is ScaleRule.RCEIL:
        peak = amax_bits.view(torch.float32)
        bits = (peak / torch.full_like(peak, fmt.element.max)).view(torch.int32)
        # The next power of two, unless it is one. Subnormals up to 2^-127 stay at byte 0.
        byte = torch.where(bits <= one // 2, 0, (bits + (one - 1)) >> _MANTISSA_BITS)
    else:
        # EVEN: a mantissa of 1.75 or more carries into the exponent.
        carry = one // 4 if fmt.rule is ScaleRule.EVEN else 0
        byte = ((amax_bits + carry) >> _MANTISSA_BITS) - fmt.element.max_exponent
        byte = byte.clamp_(min=0)
    # Byte 0 is 2^-127, which FP32 holds only as a subnormal: no shift makes it.
    return torch.where(byte == 0, one // 2, byte << _MANTISSA_BITS).view(torch.float32)


def _two_level_scale(
    amax: Float[Tensor, "rows blocks 1"], tensor_amax: Float[Tensor, "rows 1 1"]
) -> Float[Tensor, "rows blocks 1"]:
    """E4M3 block scale times the FP32 tensor scale, in ModelOpt's order of operations."""
    g = tensor_amax / torch.full_like(tensor_amax, 2688.0)
    # The clamp is ours: torch up to 2.11 casts what is beyond E4M3 to NaN.
    s = (amax / (6.0 * g)).clamp_(max=448.0).nan_to_num_(nan=0.0)
    return s.to(torch.float8_e4m3fn).to(torch.float32) * g


def round_to_element_(
    y: Float[Tensor, "*shape"], element: ElementFormat
) -> Shaped[Tensor, "*shape"]:
    """Round to the nearest value of `element` in place: ties to even, saturating.

    Zeros lose their sign.

    Args:
        y: FP32, in units of the block scale.
        element: Element format to round to.

    Source: OCP MX v1.0 table 5 (E2M1) and section 6.3 (conversion).

    Example:
        >>> from fp4scope.formats.spec import E2M1
        >>> round_to_element_(torch.tensor([0.3, 2.5, -99.0]), E2M1).tolist()
        [0.5, 2.0, -6.0]
    """
    y.clamp_(-element.max, element.max)
    # 1.5 * 2^(E + 23 - m), where E is the exponent of y, at least that of the smallest normal.
    smallest = (element.min_exponent + 127) << _MANTISSA_BITS
    shift = ((_MANTISSA_BITS - element.mantissa_bits) << _MANTISSA_BITS) + (1 << 22)
    magic = (y.view(torch.int32) & _INF_BITS).clamp_(min=smallest).add_(shift).view(torch.float32)
    return y.add_(magic).sub_(magic)
