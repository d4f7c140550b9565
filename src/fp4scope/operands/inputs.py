"""How what enters a linear is quantized: in which ways, once for all that read it, for each part.

Where a gradient is wanted it passes straight through the quantized inputs, as if quantizing were
the identity (Bengio et al. 2013, arXiv 1308.3432): the map's own is zero almost everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fp4scope.operands.adapters import Input, Product
from fp4scope.operands.images import places_of
from fp4scope.recipes import Part
from fp4scope.treatments import Treatment

Amaxes = float | tuple[float, ...] | None
"""Of a product, of each of its experts, or not known before."""


class Chosen(NamedTuple):
    """How what enters some experts or parts is quantized; all of it where `pieces` is None."""

    treatment: Treatment
    amax: Amaxes
    pieces: tuple[int, ...] | None


class SeveralTimes:
    """A product that runs once for each way in which what enters its parts is treated.

    Each part of its output is of the run with its own input.
    """

    def __init__(
        self,
        product: Product,
        parts: Sequence[Part],
        chosen: Sequence[Chosen],
        quantize: Callable[[Sequence[Chosen], str, Input], Tensor],
    ) -> None:
        self._product, self._parts, self._quantize = product, parts, quantize
        self._first, *self._others = chosen
        treated = {piece for each in chosen for piece in each.pieces or ()}
        self._plain = tuple(piece for piece in range(len(parts)) if piece not in treated)

    def before(self, name: str, entering: Input) -> Tensor:
        return self._quantize([self._first._replace(pieces=None)], name, entering)

    def after(self, name: str, entering: Input, output: Tensor) -> Tensor:
        for each in self._others:
            x = self._quantize([each._replace(pieces=None)], name, entering)
            output = self._merged(output, entering._replace(x=x), each.pieces or ())
        return self._merged(output, entering, self._plain)

    def _merged(self, output: Tensor, entering: Input, pieces: Sequence[int]) -> Tensor:
        """The output, these parts of it from another input."""
        if not pieces:
            return output
        rows = places_of(self._parts, pieces, output.device)
        own = self._product.run(entering).index_select(-1, rows)
        return output.index_copy(-1, rows, own)


@dataclass(frozen=True)
class SharedInput:
    """The last quantized input: the next linear often reads the same tensor."""

    x: Tensor
    version: int
    chosen: Sequence[Chosen]
    apart: str
    image: Tensor

    def is_for(self, x: Tensor, chosen: Sequence[Chosen], apart: str) -> bool:
        known = (self.chosen, self.apart) == (chosen, apart)
        return self.x is x and self.version == x._version and known


class _StraightThrough(torch.autograd.Function):
    """Forward the image, bit for bit; backward the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, image: Tensor) -> Tensor:  # noqa: ANN401
        return image.view_as(image)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradients[0], None


def straight_through(x: Tensor, image: Tensor) -> Tensor:
    """`image`, its gradient that of `x`. `x + (image - x).detach()` would change bits."""
    found = _StraightThrough.apply(x, image)
    assert isinstance(found, Tensor)
    return found
