"""Formats that only weights have: what people run already, as the libraries make it, in FP32.

Every function takes blocks, (blocks, size) in FP32, and gives the values that they stand for. A
weight is quantized once, so these are plain torch on every device.

* `q8_0`, `q5_0`, `q4_0`: a scale in FP16 for 32 numbers. Elements are rounded with the scale before
  it is rounded to FP16, as the package gguf and llama.cpp do. Those of 4 and 5 bits divide the
  number of largest magnitude by the least integer, which keeps its sign, so all 16 or 32 are used.
* `int4:g128`: a scale in BF16 for 128 numbers of a row, symmetric, rounded to nearest even, as
  compressed-tensors does for a weight in BF16. It divides in the weight's own dtype, this in FP32.
* `nf4`: the nearest of 16 quantiles of a normal distribution, a scale in FP32 for 64 numbers that
  lie behind each other in memory, as in bitsandbytes: a block may go on in the next row.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fp4scope.formats import BlockFormat, ScaleRule

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""Source: QLoRA (arXiv 2305.14314), appendix E."""


def qdq(
    x: Float[Tensor, "*shape"],
    fmt: BlockFormat,
    nonfinite: Bool[Tensor, ""] | None,
    out: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Quantize a weight and dequantize it again, as `dispatch.qdq` has it.

    Args:
        x: FP32, BF16 or FP16.
        fmt: The format.
        nonfinite: Set to true if `x` holds NaN or Inf.
        out: Where to write: contiguous, of the shape, dtype and device of `x`; may be `x`.
    """
    if nonfinite is not None:
        nonfinite.logical_or_(~x.isfinite().all())
    cols = x.numel() if fmt.rule is ScaleRule.QUANTILES else x.shape[-1] if x.ndim else 1
    rows = x.reshape(-1, cols).to(torch.float32)
    more = -cols % fmt.block_size
    blocks = torch.nn.functional.pad(rows, (0, more)).reshape(-1, fmt.block_size)
    found = _RULES[fmt.rule](blocks, fmt).view(len(rows), cols + more)[:, :cols]
    limit = torch.finfo(x.dtype).max
    return out.copy_(found.clamp(-limit, limit).view(x.shape))


def _signed_amax(x: Float[Tensor, "blocks size"], fmt: BlockFormat) -> Tensor:
    """Q4_0 and Q5_0."""
    least = -(fmt.element.max + 1)
    size = x.abs()
    largest = size == size.amax(-1, keepdim=True)
    first = largest & (largest.cumsum(-1) == 1)  # of several the first
    scale = torch.where(first, x, 0.0).sum(-1, keepdim=True) / least
    codes = (x * _inverse(scale) + (0.5 - least)).trunc().clamp(0, 2 * -least - 1)
    return _half(scale) * (codes + least)


def _fp16_amax(x: Float[Tensor, "blocks size"], fmt: BlockFormat) -> Tensor:
    """Q8_0: halves away from zero."""
    scale = x.abs().amax(-1, keepdim=True) / torch.full_like(x[:, :1], fmt.element.max)
    y = x * _inverse(scale)
    size = y.abs()
    whole = size.floor()
    return _half(scale) * (y.sign() * (whole + (2 * (size - whole)).floor()))


def _half_range(x: Float[Tensor, "blocks size"], fmt: BlockFormat) -> Tensor:
    """Symmetric integers, one more below zero than above."""
    steps = torch.full_like(x[:, :1], fmt.element.max + 0.5)
    scale = (x.abs().amax(-1, keepdim=True) / steps).to(torch.bfloat16).to(torch.float32)
    codes = torch.where(scale == 0, 0.0, x / scale).round()
    return codes.clamp(-fmt.element.max - 1, fmt.element.max) * scale


def _quantiles(x: Float[Tensor, "blocks size"], fmt: BlockFormat) -> Tensor:
    """NF4: of two that are as near, the lower."""
    values = torch.tensor(_NF4, device=x.device)
    middles = (values[1:] + values[:-1]) / 2
    scale = x.abs().amax(-1, keepdim=True)
    return values[torch.bucketize(x * _inverse(scale), middles)] * scale


def _inverse(scale: Tensor) -> Tensor:
    """0 of 0; finite where a scale is so small that its own inverse is not."""
    most = torch.finfo(torch.float32).max
    return torch.where(scale == 0, 0.0, (1 / scale).clamp(-most, most))


def _half(scale: Tensor) -> Tensor:
    most = torch.finfo(torch.float16).max
    return scale.clamp(-most, most).to(torch.float16).to(torch.float32)


_RULES: Mapping[ScaleRule, Callable[[Tensor, BlockFormat], Tensor]] = {
    ScaleRule.SIGNED_AMAX: _signed_amax,
    ScaleRule.FP16_AMAX: _fp16_amax,
    ScaleRule.HALF_RANGE: _half_range,
    ScaleRule.QUANTILES: _quantiles,
}
