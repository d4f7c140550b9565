"""`fake_quantize`: the checked, public face of `qdq`."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fp4scope.errors import FormatError
from fp4scope.formats import BlockFormat, get_format
from fp4scope.kernels.dispatch import qdq

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fake_quantize(
    x: Float[Tensor, "*shape"], format: str | BlockFormat, *, amax: float | Tensor | None = None
) -> Float[Tensor, "*shape"]:
    """`x` after a round trip through `format`: same shape, dtype and device.

    Blocks run along the last axis and never straddle rows; a last axis that is no multiple
    of the block size is computed as if padded with zeros. All arithmetic is FP32.

    Args:
        x: FP32, BF16 or FP16 values. Not changed.
        format: A name such as `"nvfp4"` or `"mxfp4:rceil"`; `"mxfp4"` is `"mxfp4:floor"`.
        amax: Amax that fixes NVFP4's tensor scale, as a calibration gives it. By default
            the amax of `x`. The MX formats have no tensor scale and refuse one.

    Returns:
        The values that a kernel reading the quantized `x` would see.

    Raises:
        FormatError: Unknown format, a dtype or an amax that makes no sense, NaN or Inf in
            `x`, or an amax of zero for an `x` that is not zero.

    Example:
        >>> fake_quantize(torch.tensor([0.1, 1.0, 2.4, 6.0]), "mxfp4").tolist()
        [0.0, 1.0, 2.0, 6.0]
    """
    fmt, scale_amax = checked(x, format, amax, finite=False)
    nonfinite = torch.zeros((), dtype=torch.bool, device=x.device)
    out = qdq(x, fmt, scale_amax, nonfinite)
    if nonfinite.item():
        _refuse_nonfinite(x, fmt)
    return out


def checked(
    x: Tensor, format: str | BlockFormat, amax: float | Tensor | None, *, finite: bool = True
) -> tuple[BlockFormat, Tensor | None]:
    """The format and the FP32 amax that were meant, or an error; `finite` looks for NaN too."""
    fmt = format if isinstance(format, BlockFormat) else get_format(format)
    if x.dtype not in _DTYPES:
        raise FormatError(
            f"x has dtype {x.dtype}; {fmt.name} quantizes float32, bfloat16 or float16: "
            "convert it with x.to(torch.float32)"
        )
    if finite and not bool(torch.isfinite(x).all()):
        _refuse_nonfinite(x, fmt)
    return fmt, None if amax is None else _checked_amax(amax, fmt, x)


def _refuse_nonfinite(x: Tensor, fmt: BlockFormat) -> None:
    bad = int((~torch.isfinite(x)).sum())
    raise FormatError(
        f"{fmt.name} has no NaN or Inf, but {bad} of {x.numel()} values of x "
        f"(shape {tuple(x.shape)}, dtype {x.dtype}) are not finite; drop the batch, or find "
        "the layer that overflowed with `fp4scope stats`"
    )


def _checked_amax(amax: float | Tensor, fmt: BlockFormat, x: Tensor) -> Tensor:
    if not fmt.uses_tensor_amax:
        raise FormatError(
            f"{fmt.name} has no tensor scale, so amax={amax!r} has no meaning; leave it out"
        )
    if isinstance(amax, Tensor) and amax.numel() != 1:
        raise FormatError(
            f"amax has shape {tuple(amax.shape)}; {fmt.name} has one tensor scale, "
            "so give one number"
        )
    # A number that FP32 turns into Inf or 0 is no better than Inf or 0.
    fp32 = torch.tensor(float(amax), dtype=torch.float32)
    value = fp32.item()
    if not math.isfinite(value) or value < 0:
        raise FormatError(f"amax is {float(amax)}; it must be finite in FP32 and not negative")
    if value == 0 and bool(x.any()):
        raise FormatError(
            "amax is 0 but x is not all zeros: the calibration never saw this tensor active; "
            "calibrate on more text, or leave amax out"
        )
    return fp32.to(x.device)
