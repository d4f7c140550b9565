"""A model that is served without its weights: which recipes its log-probabilities go with."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fp4scope.conductor.likeliest import Likeliest
from fp4scope.conductor.triage import Counter, observed
from fp4scope.deploy.losses import losses_of
from fp4scope.deploy.served import Served
from fp4scope.deploy.verify import Losses
from fp4scope.groups import scale_partners
from fp4scope.models import LoadedModel
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.stats.inference.consistency import (
    Consistency,
    Divergences,
    consistency,
)
from fp4scope.stats.inference.intervals import Estimate, mean
from fp4scope.stats.inference.sharpness import Sharpness, flatter, sharpness
from fp4scope.stats.inference.steps import total
from fp4scope.sweep import Listener

CANDIDATES = ("full", "fp8", "nvfp4", "nvfp4/w4a16", "mxfp4:even", "mxfp4:even/w4a16")
"""What is tried where nothing is named."""


@dataclass(frozen=True)
class Tried:
    """One candidate.

    Attributes:
        name: As it was asked for.
        cost: What it costs here, nats per token.
        found: How well it goes with what is served.
        kl: At least so much KL is from it to what is served, nats per token; None where only the
            tokens of the text were served.
        sharpness: How much flatter what is served is than it; None likewise.
    """

    name: str
    cost: Estimate
    found: Consistency
    kl: Estimate | None
    sharpness: Sharpness | None = None


def try_candidates(
    loaded: LoadedModel,
    recipes: Mapping[str, Recipe],
    served: Served,
    reference: Served | None,
    tell: Listener,
) -> list[Tried]:
    """How well each recipe goes with what is served, the likeliest first.

    Args:
        loaded: The model in full precision.
        recipes: What may be served, by name.
        served: What an engine gave.
        reference: What it gave with the original, where it is known that it did.
        tell: Hears how far it is.

    Raises:
        DataError: Tokens that the model does not have.
    """
    ids = torch.from_numpy(served.ids)
    loaded.require_known(ids, "the windows")
    bounds = [Likeliest(loaded, each) for each in (served, reference) if each is not None]
    names = ["full precision", *(f"{name}{more}" for name in recipes for more in ("", ", again"))]
    ran = Counter(tell, len(ids), names)

    def look(window: int, logits: torch.Tensor) -> None:
        for each in bounds:
            each.first(window, logits)

    full, seen = observed(loaded, ids, ran, look)
    injector = Injector(
        loaded.model,
        seen,
        parts=loaded.layout.parts,
        fused=scale_partners(loaded.layout.sites),
    )
    runs: dict[str, tuple[Losses, Losses]] = {}
    known: list[Likeliest] = []
    for name, recipe in recipes.items():
        settings = dict(recipe.in_block(loaded.layout.sites.everywhere))
        known.append(own := Likeliest(loaded, served))
        with injector.applied(settings):
            first = losses_of(loaded, ids, ran, look=own.first)
            runs[name] = first, losses_of(loaded, ids, ran, replica=1, look=own.second)
        injector.forget()
    gave = -served.logprobs
    rounding = None if reference is None else -reference.logprobs - full
    firsts, seconds = ([pair[place] for pair in runs.values()] for place in (0, 1))
    kl = None
    if served.top_ids is not None:
        theirs = bounds[1].kl if reference is not None and reference.top_ids is not None else None
        both = [each.kl for each in known], [each.rerun for each in known]
        kl = Divergences(*both, bounds[0].kl, theirs, [each.slopes for each in known])
    found = consistency(gave, full, firsts, seconds, rounding, kl)
    tried = [
        Tried(
            name,
            total(first, full),
            each,
            None if kl is None else mean(own.kl),
            None if kl is None else sharpness(own.slopes),
        )
        for name, first, each, own in zip(runs, firsts, found, known, strict=True)
    ]
    return sorted(tried, key=lambda each: -each.found.log10_ratio)


def _temperature(tried: list[Tried]) -> str:
    """Whether what is served is the nearest candidate at another temperature."""
    known = [(each.kl.mean, each) for each in tried if each.kl is not None]
    _, nearest = min(known, key=lambda each: each[0], default=(0.0, None))
    if nearest is None or nearest.sharpness is None or not nearest.sharpness.is_off:
        return ""
    return f". Next to {nearest.name} it is {flatter(nearest.sharpness)}"


def said(tried: list[Tried], windows: int) -> str:
    """What it comes to."""
    fit = [each for each in tried if each.found.is_consistent]
    if not fit:
        off = tried[0].found.off.mean * 1e3
        return (
            f"none of {len(tried)} candidates goes with what is served (the likeliest, "
            f"{tried[0].name}, is off by {off:+.1f} millinats){_temperature(tried)}; it is "
            "something else, or served from other ids: name more with --candidates"
        )
    names = ", ".join(each.name for each in fit)
    if len(fit) == 1:
        return f"consistent with {names} alone, of {len(tried)} candidates, on {windows} windows"
    return f"consistent with {names}: not told apart on {windows} windows, so serve more"
