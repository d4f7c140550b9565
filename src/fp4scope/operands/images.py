"""Quantized weights, kept until they are let go of.

The image of a product of experts need not be whole: what single experts want of it is made when
they want it. Where experts or parts of one product are treated differently, the weight that stands
in the model is a mixture of originals and images. From one mixture to the next only what differs is
copied. A part's image is cut out of that of the whole, so its scales are those of the whole.

A weight has a tensor scale of its own, or one with all that an engine fuses with it: that of the
largest magnitude among them, whatever those are quantized to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import is_
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from fp4scope.operands.adapters import Product
from fp4scope.operands.treated import image_of, rotated
from fp4scope.recipes import Part
from fp4scope.treatments import Fit, Treatment

Image = tuple[str, Treatment]
"""A product by name, or one of its experts, and how its weight is treated."""
_MOST_ALONE = 0.25
"""Of the experts of a product: more are quantized in one call for all of them."""


Source = tuple[Product, nn.Parameter]
"""A product, and what it holds when nothing is treated."""


@dataclass
class _Kept:
    """An image, good while weights are the same; which experts it has, and which are wanted.

    The weights are its own and those that it shares a tensor scale with.
    """

    weights: Sequence[nn.Parameter]
    versions: Sequence[int]
    image: nn.Parameter | None = None
    made: set[int] = field(default_factory=set)
    wanted: set[int] = field(default_factory=set)

    def is_for(self, weights: Sequence[nn.Parameter]) -> bool:
        same = len(weights) == len(self.weights) and all(map(is_, weights, self.weights))
        return same and _versions(weights) == self.versions


class _Mixture:
    """A parameter whose experts, or parts, are those of several."""

    def __init__(
        self, original: nn.Parameter, product: Product, parts: Sequence[Part] | None
    ) -> None:
        self._weight, self._version = original, original._version
        self._product, self._parts = product, parts
        count = product.experts if parts is None else len(parts)
        self._sources: list[nn.Parameter | None] = [original] * count
        self._parameter = nn.Parameter(original.detach().clone(), requires_grad=False)

    def is_for(self, weight: nn.Parameter) -> bool:
        return self._weight is weight and self._version == weight._version

    @torch.no_grad()
    def of(self, sources: Sequence[nn.Parameter]) -> nn.Parameter:
        """The parameter with each expert or part from its source."""
        for piece, (now, source) in enumerate(zip(self._sources, sources, strict=True)):
            if now is not source:
                self._copy(piece, source)
        self._sources = list(sources)
        return self._parameter

    def _copy(self, piece: int, source: nn.Parameter) -> None:
        if self._parts is None:
            self._parameter[piece].copy_(source[piece])
            return
        into, own = (self._product.shaped(weight) for weight in (self._parameter, source))
        axis = -2 if self._parts[piece].axis == "rows" else -1
        places = places_of(self._parts, [piece], into.device)
        into.index_copy_(axis, places, own.index_select(axis, places))

    def lose(self, image: nn.Parameter) -> None:
        """Hold this image no longer."""
        self._sources = [None if source is image else source for source in self._sources]


class Images:
    """Images of weights by product and treatment.

    Args:
        flag: Of a product's name and its weight: what is to be true if that is not finite.
        partners: Of a product's name: others that it shares a tensor scale with.
        fits: Of a product's name and a treatment: what its image is fitted to (`image_of`).
    """

    def __init__(
        self,
        flag: Callable[[str, Tensor], Bool[Tensor, ""]],
        partners: Callable[[str], Sequence[Source]] = lambda name: (),
        fits: Callable[[str, Treatment], Mapping[str, Any]] = lambda name, treatment: {},
    ) -> None:
        self._flag = flag
        self._fits = fits
        self._partners = partners
        self._kept: dict[Image, _Kept] = {}
        self._mixtures: dict[str, _Mixture] = {}

    @property
    def held(self) -> frozenset[Image]:
        return frozenset(self._kept)

    def forget(self, name: str, treatment: Treatment, piece: int | None = None) -> None:
        """Let go of an image; of an expert's or a part's, when no other's is wanted."""
        kept = self._kept.get((name, treatment))
        if kept is None:
            return
        kept.wanted -= kept.wanted if piece is None else {piece}
        if not kept.wanted:
            del self._kept[name, treatment]
            if name in self._mixtures and kept.image is not None:
                self._mixtures[name].lose(kept.image)

    def forget_mixtures(self) -> None:
        """Let go of weights whose experts come from several images."""
        self._mixtures.clear()

    def of(
        self,
        name: str,
        product: Product,
        original: nn.Parameter,
        wanted: Mapping[int, Treatment],
        parts: Sequence[Part] | None = None,
    ) -> nn.Parameter:
        """What stands for a weight some of whose experts are treated; all of most products' one.

        Args:
            name: The product's.
            product: It.
            original: What it holds when nothing is treated.
            wanted: By expert, or part, from 0.
            parts: All of its parts, if they are treated one by one.
        """
        count = product.experts if parts is None else len(parts)
        by_treatment: dict[Treatment, list[int]] = {}
        for expert, treatment in wanted.items():
            by_treatment.setdefault(treatment, []).append(expert)
        whole = parts is not None
        if len(by_treatment) == 1 and len(wanted) == count:
            return self._image(name, product, original, *by_treatment.popitem(), whole)
        sources = [original] * count
        for treatment, experts in by_treatment.items():
            image = self._image(name, product, original, treatment, experts, whole)
            for expert in experts:
                sources[expert] = image
        mixture = self._mixtures.get(name)
        if mixture is None or not mixture.is_for(original):
            mixture = self._mixtures[name] = _Mixture(original, product, parts)
        return mixture.of(sources)

    def _image(
        self,
        name: str,
        product: Product,
        original: nn.Parameter,
        treatment: Treatment,
        experts: Sequence[int],
        whole: bool,
    ) -> nn.Parameter:
        """The image of a weight; only these experts of it need be right, if it is not of parts."""
        # Smoothed weights are none that an engine fuses as they are.
        alone = not treatment.format.uses_tensor_amax or treatment.fit is Fit.SMOOTH
        partners = () if alone else self._partners(name)
        weights = [original, *(weight for _, weight in partners)]
        kept = self._kept.get((name, treatment))
        if kept is None or not kept.is_for(weights):
            kept = _Kept(weights, _versions(weights))
        kept.wanted.update(experts)
        needed = range(product.experts) if whole else experts
        missing = [expert for expert in needed if expert not in kept.made]
        if missing:
            self._make(name, (product, original), kept, treatment, missing, partners)
            self._kept[name, treatment] = kept
        assert kept.image is not None
        return kept.image

    def _make(
        self,
        name: str,
        source: Source,
        kept: _Kept,
        treatment: Treatment,
        missing: Sequence[int],
        partners: Sequence[Source],
    ) -> None:
        """All experts in one call, or the missing one by one where they are few."""
        product, weight = source[0], source[0].shaped(source[1])
        flag = self._flag(name, weight)
        others = [partner.shaped(own) for partner, own in partners]
        fits = self._fits(name, treatment)
        if len(missing) > _MOST_ALONE * product.experts:
            image = image_of(weight, treatment, _scale_amax(treatment, others), flag, **fits)
            kept.image = product.as_parameter(image)
            kept.made.update(range(product.experts))
            return
        if kept.image is None:
            kept.image = product.as_parameter(torch.empty_like(weight))
        image = product.shaped(kept.image)
        for expert in missing:
            amax = _scale_amax(treatment, [other[expert] for other in others])
            image[expert].copy_(image_of(weight[expert], treatment, amax, flag))
        kept.made.update(missing)


def _versions(weights: Sequence[nn.Parameter]) -> list[int]:
    return [weight._version for weight in weights]


def places_of(
    parts: Sequence[Part], pieces: Sequence[int], device: torch.device
) -> Int[Tensor, " places"]:
    """Where some of the parts are."""
    runs = [torch.arange(*run, device=device) for piece in pieces for run in parts[piece].runs]
    return torch.cat(runs)


def _scale_amax(
    treatment: Treatment, others: Sequence[Tensor]
) -> Callable[[Tensor], Tensor | None]:
    """Of what is quantized, to the amax of its tensor scale, for each expert; None for its own.

    Args:
        treatment: How it is treated.
        others: Weights that share the scale, with as many experts.
    """

    def amax(weight: Tensor) -> Tensor | None:
        if not treatment.format.uses_tensor_amax or (weight.ndim < 3 and not others):
            return None
        turned = [rotated(own.float(), treatment.hadamard) for own in others if treatment.hadamard]
        found = [
            torch.linalg.vector_norm(own, torch.inf, (-2, -1), keepdim=True)
            for own in (weight, *(turned or others))
        ]
        return reduce(torch.maximum, found)

    return amax
