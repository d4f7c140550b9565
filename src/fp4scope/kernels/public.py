"""`fake_quantize`: the checked, public face of `qdq`."""

import math
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fp4scope.errors import FormatError, shown
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
            `"fp8:block128"` cuts squares, as of a weight; `get_format(name).for_input` has the
            blocks of a row that an input gets beside it.
        amax: Amax that fixes NVFP4's tensor scale, as a calibration gives it. By default
            the amax of `x`. Formats without a tensor scale refuse one.

    Returns:
        The values that a kernel reading the quantized `x` would see.

    Raises:
        FormatError: Unknown format, an `x` that is no dense tensor in memory, a dtype or an
            amax that makes no sense, NaN or Inf in `x`, or an amax of zero for an `x` that is
            not zero.

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
    x: Any,  # noqa: ANN401
    format: Any,  # noqa: ANN401
    amax: Any,  # noqa: ANN401
    *,
    finite: bool = True,
) -> tuple[BlockFormat, Tensor | None]:
    """The format and the FP32 amax that were meant, or an error, whatever comes.

    `finite` looks for NaN and Inf too.
    """
    fmt = format if isinstance(format, BlockFormat) else get_format(format)
    _require_values(x, "x")
    if x.dtype not in _DTYPES:
        cure = "quantize x.real and x.imag" if x.is_complex() else "convert it with x.float()"
        raise FormatError(
            f"x has dtype {x.dtype}; {fmt.name} quantizes float32, bfloat16 or float16: {cure}"
        )
    if finite and not bool(torch.isfinite(x).all()):
        _refuse_nonfinite(x, fmt)
    return fmt, None if amax is None else _checked_amax(amax, fmt, x)


def _require_values(x: Any, name: str) -> None:  # noqa: ANN401
    """Refuse what is not a tensor whose values lie in memory, one after the other."""
    kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
    if not isinstance(x, Tensor):
        if kind.startswith("numpy."):
            cure = f"; give torch.from_numpy({name})"
        else:
            cure = f"; give torch.tensor({name})" if isinstance(x, list | tuple | float) else ""
        raise FormatError(f"{name} is a {kind}, not a torch tensor{cure}")
    if x.is_nested:
        raise FormatError(f"{name} is a nested tensor; give its parts, {name}.unbind(), one by one")
    if x.is_quantized:
        raise FormatError(f"{name} has dtype {x.dtype}; give {name}.dequantize()")
    if x.layout != torch.strided:
        raise FormatError(f"{name} has the layout {x.layout}; give {name}.to_dense()")
    if x.is_meta:
        raise FormatError(f"{name} is on the device meta, so it has no values; load them first")


def _refuse_nonfinite(x: Tensor, fmt: BlockFormat) -> None:
    bad = int((~torch.isfinite(x)).sum())
    raise FormatError(
        f"{fmt.name} has no NaN or Inf, but {bad} of {x.numel()} values of x "
        f"(shape {tuple(x.shape)}, dtype {x.dtype}) are not finite; drop the batch, or find "
        "the layer that overflowed with `fp4scope stats`"
    )


def _checked_amax(amax: Any, fmt: BlockFormat, x: Tensor) -> Tensor:  # noqa: ANN401
    if not fmt.uses_tensor_amax:
        raise FormatError(
            f"{fmt.name} has no tensor scale, so amax={shown(amax)} has no meaning; leave it out"
        )
    number = _one_number(amax, fmt)
    # A number that FP32 turns into Inf or 0 is no better than Inf or 0.
    fp32 = torch.tensor(number, dtype=torch.float32)
    value = fp32.item()
    if not math.isfinite(value) or value < 0:
        raise FormatError(f"amax is {number}; it must be finite in FP32 and not negative")
    if value == 0 and bool(x.any()):
        raise FormatError(
            "amax is 0 but x is not all zeros: the calibration never saw this tensor active; "
            "calibrate on more text, or leave amax out"
        )
    return fp32.to(x.device)


def _one_number(amax: Any, fmt: BlockFormat) -> float:  # noqa: ANN401
    if isinstance(amax, Tensor):
        _require_values(amax, "amax")
        if amax.numel() != 1:
            raise FormatError(
                f"amax has shape {tuple(amax.shape)}; {fmt.name} has one tensor scale, "
                "so give one number"
            )
        if not (amax.is_complex() or amax.dtype == torch.bool):
            return float(amax)
    elif isinstance(amax, Real) and not isinstance(amax, bool):
        try:
            return float(amax)
        except OverflowError:
            return math.inf
    raise FormatError(f"amax is {shown(amax)}; give a number, or a tensor with one real number")
