"""What quantizing every unit costs, to first order, from one forward and backward of a window.

Let y = W x be what a linear gives and g the gradient of the loss L (the NLL summed over the
window's targets) with respect to y. Quantizing the linear moves y to Wq xq, so to first order in
that move it costs

    <g, Wq xq - W x>    nats, positive: quantizing this costs.

One backward pass has g at all linears, so it serves all units at once; a unit of several linears
is the sum of theirs. Where the gradient is taken is the direction. For `only` it is the
reference, and the one pass serves every format and choice of operands, for only the differences
depend on them. For `keep` it is the all-quantized model, whose own g and x say what undoing the
quantization of one linear saves; g passes straight through the quantizers of the inputs, as if they
were the identity, because their own gradient is zero almost everywhere.

What it leaves out: curvature (the error of a linear times itself), how the errors of two linears
act on each other, and, for `keep` with quantized activations, that other inputs are rounded
anew. The first two are not small in FP4, which is why the estimate is called one, and why its
ranking is held against the exact sweep's where both were run.

Numbers: the move is that of `Injector.moved`, inner products are FP64. In FP16 the loss is scaled
by a power of two, or small gradients would vanish; by a smaller one where a large gradient
overflows.

Memory: one window's graph, the inputs of the linears with it, and at an all-quantized model the
quantized weights.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from fp4scope.design import Contrast
from fp4scope.errors import ModelError, NonFiniteError
from fp4scope.models import LoadedModel
from fp4scope.operands import Injector, Input, nonfinite_cause, watched
from fp4scope.recipes import Site, Sites
from fp4scope.treatments import Setting

_LOSS_SCALES = {torch.float16: (2.0**8, 1.0, 2.0**-8)}  # tried in turn
_TILE_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class WindowEstimates:
    """What one window says of every unit: nats summed over its targets.

    `nll` is that of the points where gradients were taken, by the settings of all linears there;
    None is the reference. It costs nothing, and tells whether the points are what they should be.
    """

    tokens: int
    nats: dict[Contrast, float]
    nll: dict[Setting | None, float]


def estimate_window(
    loaded: LoadedModel,
    ids: Int[Tensor, " tokens"],
    contrasts: Sequence[Contrast],
    injector: Injector,
) -> WindowEstimates:
    """First-order estimates of these units on one window.

    Args:
        loaded: The model. Afterwards it is as it was.
        ids: The window.
        contrasts: What keeping or quantizing a unit alone does.
        injector: Of the same model.

    Raises:
        ModelError: The model computes in a way through which no gradient comes.
        NonFiniteError: NaN or Inf in a quantized input, or an estimate that is not finite.
    """
    place = {site.name: i for i, site in enumerate(loaded.layout.sites)}
    asked: dict[Setting | None, list[Contrast]] = {}
    for contrast in contrasts:
        asked.setdefault(contrast.own.base, []).append(contrast)
    nats: dict[Contrast, float] = {}
    nll: dict[Setting | None, float] = {}
    for point, members in asked.items():
        wanted = _wanted(members, loaded.layout.sites)
        for scale in _LOSS_SCALES.get(loaded.dtype, (1.0,)):
            nll[point], costs = _one_point(loaded, ids, point, wanted, injector, scale)
            if all(isfinite(cost) for cost in costs.values()):
                break
        for contrast in members:
            setting = contrast.family.setting
            cost = sum(costs[name, setting] for name in _sites(contrast, place))
            if not isfinite(cost):
                raise NonFiniteError(
                    f"the estimate of {contrast.name} is {cost} in {loaded.dtype}: a "
                    f"gradient overflowed; {nonfinite_cause(loaded.model)}"
                )
            nats[contrast] = cost
    return WindowEstimates(tokens=len(ids) - 1, nats={c: nats[c] for c in contrasts}, nll=nll)


def _sites(contrast: Contrast, place: Mapping[str, int]) -> list[str]:
    """The sites of a unit in the order of the model, so that sums are always the same."""
    assert contrast.unit is not None
    return sorted(contrast.unit.sites, key=place.__getitem__)


def _wanted(contrasts: Iterable[Contrast], sites: Sites) -> dict[str, tuple[Setting, ...]]:
    """By linear, the settings under which some unit needs its cost."""
    found: dict[str, dict[Setting, None]] = {}
    for contrast in contrasts:
        assert contrast.unit is not None
        for name in contrast.unit.sites:
            for place in sites.places[name]:
                found.setdefault(place.product, {})[contrast.family.setting] = None
    return {name: tuple(settings) for name, settings in found.items()}


def _one_point(
    loaded: LoadedModel,
    ids: Int[Tensor, " tokens"],
    point: Setting | None,
    wanted: Mapping[str, tuple[Setting, ...]],
    injector: Injector,
    scale: float,
) -> tuple[float, dict[tuple[str, Setting], float]]:
    """The NLL there, and what each site costs under each setting; the loss is scaled."""
    sites = loaded.layout.sites
    everywhere = {} if point is None else {site.name: point for site in sites.everywhere}
    # Those of one point are kept for the next window, if there is no other in between.
    kept = {(name, point.weight) for name in loaded.layout.linears} if point else set()
    injector.forget(injector.held - kept)
    taps = _Taps(injector, wanted, point)
    products = {loaded.products[name].identity: name for name in reversed([*wanted])}
    chosen = {name: loaded.products[name] for name in products.values()}
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        # Before the injector's: what a tap sees of an input is not quantized yet.
        stack.enter_context(watched(chosen, after=taps.listen))
        entrance = stack.enter_context(_entrance(loaded))
        stack.enter_context(injector.applied(everywhere))
        logits = loaded.model(ids[None].to(loaded.device), use_cache=False).logits[0]
        if not entrance or not logits.requires_grad:
            raise ModelError(
                f"no gradient comes through the forward of {type(loaded.model).__name__}, so it "
                "cannot be estimated from; leave --method at exact"
            )
        nll, gradient = _loss(logits.detach(), ids[1:].to(loaded.device), scale)
        torch.autograd.grad(logits, entrance[0], gradient)
    values = iter(torch.cat(list(taps.found.values())).tolist() if taps.found else [])
    costs = {key: [next(values) for _ in cost] for key, cost in taps.found.items()}
    found: dict[tuple[str, Setting], float] = {}
    for site in sites:
        for setting in wanted.get(site.product, ()):
            cost = sum(_cost(costs, place, setting) for place in sites.places[site.name])
            found[site.name, setting] = cost / scale
    return nll, found


def _cost(costs: Mapping[tuple[str, Setting], list[float]], site: Site, setting: Setting) -> float:
    """Of a site in one place."""
    # None where the loss does not depend on it, such as an expert that no token chose.
    each = costs.get((site.product, setting), [0.0] * ((site.expert or 0) + 1))
    return sum(each) if site.expert is None else each[site.expert]


def _loss(
    logits: Shaped[Tensor, "tokens vocab"], targets: Int[Tensor, " targets"], scale: float
) -> tuple[float, Shaped[Tensor, "tokens vocab"]]:
    """The NLL summed over the targets, and the gradient of `scale` times it: softmax - one-hot.

    By hand and in tiles of rows, so that no second copy of the logits in FP32 is ever held.
    """
    gradient = torch.zeros_like(logits)
    nll = torch.zeros((), dtype=torch.float64, device=logits.device)
    wide = torch.promote_types(logits.dtype, torch.float32)
    for start in range(0, len(targets), _TILE_ROWS):
        chosen = targets[start : start + _TILE_ROWS, None]
        rows = slice(start, start + len(chosen))
        logp = logits[rows].to(wide).log_softmax(-1)
        nll -= logp.gather(-1, chosen).sum(dtype=torch.float64)
        share = logp.exp_()
        share.scatter_add_(-1, chosen, torch.full_like(chosen, -1, dtype=wide))
        gradient[rows] = (scale * share).to(logits.dtype)
    return float(nll), gradient


@contextmanager
def _entrance(loaded: LoadedModel) -> Iterator[list[Tensor]]:
    """What enters block 0 wants a gradient; nothing before it and no parameter does."""
    found: list[Tensor] = []

    def cut(hidden: Tensor) -> Tensor:
        leaf = hidden.detach().requires_grad_()
        found.append(leaf)
        return leaf.clone()  # a model may write into what enters its blocks, but not into a leaf

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (cut(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": cut(kwargs["hidden_states"])}

    first = loaded.model.get_submodule(f"{loaded.layout.blocks_path}.0")
    handle = first.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


class _Taps:
    """Keep what enters linears, and in the backward pass add up what quantizing each costs.

    `found` has the costs by linear and setting, of each of its experts.
    """

    def __init__(
        self, injector: Injector, wanted: Mapping[str, Sequence[Setting]], point: Setting | None
    ) -> None:
        self._injector, self._wanted, self._point = injector, wanted, point
        self.found: dict[tuple[str, Setting], Tensor] = {}

    def listen(self, name: str, entering: Input, output: Tensor) -> None:
        if not output.requires_grad:
            raise ModelError(
                f"no gradient comes to {name}, so it cannot be estimated; leave --method at exact"
            )
        x = entering.x
        detached = entering._replace(x=x.detach())
        output.register_hook(partial(self._add, name, detached, x._version))

    def _add(self, name: str, entering: Input, version: int, gradient: Tensor) -> None:
        if entering.x._version != version:
            raise ModelError(
                f"the model writes into what entered {name}, so it cannot be estimated; "
                "leave --method at exact"
            )
        for setting in self._wanted[name]:
            moves = self._injector.moved(name, setting, entering)
            if entering.ends is None:
                cost = torch.dot(gradient.flatten().double(), moves.flatten().double())[None]
            else:
                rows = (gradient.double() * moves.double()).sum(-1)
                expert = entering.by_row(torch.arange(len(entering.ends), device=rows.device))
                cost = rows.new_zeros(len(entering.ends)).index_add_(0, expert, rows)
            key = (name, setting)
            self.found[key] = self.found[key] + cost if key in self.found else cost
        done = {s.weight for s in self._wanted[name] if s != self._point}
        self._injector.forget((name, treatment) for treatment in done if treatment is not None)
