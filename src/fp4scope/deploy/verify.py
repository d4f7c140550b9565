"""Whether an engine serves what was predicted, and if not, what it serves instead.

A candidate is one way to run a checkpoint: inputs quantized as predicted, weights alone, inputs
under another scale rule, tensor scales taken for their inverse. Each is run by the model's own
forward, and gives a loss for every token; `stats.inference.matching` tells which of them the served
losses are. `triage` says where the damage comes from, `held` what is stored otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from fp4scope.deploy.losses import Looked, losses_of, scaled
from fp4scope.deploy.plan import Export, Packed
from fp4scope.deploy.schemes import SERVED_RULE, Kind
from fp4scope.formats import get_format
from fp4scope.groups import scale_partners
from fp4scope.models import LoadedModel
from fp4scope.operands import Injector
from fp4scope.recipes import expert_of
from fp4scope.stats.inference.intervals import Estimate, paired
from fp4scope.stats.inference.matching import Match, best_of, match
from fp4scope.stats.inference.sharpness import Sharpness, flatter
from fp4scope.treatments import Amax, Setting, Treatment

Losses = NDArray[np.float64]
"""Loss of each token but the first of its window, (windows, tokens - 1), in nats."""
Cause = Literal["none", "kernel", "format", "checkpoint"]
_HALF = 0.5
"""A slope at which what a candidate predicts leaves as much unexplained as nothing does."""
_FAR = 0.1
_FP4: tuple[Kind, ...] = ("nvfp4", "mxfp4")
_OTHER_RULES: Mapping[Kind, tuple[str, ...]] = {
    "nvfp4": ("nvfp4:4over6",),
    "mxfp4": ("mxfp4:floor", "mxfp4:rceil"),
    "mxfp8": ("mxfp8:e4m3:floor", "mxfp8:e4m3:rceil"),
    "fp8": (),
}


@dataclass(frozen=True)
class Candidate:
    """One way to run a checkpoint.

    Attributes:
        name: What it is.
        cause: What is off where it is served; `none` of what was predicted.
        inputs: How inputs are treated, by the kind of their weight.
        factors: What weights are multiplied by, by site.
    """

    name: str
    cause: Cause
    inputs: Mapping[Kind, Treatment] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What is served.

    Attributes:
        candidates: All that were tried, the predicted one first.
        matches: How each goes with what is served.
        less_predicted: Mean served loss less each candidate's, in nats per token.
        cost: Mean served loss less that of full precision, in nats per token.
        is_full: Whether it is the original: ten times nearer to it, in squares of tokens, than to
            any candidate.
        sharpness: How much flatter it is than the candidate nearest to it, by KL, where the
            likeliest tokens were served.
        nearest: Place of that candidate.
    """

    candidates: tuple[Candidate, ...]
    matches: tuple[Match, ...]
    less_predicted: tuple[Estimate, ...]
    cost: Estimate
    is_full: bool = False
    sharpness: Sharpness | None = None
    nearest: int = 0

    @property
    def has_temperature(self) -> bool:
        """Whether it is flatter or sharper than any candidate, and not the original."""
        return self.sharpness is not None and self.sharpness.is_off and not self.is_full

    @property
    def best(self) -> int:
        """The candidate with the highest correlation among those whose mean may be served."""
        return best_of(
            [found.near for found in self.matches],
            [found.correlation.value or 0.0 for found in self.matches],
        )

    @property
    def explained(self) -> bool:
        """Whether the best candidate has anything to do with what is served.

        With a slope of a half or less, what it predicts leaves as much of the served damage
        unexplained as nothing does.
        """
        low, high = self.matches[self.best].correlation.low, self.matches[self.best].slope.high
        return low is not None and low > 0 and high is not None and high > _HALF

    @property
    def is_open(self) -> bool:
        """Whether so many windows do not tell: the mean goes with the best candidate, and tokens
        say neither that it is served nor that it is not.
        """
        slope = self.matches[self.best].slope.high
        far = slope is not None and slope <= _HALF
        known = self.explained or self.is_full or self.has_temperature
        return not (known or far) and self.matches[self.best].near

    @property
    def as_predicted(self) -> bool:
        """Whether it is, or may be, the predicted one, and no rival that is told from it."""
        other = self.is_full or self.has_temperature
        return self.explained and self.matches[0].same and not other

    def sentence(self) -> str:
        """What it comes to."""
        best, found = self.candidates[self.best], self.matches[self.best]
        numbers = (
            f"correlation {_said(found.correlation)}, slope {_said(found.slope)} over "
            f"{self.cost.n} windows"
        )
        if self.is_full:
            return (
                "off: the engine serves the original in full precision, and not this checkpoint; "
                "look at what it loaded"
            )
        if self.has_temperature and self.sharpness is not None:
            return (
                f"off: next to {self.candidates[self.nearest].name}, what is served is "
                f"{flatter(self.sharpness)}; have the engine give log-probabilities before any "
                "temperature"
            )
        if self.is_open:
            return (
                f"what is served cannot be told with {self.cost.n} windows (closest: {best.name}, "
                f"{numbers}); serve more"
            )
        if not self.explained:
            return (
                f"off: what is served goes with no candidate (best: {best.name}, {numbers}); check "
                "that tokens are served as ids, and that the engine loads this checkpoint"
            )
        if self.as_predicted:
            same = [c.name for c, m in zip(self.candidates, self.matches, strict=True) if m.same]
            rivals = [name for name in same if name != self.candidates[0].name]
            more = f"; not told from: {', '.join(rivals)} (serve more windows)" if rivals else ""
            own = self.matches[0]
            return (
                f"served as predicted: correlation {_said(own.correlation)}, slope "
                f"{_said(own.slope)} over {self.cost.n} windows{more}"
            )
        return f"{best.cause} is off: the engine serves {best.name} ({numbers})"


def _said(interval: tuple[float | None, float | None, float | None]) -> str:
    value, low, high = interval
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def judge(
    served: Losses,
    full: Losses,
    candidates: Sequence[Candidate],
    losses: Sequence[Losses],
    reference: Losses | None = None,
) -> Verdict:
    """Which candidate is served.

    Args:
        served: By the engine.
        full: Of the model in full precision.
        candidates: The predicted one first.
        losses: Theirs.
        reference: Of the model in full precision, by the engine; by default `full`.
    """
    own = full if reference is None else reference
    # Tokens of a served original differ from it by the engine's rounding alone.
    far = [np.square(served - own - (each - full)).mean() for each in losses]
    return Verdict(
        tuple(candidates),
        tuple(match(served - own, [each - full for each in losses], full)),
        tuple(paired(served.mean(1), each.mean(1)) for each in losses),
        paired(served.mean(1), own.mean(1)),
        bool(np.square(served - own).mean() < _FAR * min(far)),
    )


def candidates_of(export: Export, stored: Mapping[str, float]) -> list[Candidate]:
    """Ways to run a checkpoint: the predicted one first, then what engines do by mistake.

    Args:
        export: What its recipe asks for.
        stored: The tensor scale of each packed weight in it, by the weight's name.
    """
    kinds: list[Kind] = list(dict.fromkeys(s.kind for s in export.schemes if s.inputs))
    predicted: dict[Kind, Treatment] = {
        kind: Treatment(get_format(SERVED_RULE[kind])) for kind in kinds
    }
    found = [Candidate("what was predicted", "none", predicted)]
    if kinds:
        found.append(Candidate("weights only, inputs in full precision", "kernel", {}))
    wide: dict[Kind, Treatment] = {kind: t for kind, t in predicted.items() if kind not in _FP4}
    if wide and len(wide) < len(kinds):
        found.append(Candidate("weights only where they have 4 bits", "kernel", wide))
    for kind in kinds:
        for name in _OTHER_RULES[kind]:
            other: dict[Kind, Treatment] = {**predicted, kind: Treatment(get_format(name))}
            found.append(Candidate(f"inputs in {name}", "format", other))
        if kind == "nvfp4":
            own: dict[Kind, Treatment] = dict(predicted)
            own["nvfp4"] = Treatment(get_format("nvfp4"), Amax.WINDOW)
            found.append(Candidate("nvfp4 inputs with scales of each window", "kernel", own))
    if inverted := _inverted(export, stored):
        found.append(
            Candidate("tensor scales taken for their inverse", "kernel", predicted, inverted)
        )
    if shared := _from_one(export, stored):
        said = "one tensor scale for fused linears that have several"
        found.append(Candidate(said, "checkpoint", predicted, shared))
    return found


def _alone(export: Export, stored: Mapping[str, float]) -> dict[str, Packed]:
    """Weights with a tensor scale, by site, where each site is one tensor; else nothing."""
    scaled = [each for each in export.packed if each.key in stored]
    by_site = {each.site: each for each in scaled}
    return by_site if len(by_site) == len(scaled) else {}


def _inverted(export: Export, stored: Mapping[str, float]) -> dict[str, float]:
    return {
        site: stored[each.key] ** -2
        for site, each in _alone(export, stored).items()
        if stored[each.key] > 0
    }


def _from_one(export: Export, stored: Mapping[str, float]) -> dict[str, float]:
    """As engines do that keep the largest divisor of those that they fuse."""
    by_site = _alone(export, stored)
    smallest: dict[object, float] = {}
    for each in by_site.values():
        own = stored[each.key]
        smallest[each.scale] = min(own, smallest.get(each.scale, own))
    factors = {site: smallest[e.scale] / stored[e.key] for site, e in by_site.items()}
    return {site: factor for site, factor in factors.items() if factor != 1}


def losses_under(
    loaded: LoadedModel,
    export: Export,
    candidate: Candidate,
    ids: Int[Tensor, "windows tokens"],
    ran: Callable[[], None] = lambda: None,
    *,
    amaxes: Mapping[str, float] | None = None,
    quantize: bool = False,
    replica: int = 0,
    look: Looked | None = None,
) -> Float64[np.ndarray, "windows targets"]:
    """The same of a checkpoint, or of its original, that is run in one of the ways.

    Args:
        loaded: The checkpoint, its weights dequantized; the original where they are quantized here.
        export: What its recipe asks for.
        candidate: The way.
        ids: Token ids.
        ran: Called after each window.
        amaxes: What static scales of inputs come from, by site or product; by default what the
            recipe has.
        quantize: Whether weights are quantized as the recipe says, with tensor scales as served.
        replica: As `losses_of` has it.
        look: Likewise.
    """
    settings: dict[str, Setting] = {}
    for each in export.packed:
        treatment = candidate.inputs.get(each.scheme.kind) if each.scheme.inputs else None
        setting = export.written.recipe.at(each.site)
        weight = setting.weight if quantize and setting is not None else None
        if weight is not None or treatment is not None:
            settings[each.site] = Setting(weight, treatment)
    fused = scale_partners(loaded.layout.sites) if quantize else {}
    known = by_product(
        {each.site: each.input_amax for each in export.packed if each.input_amax is not None}
        if amaxes is None
        else amaxes
    )
    injector = Injector(loaded.model, known, fused=fused)
    with scaled(injector, candidate.factors), injector.applied(settings):
        return losses_of(loaded, ids, ran, replica=replica, look=look)


def by_product(amaxes: Mapping[str, float]) -> dict[str, float]:
    """What enters a product, from what enters its sites: the largest of a stack's experts."""
    found: dict[str, float] = {}
    for site, amax in amaxes.items():
        expert = expert_of(site)
        name = site if expert is None else expert[0]
        found[name] = max(amax, found.get(name, 0.0))
    return found
