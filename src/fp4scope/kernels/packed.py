"""`quantize`: the bytes that engines store, and back.

Two 4-bit codes share a byte, the even index in the low nibble; wider codes have a byte each. E8M0
scales are their exponent byte, E4M3 scales have torch's dtype of that name. The layout is linear:
rows of blocks, without the swizzling that a matrix product on some device may want. Squares of a
matrix are stored as engines have them: codes where the numbers were, a matrix of scales.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from fp4scope.formats import BlockFormat, ScaleRule, Span
from fp4scope.formats.spec import ElementFormat
from fp4scope.kernels import fp32, tiles
from fp4scope.kernels.dispatch import in_blocks_of, padded, tensor_scales
from fp4scope.kernels.eager import quantize_blocks, two_to
from fp4scope.kernels.public import checked


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """A tensor in a block format, as it is stored.

    Attributes:
        format: What the bytes mean.
        codes: Element codes, uint8. The last axis is padded to whole blocks; 4-bit codes are two to
            a byte, the even index in the low nibble.
        scales: One for each block, row or square: uint8, the byte e + 127 of the scale 2^e (E8M0);
            `float8_e4m3fn`; FP32 for FP8. HiF4 has four bytes for each block: E6M2, one bit for
            each group of 8, and for each group of 4, the first lowest. None if the tensor has one.
        tensor_scale: FP32, which multiplies every E4M3 scale, or every code where there are no
            scales; None for formats without one. Engines that divide by it (compressed-tensors'
            `weight_global_scale`) store its inverse.
        shape: Of the tensor that was quantized.
        dtype: Of the tensor that was quantized.
    """

    format: BlockFormat
    codes: UInt8[Tensor, "*lead bytes"]
    scales: Shaped[Tensor, "*of_scales"] | None
    tensor_scale: Float[Tensor, ""] | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of codes and scales together."""
        parts = (self.codes, self.scales, self.tensor_scale)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def dequantize(self) -> Float[Tensor, "*shape"]:
        """What `fake_quantize` gives for the same tensor, bit for bit, in its shape and dtype."""
        element = self.format.element
        out = _decode(_unpacked(self.codes, element), element) * self._multipliers()
        limit = torch.finfo(self.dtype).max
        out = out.clamp_(-limit, limit)[..., : _columns(self.shape)]
        return out.reshape(self.shape).to(self.dtype)

    def _multipliers(self) -> Float[Tensor, "*of_codes"]:
        """What each code is multiplied by."""
        fmt, scales = self.format, self.scales
        if scales is None:
            assert self.tensor_scale is not None
            return self.tensor_scale
        if fmt.rule is ScaleRule.HIF4:
            return _hif4_multipliers(scales).repeat_interleave(4, -1)
        power = fmt.scale == "E8M0"
        found = two_to(scales.to(torch.int32)) if power else scales.to(torch.float32)
        if self.tensor_scale is not None:
            found = found * self.tensor_scale
        if fmt.span is Span.TILE:
            found = found.repeat_interleave(fmt.block_size, -2)[..., : _rows(self.shape), :]
        if fmt.span is not Span.ROW:
            found = found.repeat_interleave(fmt.block_size, -1)
        return found[..., : _columns(self.shape)] if fmt.span is Span.TILE else found


def _hif4_multipliers(stored: UInt8[Tensor, "*lead blocks 4"]) -> Float[Tensor, "*lead groups"]:
    """Of each group of 4."""
    code = stored[..., :1].to(torch.int32) + ((127 - 48) << 2)
    scale = (code << (fp32.MANTISSA_BITS - 2)).view(torch.float32)
    bits = (stored[..., 1:, None] >> torch.arange(8, device=stored.device)) & 1
    eights, fours = bits[..., 0, :], bits[..., 1:, :].flatten(-2)
    doubled = eights.repeat_interleave(2, -1) + fours
    return (scale * (1 << doubled.to(torch.int32))).flatten(-2)


def quantize(
    x: Float[Tensor, "*shape"], format: str | BlockFormat, *, amax: float | Tensor | None = None
) -> QuantizedTensor:
    """`x` in the bytes that `format` stores.

    Args:
        x: FP32, BF16 or FP16 values. Not changed.
        format: A name such as `"nvfp4"` or `"mxfp4:rceil"`; `"mxfp4"` is `"mxfp4:floor"`.
        amax: Amax that fixes NVFP4's tensor scale, as a calibration gives it. By default
            the amax of `x`. Formats without a tensor scale refuse one.

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
    tiled = fmt.span is Span.TILE
    own = fmt.for_tiles if tiled else fmt
    if tiled:
        rows = tiles.cut(x.float(), fmt.block_size)
    else:
        filled = x.reshape(-1, cols) if x.numel() else x.new_empty(lead.numel(), cols)
        rows = padded(filled, fmt)
    blocks = in_blocks_of(rows, own)
    g = None
    if fmt.is_given_scale:
        g = tensor_scales(rows, fmt, scale_amax if rows.numel() else x.new_zeros(()))
    values, _, stored = quantize_blocks(blocks, own, g)
    codes = _encode(values, blocks, fmt.element).flatten(-2)
    if tiled:
        codes = tiles.joined(codes, x.shape or (1,), fmt.block_size)
        at = (*x.shape[:-2], *tiles.counts(x.shape, fmt.block_size)[1:])
    else:
        codes = _packed(codes, fmt.element)
        codes = codes.view(*lead, codes.shape[-1])
        at = (*lead, *stored.shape[1 : 3 if fmt.rule is ScaleRule.HIF4 else 2])
    scales = None
    if fmt.span is not Span.TENSOR:
        scales = stored.to(_SCALE_DTYPES.get(fmt.scale, torch.uint8)).reshape(at)
    return QuantizedTensor(
        format=fmt,
        codes=codes,
        scales=scales,
        tensor_scale=None if g is None else _single(g),
        shape=tuple(x.shape),
        dtype=x.dtype,
    )


_SCALE_DTYPES = {"E4M3 x FP32": torch.float8_e4m3fn, "FP32": torch.float32}


def _single(g: Float[Tensor, "parts 1 1"]) -> Float[Tensor, ""]:
    return g[0, 0, 0].clone()


def _columns(shape: torch.Size | tuple[int, ...]) -> int:
    return shape[-1] if shape else 1


def _rows(shape: tuple[int, ...]) -> int:
    return shape[-2] if len(shape) > 1 else 1


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
