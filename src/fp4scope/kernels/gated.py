"""Quantize-dequantize what leaves a gate, activation(gate) * x, without writing it first."""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fp4scope.formats import BlockFormat, Span
from fp4scope.kernels.dispatch import backend, has_small_blocks

Activation = Callable[[Tensor], Tensor]
_KNOWN: dict[str, Activation] = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@lru_cache(32)
def activation_of(function: Activation) -> str | None:
    """`silu` or `gelu_tanh`, if a function is that to the bit on numbers of many magnitudes."""
    x = torch.cat([torch.linspace(-12, 12, 997), torch.logspace(-30, 3, 97)])
    try:
        found = function(x.clone())
        return next((name for name, own in _KNOWN.items() if found.equal(own(x))), None)
    except Exception:  # a function of something else, or with weights elsewhere
        return None


def is_fused(x: Float[Tensor, "*shape"], fmt: BlockFormat) -> bool:
    """Whether there is one kernel for a gate and this format."""
    rows = fmt.span is Span.BLOCK and has_small_blocks(fmt)
    whole = x.shape[-1] % fmt.block_size == 0 and x.is_contiguous() and x.numel() > 0
    return rows and whole and backend(x.device) == "triton"


def qdq_gated(
    gate: Float[Tensor, "*shape"],
    x: Float[Tensor, "*shape"],
    activation: str,
    fmt: BlockFormat,
    amax: Float[Tensor, ""] | None = None,
    nonfinite: Bool[Tensor, ""] | None = None,
) -> Float[Tensor, "*shape"]:
    """The same as `qdq` of activation(gate) * x, up to how the activation is rounded.

    Args:
        gate: FP32, BF16 or FP16, where `is_fused`.
        x: Like it.
        activation: From `activation_of`.
        fmt: The format.
        amax: FP32, where the format takes one.
        nonfinite: Set to true if what is quantized holds NaN or Inf.
    """
    from fp4scope.kernels import fused

    out = torch.empty_like(x)
    cols = x.shape[-1]
    flat = [y.detach().view(-1, cols) for y in (x, out, gate)]
    known = None if amax is None else amax.reshape(1)
    fused.qdq(flat[0], fmt, known, flat[1], nonfinite, flat[2], activation)
    return out
