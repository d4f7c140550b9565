"""How a quantized weight is stored, and its values: exact products of codes and scales, in FP32.

`x ~ element * scale * tensor_scale`. A scale belongs to a block of rows and columns of the weight,
and stands beside it under a name of its own; so may a scale of the whole tensor, by which
compressed-tensors divides and ModelOpt multiplies.

Sources: OCP MX v1.0 section 5 (E8M0, E2M1); the checkpoints that ModelOpt 0.47, compressed-tensors
0.20 and transformers 5.24 write and read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fp4scope.formats.spec import E2M1

Shape = tuple[int, ...]
FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
BYTES = frozenset({"U8", "I8"})
POWERS = frozenset({"U8", "F8_E8M0"})
FLOATS = frozenset({"F32", "BF16", "F16", "F64"})
_NIBBLES = torch.tensor([*E2M1.magnitudes, *(-m for m in E2M1.magnitudes)])
# The last byte is NaN; every power down to 2**-127 is an FP32 number.
_EXPONENTS = torch.tensor([*(2.0 ** (byte - 127) for byte in range(255)), float("nan")])


@dataclass(frozen=True, kw_only=True)
class Packing:
    """A way to store weights.

    `name` says it to a user. `codes` are the dtypes of the codes, as safetensors names them, and
    `ending` what is behind the parameter's name; `scales` are the dtypes of the scales of its
    `block`, rows and columns (None: all). `bits` below 8 are packed, low bits first. `roles` are
    what stands beside the codes.
    """

    name: str
    codes: frozenset[str]
    ending: str = ""
    bits: int = 8
    integer: bool = False
    scales: frozenset[str] = FLOATS
    block: tuple[int | None, int | None]
    roles: frozenset[str] = frozenset({"scale"})
    divides: bool = False
    transposed: bool = False
    """Blocks lie on an axis of their own; the parameter has rows and columns exchanged."""

    def shape(self, codes: Shape) -> Shape:
        """Of the values, from the codes'; before they are transposed."""
        if self.transposed:
            *lead, blocks, size = codes
            codes = (*lead, blocks * size)
        return (*codes[:-1], codes[-1] * self._in_one)

    def grid(self, codes: Shape) -> Shape:
        """The shape that the scales of a weight must have, but for axes of one."""
        *lead, rows, cols = self.shape(codes)
        sizes = zip((rows, cols), self.block, strict=True)
        return (*lead, *(1 if step is None else -(-size // step) for size, step in sizes))

    def values(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight in FP32.

        Args:
            parts: The tensor of each role; `codes` are the codes.
        """
        codes = parts["codes"]
        shape, grid = self.shape(tuple(codes.shape)), self.grid(tuple(codes.shape))
        scale = _floats(parts["scale"], self.scales).reshape(grid)
        if "tensor" in parts:
            experts = grid[:-2] if parts["tensor"].numel() > 1 else [1] * len(grid[:-2])
            whole = parts["tensor"].float().reshape(*experts, 1, 1)
            scale = scale / whole if self.divides else scale * whole
        found = self._elements(codes).reshape(shape)
        if "zero" in parts:
            found = found - self._spread(parts["zero"].float().reshape(grid), shape)
        found = found * self._spread(scale, shape)
        if "shape" in parts:
            found = found[..., : int(parts["shape"][-1])]  # it was filled up to a whole word
        return found.transpose(-2, -1).contiguous() if self.transposed else found

    @property
    def _in_one(self) -> int:
        """Elements in one code."""
        return (32 if "I32" in self.codes else 8) // self.bits

    def _elements(self, codes: Tensor) -> Tensor:
        if self._in_one == 1:
            return codes.float()
        if self.integer:
            steps = torch.arange(0, 32, self.bits, dtype=torch.int32)
            fields = (codes[..., None] >> steps) & (2**self.bits - 1)
            return (fields - 2 ** (self.bits - 1)).float()
        pair = codes.view(torch.uint8)
        return _NIBBLES[torch.stack([pair & 15, pair >> 4], dim=-1).int()]

    def _spread(self, scale: Tensor, shape: Shape) -> Tensor:
        """A scale for each element, or one that broadcasts."""
        for axis, step in zip((-2, -1), self.block, strict=True):
            if step is not None and step > 1:
                scale = scale.repeat_interleave(step, axis).narrow(axis, 0, shape[axis])
        return scale


def same_grid(found: Shape, expected: Shape) -> bool:
    """Whether two shapes differ in axes of one only."""
    return [size for size in found if size != 1] == [size for size in expected if size != 1]


def fits_tensor(found: Shape, grid: Shape) -> bool:
    """Whether a scale of whole tensors is one, or one for each of several experts."""
    return prod(found) == 1 or same_grid(found, grid[:-2])


def _floats(scale: Tensor, dtypes: frozenset[str]) -> Tensor:
    if dtypes == POWERS:
        return _EXPONENTS[scale.view(torch.uint8).int()]
    return scale.float()
