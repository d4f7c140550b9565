"""An operand to its image, as a treatment says: quantized, and what else is done to it.

A rotation (Hadamard) turns blocks of the last axis before an operand is quantized and turns them
back afterwards, so that the model's forward is untouched. Both operands of a product turned alike
have the product of the turned ones, up to rounding, since the rotation is orthogonal.

A fit takes what is known of inputs (`fitted.py`): weights are rounded to the second order, or both
operands are smoothed.

A fault changes the error on purpose, to find what matters in it. `noise` puts noise in the place of
each block's rounding error: of the same energy, in a random direction. `exact-scale` does not round
the scales of blocks.

Noise is a function of what it is drawn for and nothing else: its dice are a hash of the block's
bits and place in the row. So it is the same in whatever batch a tensor comes, and two blocks that
differ have noise that has nothing in common. All of it is integers, sums in a fixed order, and
single FP32 operations that IEEE 754 rounds exactly, so that no vector width changes a bit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fp4scope.errors import UnitError
from fp4scope.formats import BlockFormat, ScaleRule, Span
from fp4scope.kernels import qdq
from fp4scope.operands.fitted import Moments, second_order
from fp4scope.treatments import Fault, Treatment

_FEWEST = 16
"""Numbers in a block of noise; of formats whose scales are for more than a block."""


def image_of(
    x: Float[Tensor, "*shape"],
    treatment: Treatment,
    amax: Callable[[Tensor], Tensor | None],
    nonfinite: Bool[Tensor, ""] | None = None,
    *,
    entering: bool = False,
    moments: Moments | None = None,
    channels: Float[Tensor, " cols"] | None = None,
) -> Float[Tensor, "*shape"]:
    """What stands for an operand.

    Args:
        x: The operand, FP32, BF16 or FP16; its last axis is the one that is summed over.
        treatment: What is done to it.
        amax: Of what is quantized, to the amax of its tensor scale; None for its own.
        nonfinite: Set to true if `x` holds NaN or Inf.
        entering: Whether it is an input, and no weight.
        moments: Of the product's input, where a weight is rounded to the second order.
        channels: Factors of smoothing, by which a weight's columns are multiplied.

    Raises:
        UnitError: Its rows are no whole number of the blocks that are turned.
    """
    fmt = treatment.format.for_input if entering else treatment.format
    if treatment.is_plain:
        return qdq(x, fmt, amax(x), nonfinite)
    fmt = exactly_scaled(fmt) if treatment.fault is Fault.EXACT_SCALE else fmt
    turned = x.detach().to(torch.float32)
    factor = None if channels is None else 1 / channels if entering else channels
    if factor is not None:
        turned = turned * factor
    if treatment.hadamard:
        turned = rotated(turned, treatment.hadamard)
    known = amax(turned) if fmt.uses_tensor_amax else None
    if moments is not None:
        if nonfinite is not None:
            nonfinite.logical_or_(~turned.isfinite().all())
        found = second_order(turned, fmt, moments.gram, known)
    else:
        found = qdq(turned, fmt, known, nonfinite)
    if treatment.fault is Fault.NOISE:
        found = scattered(turned, found, max(_FEWEST, fmt.block_size))
    if treatment.hadamard:
        found = rotated(found, treatment.hadamard)
    if factor is not None:
        found = found / factor
    limit = torch.finfo(x.dtype).max
    return found.clamp_(-limit, limit).to(x.dtype)


@cache
def exactly_scaled(fmt: BlockFormat) -> BlockFormat:
    """The same elements in the same blocks, each with a scale by its amax that is not rounded."""
    if fmt.span is not Span.BLOCK:
        return fmt
    return replace(fmt, rule=ScaleRule.AMAX, scale="FP32", scale_bits=32)


def rotated(x: Float[Tensor, "*shape"], block: int) -> Float[Tensor, "*shape"]:
    """Blocks of the last axis times the normalized Hadamard matrix, which is its own inverse.

    Sylvester's matrix, by butterflies: additions in a fixed order.

    Raises:
        UnitError: The axis is no whole number of blocks.

    Example:
        >>> rotated(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4).tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    cols = x.shape[-1]
    if cols % block:
        raise UnitError(
            f"blocks of {block} cannot be turned in rows of {cols}; give a power of two that "
            f"divides {cols}"
        )
    y = x.reshape(-1, block)
    step = 1
    while step < block:
        pairs = y.view(-1, block // (2 * step), 2, step)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        y = torch.stack([first + second, first - second], dim=2).view(-1, block)
        step *= 2
    return (y * torch.tensor(block, dtype=x.dtype).rsqrt()).view(x.shape)


def scattered(
    x: Float[Tensor, "*shape"], image: Float[Tensor, "*shape"], size: int
) -> Float[Tensor, "*shape"]:
    """`x` off by as much as its image in every block of `size`, in random directions.

    The dice are the image's: what rounds alike is scattered alike.
    """
    cols = x.shape[-1]
    fill = (0, -cols % size)
    own, other = (torch.nn.functional.pad(part, fill) for part in (x, image))
    blocks = (*own.shape[:-1], own.shape[-1] // size, size)
    own, other = own.view(blocks), other.view(blocks)
    error = other - own
    noise = _directions(other) * (_sums(error * error)).sqrt()
    return (own + noise).flatten(-2)[..., :cols]


def noisy(y: Float[Tensor, "*rows cols"], db: float) -> Float[Tensor, "*rows cols"]:
    """Every row with noise in a random direction, of an energy relative to its own.

    Args:
        y: What leaves a product.
        db: The noise's energy, of that of the row, in decibels.
    """
    own = y.detach().to(torch.float32)
    reach = torch.tensor(10 ** (db / 20), dtype=torch.float32, device=y.device)
    noise = _directions(own[..., None, :])[..., 0, :] * (_sums(own * own)).sqrt() * reach
    return (own + noise).to(y.dtype)


def _directions(
    blocks: Float[Tensor, "*rows blocks size"],
) -> Float[Tensor, "*rows blocks size"]:
    """A random direction of length 1 for each block, by its bits and place in the row."""
    count, size = blocks.shape[-2:]
    bits = (blocks + 0.0).contiguous().view(torch.int32)  # no negative zero
    places = torch.arange(count * size, dtype=torch.int32, device=blocks.device).view(count, size)
    each = _mixed(bits ^ _mixed(places + 0x1234567))
    # Integers wrap, so their sum has no order.
    whole = _mixed(each.sum(-1, keepdim=True, dtype=torch.int32))
    dice = _mixed(whole + places * 2 + 1)
    # Four bytes summed: nearly normal, and small integers whose squares are exact in FP32.
    bell = sum(((dice >> shift) & 255 for shift in (0, 8, 16, 24)), start=dice * 0) - 510
    lengths = (bell * bell).sum(-1, keepdim=True).clamp(min=1)
    return bell.to(torch.float32) / lengths.to(torch.float32).sqrt()


def _mixed(h: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """A hash of each number: the finalizer of MurmurHash3, in 32 bits that wrap."""
    for factor, shift in ((-0x7A143595, 16), (-0x3D4D51CB, 13)):
        h = (h ^ ((h >> shift) & (2 ** (32 - shift) - 1))) * factor
    return h ^ ((h >> 16) & 0xFFFF)


def _sums(x: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows 1"]:
    """Over the last axis, in a fixed order: halves are added until one number is left."""
    while x.shape[-1] > 1:
        if x.shape[-1] % 2:
            x = torch.nn.functional.pad(x, (0, 1))
        first, second = x.chunk(2, dim=-1)
        x = first + second
    return x
