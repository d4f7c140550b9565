"""Images of operands that are fitted to what enters a product, as the calibration text has it.

*Second order* (GPTQ): a weight's columns are rounded one after another, and what each is off by is
made up for by those that are not rounded yet. Of all ways the squared error of the product's
output is then close to the least, where rounding each weight to the nearest has the least error of
weights. A block takes its scale as its turn comes, from what its columns have become. What is
stored has the same format, and engines would run it as any other.

*Smoothing* (SmoothQuant): an input's channels are divided by factors, and the weight's columns are
multiplied by them, so that outliers of inputs move into weights. A factor is the square root of the
largest input over the largest weight, rounded to a power of two, so that neither operand is rounded
by it. Here each product has its own; `folding` has one set for all that read a norm.

Source: Frantar et al., GPTQ (arXiv 2210.17323), sections 3.2 and 3.3; Xiao et al., SmoothQuant
(arXiv 2211.10438), equation 4 with alpha 0.5.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fp4scope.errors import UnitError
from fp4scope.formats import BlockFormat
from fp4scope.kernels.dispatch import tensor_scales
from fp4scope.kernels.eager import quantize_blocks, round_
from fp4scope.operands.adapters import Input
from fp4scope.operands.products import product_at, watched
from fp4scope.treatments import Fit, Treatment

_DAMPING = 0.01
"""Of the mean of the diagonal, as GPTQ has it: the text says little of some directions."""


@dataclass(frozen=True)
class Moments:
    """What a calibration text says of one product's input.

    Attributes:
        gram: Sums over tokens of the products of two channels.
        amax: Largest magnitude of each channel.
    """

    gram: Float[Tensor, "cols cols"]
    amax: Float[Tensor, " cols"]


@torch.no_grad()
def observe_moments(
    model: nn.Module, linears: Iterable[str], forwards: Iterable[None]
) -> dict[str, Moments]:
    """Moments of what enters each linear, over all of `forwards`.

    Args:
        model: The model. Hooks are there only while this runs.
        linears: Full module names; of products that hold no experts.
        forwards: An iterable whose every step runs the model once.
    """
    watch = {name: product_at(model, name) for name in linears}
    found: dict[str, Moments] = {}

    def collect(name: str, entering: Input) -> None:
        rows = entering.x.detach().flatten(0, -2).float()
        gram, amax = rows.T @ rows, rows.abs().amax(0)
        if (before := found.get(name)) is not None:
            gram += before.gram
            amax = torch.maximum(amax, before.amax)
        found[name] = Moments(gram, amax)

    with watched(watch, collect):
        for _ in forwards:
            pass
    return found


def smoothing(moments: Moments, weight: Float[Tensor, "rows cols"]) -> Float[Tensor, " cols"]:
    """By how much each channel of an input is divided: powers of two, 1 where either is zero."""
    return factors(moments.amax, weight.abs().amax(0).float())


def factors(
    inputs: Float[Tensor, " cols"], weights: Float[Tensor, " cols"]
) -> Float[Tensor, " cols"]:
    """The same from the largest magnitudes of inputs and of columns, in FP32."""
    factor = (inputs.to(weights.device) / weights).sqrt().log2().round().exp2()
    return torch.where(factor.isfinite() & (factor > 0), factor, 1.0)


def second_order(
    weight: Float[Tensor, "rows cols"],
    fmt: BlockFormat,
    gram: Float[Tensor, "cols cols"],
    amax: Tensor | None,
) -> Float[Tensor, "rows cols"]:
    """A weight's image, rounded column by column.

    Args:
        weight: Of whole blocks of the format.
        fmt: A format whose blocks have scales of their own.
        gram: Sums over tokens of the products of two input channels.
        amax: Of its tensor scale; None for its own.

    Example:
        >>> from fp4scope.formats import get_format
        >>> from fp4scope.kernels import qdq
        >>> w, fmt = torch.linspace(-3, 5, 64).view(2, 32), get_format("mxfp4")
        >>> bool((second_order(w, fmt, torch.eye(32), None) == qdq(w, fmt)).all())
        True
    """
    left = weight.detach().to(torch.float32).clone()
    g = tensor_scales(left, fmt, amax) if fmt.is_given_scale else None
    reach = _reach(gram.to(left.device)).float()
    image = torch.empty_like(left)
    size = fmt.block_size
    for start in range(0, left.shape[1], size):
        stop = start + size
        own = left[:, start:stop]
        scale = quantize_blocks(own[:, None].contiguous(), fmt, g).scale
        scale = scale.expand(len(own), 1, size)[:, 0]
        errors = torch.empty_like(own)
        for place in range(size):
            column = own[:, place]
            image[:, start + place] = rounded = _rounded(column, scale[:, place], fmt)
            row = reach[start + place, start + place : stop]
            errors[:, place] = (column - rounded) / row[0]
            own[:, place:] -= errors[:, place, None] * row
        left[:, stop:] -= errors @ reach[start:stop, stop:]
    return image


def _rounded(
    column: Float[Tensor, " rows"], scale: Float[Tensor, " rows"], fmt: BlockFormat
) -> Float[Tensor, " rows"]:
    magnitudes = torch.where(scale > 0, column.abs() / scale, 0.0)
    return torch.copysign(round_(magnitudes, fmt.element) * scale, column)


def _reach(gram: Float[Tensor, "cols cols"]) -> Float[Tensor, "cols cols"]:
    """The upper Cholesky factor of the inverse: how far an error reaches into later columns."""
    whole = gram.double()
    diagonal = whole.diagonal()
    # A channel that was never other than zero: nothing is known, so it stands alone.
    diagonal[diagonal == 0] = 1.0
    diagonal += _DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(whole))
    return torch.linalg.cholesky(inverse, upper=True)


class Fits:
    """What images of a model's operands are fitted to.

    Args:
        weight_of: The original weight of a product by its name.
    """

    def __init__(self, weight_of: Callable[[str], Float[Tensor, "rows cols"]]) -> None:
        self._weight_of = weight_of
        self._moments: dict[str, Moments] = {}
        self._channels: dict[str, Tensor] = {}

    def take(self, moments: Mapping[str, Moments]) -> None:
        """What some products' inputs are like."""
        self._moments.update(moments)
        self._channels.clear()

    def of(self, name: str, treatment: Treatment) -> dict[str, Any]:
        """What the image of an operand of a product needs beside it, as `image_of` has it.

        Raises:
            UnitError: Its treatment is fitted to inputs that nothing is known of.
        """
        if treatment.fit is None:
            return {}
        if name not in self._moments:
            raise UnitError(
                f"{treatment.name} is fitted to the inputs of {name}, of which nothing is known; "
                "it is measured as a remedy (--remedies N)"
            )
        if treatment.fit is Fit.GPTQ:
            return {"moments": self._moments[name]}
        if name not in self._channels:
            self._channels[name] = smoothing(self._moments[name], self._weight_of(name))
        return {"channels": self._channels[name]}
