"""`quantize`: the bytes that engines store, and back.

Two 4-bit codes share a byte, the even index in the low nibble; wider codes have a byte each. E8M0
scales are their exponent byte, E4M3 scales have torch's dtype of that name. The layout is linear:
rows of blocks, without the swizzling that a matrix product on some device may want.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from fp4scope.formats import BlockFormat
from fp4scope.formats.spec import ElementFormat
from fp4scope.kernels import fp32
from fp4scope.kernels.dispatch import padded, tensor_scales
from fp4scope.kernels.eager import quantize_blocks, two_to
from fp4scope.kernels.public import checked


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """A tensor in a block format, as it is stored.

    Attributes:
        format: What the bytes mean.
        codes: Element codes, uint8. The last axis is padded to whole blocks; 4-bit codes are two to
            a byte, the even index in the low nibble.
        scales: One for each block: uint8, the byte e + 127 of the scale 2^e (E8M0), or
            `float8_e4m3fn`.
        tensor_scale: FP32, which multiplies every E4M3 scale; None for formats without one.
            Engines that divide by it (compressed-tensors' `weight_global_scale`) store its inverse.
        shape: Of the tensor that was quantized.
        dtype: Of the tensor that was quantized.
    """

    format: BlockFormat
    codes: UInt8[Tensor, "*lead bytes"]
    scales: Shaped[Tensor, "*lead blocks"]
    tensor_scale: Float[Tensor, ""] | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of codes and scales together."""
        parts = [self.codes, self.scales]
        parts += [] if self.tensor_scale is None else [self.tensor_scale]
        return sum(part.numel() * part.element_size() for part in parts)

    def dequantize(self) -> Float[Tensor, "*shape"]:
        """What `fake_quantize` gives for the same tensor, bit for bit, in its shape and dtype."""
        element, size = self.format.element, self.format.block_size
        values = _decode(_unpacked(self.codes, element), element)
        blocks = values.reshape(*self.scales.shape, size)
        out = blocks * self._multipliers().unsqueeze(-1)
        limit = torch.finfo(self.dtype).max
        out = out.clamp_(-limit, limit).flatten(-2)
        return out[..., : _columns(self.shape)].reshape(self.shape).to(self.dtype)

    def _multipliers(self) -> Float[Tensor, "*lead blocks"]:
        if self.tensor_scale is not None:
            return self.scales.to(torch.float32) * self.tensor_scale
        return two_to(self.scales.to(torch.int32))


def quantize(
    x: Float[Tensor, "*shape"], format: str | BlockFormat, *, amax: float | Tensor | None = None
) -> QuantizedTensor:
    """`x` in the bytes that `format` stores.

    Args:
        x: FP32, BF16 or FP16 values. Not changed.
        format: A name such as `"nvfp4"` or `"mxfp4:rceil"`; `"mxfp4"` is `"mxfp4:floor"`.
        amax: Amax that fixes NVFP4's tensor scale, as a calibration gives it. By default
            the amax of `x`. The MX formats have no tensor scale and refuse one.

    Raises:
        FormatError: As for `fake_quantize`.

    Example:
        >>> q = quantize(torch.tensor([0.1, -1.0, 2.4, 6.0]), "mxfp4")
        >>> q.codes[:2].tolist(), q.scales.tolist(), q.dequantize().tolist()
        ([160, 116], [127], [0.0, -1.0, 2.0, 6.0])
    """
    fmt, scale_amax = checked(x, format, amax)
    x = x.detach().resolve_neg()  # kernels read the memory, where a negative view has no sign
    cols = _columns(x.shape)
    lead = x.shape[:-1]
    rows = padded(x.reshape(-1, cols) if x.numel() else x.new_empty(lead.numel(), cols), fmt)
    blocks = rows.view(len(rows), rows.shape[1] // fmt.block_size, fmt.block_size)
    g = None
    if fmt.uses_tensor_amax:
        g = tensor_scales(rows, fmt, scale_amax if rows.numel() else x.new_zeros(()))
    values, _, stored = quantize_blocks(blocks, fmt, g)
    codes = _packed(_encode(values, blocks, fmt.element).flatten(-2), fmt.element)
    dtype = torch.uint8 if g is None else torch.float8_e4m3fn
    return QuantizedTensor(
        format=fmt,
        codes=codes.view(*lead, codes.shape[-1]),
        scales=stored.to(dtype).view(*lead, blocks.shape[1]),
        tensor_scale=None if g is None else _single(g),
        shape=tuple(x.shape),
        dtype=x.dtype,
    )


def _single(g: Float[Tensor, "parts 1 1"]) -> Float[Tensor, ""]:
    return g[0, 0, 0].clone()


def _columns(shape: torch.Size | tuple[int, ...]) -> int:
    return shape[-1] if shape else 1


def _encode(
    magnitudes: Float[Tensor, "*shape"], signed: Float[Tensor, "*shape"], element: ElementFormat
) -> UInt8[Tensor, "*shape"]:
    """Codes of magnitudes on the grid, with the signs of `signed`."""
    if element.integer:
        code = (magnitudes / element.smallest).to(torch.int32)
        return (torch.where(signed.signbit(), -code, code) & (2**element.bits - 1)).to(torch.uint8)
    # Exponent and mantissa of a normal value are those of FP32, with another bias.
    bits = magnitudes.view(torch.int32) >> (fp32.MANTISSA_BITS - element.mantissa_bits)
    normal = bits - ((127 - element.bias) << element.mantissa_bits)
    subnormal = (magnitudes / element.smallest).to(torch.int32)
    code = torch.where(magnitudes < 2.0**element.min_exponent, subnormal, normal)
    return (code | (signed.signbit().to(torch.int32) << (element.bits - 1))).to(torch.uint8)


def _decode(codes: UInt8[Tensor, "*shape"], element: ElementFormat) -> Float[Tensor, "*shape"]:
    """The value of every code; NaN for codes that stand for nothing."""
    half = 2 ** (element.bits - 1)
    positive = torch.full((half,), torch.nan)
    positive[: len(element.magnitudes)] = torch.tensor(element.magnitudes)
    if element.integer:
        negative = torch.cat([torch.tensor([torch.nan]), -positive[1:].flip(0)])
    else:
        negative = -positive
    table = torch.cat([positive, negative]).to(codes.device)
    return table[codes.to(torch.int64)]


def _packed(
    codes: UInt8[Tensor, "rows cols"], element: ElementFormat
) -> UInt8[Tensor, "rows bytes"]:
    if element.bits > 4:
        return codes
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def _unpacked(
    codes: UInt8[Tensor, "*lead bytes"], element: ElementFormat
) -> UInt8[Tensor, "*lead cols"]:
    if element.bits > 4:
        return codes
    return torch.stack([codes & 0xF, codes >> 4], dim=-1).flatten(-2)
