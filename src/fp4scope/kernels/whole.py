"""Quantize-dequantize to FP8 with one scale for a whole tensor, or each row: torch's own cast."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fp4scope.formats import BlockFormat


def cast(
    x: Float[Tensor, "*shape"],
    fmt: BlockFormat,
    amax: Float[Tensor, " parts"] | None,
    nonfinite: Bool[Tensor, ""] | None,
    out: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Round to E4M3, ties to even, saturating.

    Args:
        x: The values.
        fmt: The format.
        amax: FP32, one or one for each row: the largest that the scale is made for. Without it the
            scale is 1.
        nonfinite: Set to true if `x` holds NaN or Inf.
        out: Where to write; may be `x`.
    """
    if nonfinite is not None:
        nonfinite.logical_or_(~x.isfinite().all())
    y = x.float()
    largest = fmt.element.max
    if amax is None:
        out.copy_(y.clamp(-largest, largest).to(torch.float8_e4m3fn).float())
        return out
    scale = amax / torch.full_like(amax, fmt.tensor_divisor)
    if len(scale) > 1:
        scale = scale.view(*x.shape[:-1], 1)
    divisor = torch.where(scale == 0, torch.inf, scale)
    y = (y / divisor).clamp(-largest, largest).to(torch.float8_e4m3fn).float() * scale
    limit = torch.finfo(x.dtype).max
    out.copy_(y.clamp(-limit, limit))
    return out
