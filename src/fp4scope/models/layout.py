"""Where the blocks and projections of a causal language model are, from its structure alone.

The blocks are the items of the `nn.ModuleList` in the language model that holds the most linear
weights (`text`). A projection is a linear's path inside its block, cut to the shortest ending that
is unambiguous (`q_proj`; for GPT-2 `attn.c_proj` and `mlp.c_proj`) and says whether it is an
expert's (`experts.down_proj`, `shared_expert.down_proj`). The numbers of experts become `*`, so
that all experts' `gate_proj` of a block are one layer; experts in one tensor are one site. No list
of model names is needed. What stays in full precision (`exclude`, routers) is no layer; it is
listed with its reason.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import nn

from fp4scope.errors import ModelError, UnitError, nearest
from fp4scope.models.config import config_size, text_config
from fp4scope.models.exclude import NOTHING, Excluded, reason_for
from fp4scope.models.text import block_stack
from fp4scope.operands import Product, products
from fp4scope.recipes import Site, Sites, expert_name, matches

ROUTER = "router"
_EXPERTS = re.compile(r"experts?$|^shared_mlp$")
NEVER_RUNS = "never runs as a module, so its input cannot be quantized"


class Layer(NamedTuple):
    """One projection in one block."""

    block: int
    projection: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the blocks are, and the sites in them: a layer's (experts) follow one another.

    `coverage` is the share of the blocks' parameters that are weights of these linears. `excluded`
    are linears that stay in full precision, by choice or because they never run. `missed` names
    all other parameters, largest first, with their share: they cannot be reached.
    """

    blocks_path: str
    sites: Sites
    coverage: float
    missed: tuple[tuple[str, float], ...]
    excluded: tuple[Excluded, ...] = ()

    @property
    def blocks(self) -> int:
        return len(self.sites.blocks)

    @property
    def reachable(self) -> float:
        """Share of the blocks' parameters that can be quantized, whether it is or not."""
        return self.coverage + sum(e.share for e in self.excluded if e.reason != NEVER_RUNS)

    @property
    def projections(self) -> tuple[str, ...]:
        """Projection names in the order in which a block holds them."""
        return self.sites.projections

    @property
    def linears(self) -> tuple[str, ...]:
        """Full names of what holds the sites' weights: the sites, but for single experts."""
        return tuple(dict.fromkeys(site.product for site in self.sites))

    @cached_property
    def layers(self) -> dict[Layer, tuple[str, ...]]:
        """The linears of every layer by their full module names."""
        found: defaultdict[Layer, dict[str, None]] = defaultdict(dict)
        for site in self.sites:
            found[Layer(site.block, site.projection)][site.product] = None
        return {layer: tuple(names) for layer, names in found.items()}

    @property
    def layer_of(self) -> dict[str, Layer]:
        return {name: layer for layer, names in self.layers.items() for name in names}


class _Found(NamedTuple):
    """What may be a site. Routers without a linear are no product."""

    name: str
    holder: str
    """Where its weight is: itself, but for one of several experts in a tensor."""
    block: int
    inner: str
    """The holder's path in the block, numbers of experts as `*`."""
    weight: nn.Parameter
    product: Product | None
    expert: int | None
    reason: str | None
    """Why it stays in full precision."""

    @property
    def size(self) -> int:
        """Numbers in its weight."""
        alone = self.product is not None and self.expert is not None
        return self.weight.numel() // (self.product.experts if alone and self.product else 1)


def find_layout(
    model: nn.Module,
    exclude: Sequence[str] = (),
    silent: Collection[str] = (),
    *,
    single: bool = False,
) -> Layout:
    """The blocks and layers of `model`.

    Args:
        model: The model.
        exclude: Patterns of linears that stay in full precision, beside the defaults.
        silent: Linears that are known never to run as modules.
        single: Experts in one tensor are a site each, not one together.

    Raises:
        ModelError: There is no stack of blocks, or its weights are quantized already.
        UnitError: A pattern matches nothing, or nothing is left to quantize.
    """
    path, stack = block_stack(model)
    _require_matches(model, exclude, single)
    counts = _expert_counts(model)
    found: list[_Found] = []
    for index, block in enumerate(stack):
        found += _routers(block, f"{path}.{index}", index, counts)
        found += _linears(block, f"{path}.{index}", index, counts, exclude, silent, single)
    _require_own_weights(found)

    short = _shortest_endings({each.inner for each in found})
    layers: dict[Layer, list[Site]] = defaultdict(list)
    apart: dict[tuple[str, str], list[_Found]] = defaultdict(list)
    for each in found:
        projection, product = short[each.inner], each.product
        if each.reason is not None or product is None:
            apart[projection, each.reason or ROUTER].append(each)
            continue
        site = Site(
            name=each.name,
            block=each.block,
            projection=projection,
            rows=product.rows,
            cols=product.cols,
            experts=product.experts if each.expert is None else 1,
            expert=each.expert,
        )
        layers[Layer(each.block, projection)].append(site)
    if not layers:
        raise UnitError(f"exclude leaves none of the {len(found)} linears to quantize")

    total, missed = _missed(stack, {id(each.weight) for each in found})
    return Layout(
        blocks_path=path,
        sites=Sites((site for members in layers.values() for site in members), len(stack)),
        coverage=sum(each.size for each in found if each.reason is None) / total,
        missed=missed,
        excluded=tuple(
            Excluded(
                projection,
                tuple(each.name for each in members),
                reason,
                sum(each.size for each in members) / total,
            )
            for (projection, reason), members in apart.items()
        ),
    )


def _routers(block: nn.Module, path: str, index: int, counts: Collection[int]) -> Iterator[_Found]:
    """Those of a block that are no linear."""
    for name, weight in _bare_weights(block):
        if _is_router(block, name, len(weight), counts):
            inner = _without_numbers(block, name)
            full = f"{path}.{name}"
            yield _Found(full, full, index, inner, weight, None, None, ROUTER)


def _linears(
    block: nn.Module,
    path: str,
    index: int,
    counts: Collection[int],
    exclude: Sequence[str],
    silent: Collection[str],
    single: bool,
) -> Iterator[_Found]:
    for name, product in products(block):
        full, inner = f"{path}.{name}", _without_numbers(block, name)
        chooses = product.experts == 1 and _is_router(block, name, product.rows, counts)
        apart = single and product.experts > 1
        for expert in range(product.experts) if apart else (None,):
            own = full if expert is None else expert_name(full, expert)
            reason = ROUTER if chooses else None
            if reason is None or NOTHING in exclude:
                reason = reason_for(own, exclude)
            if reason is None and full in silent:
                reason = NEVER_RUNS
            yield _Found(own, full, index, inner, product.parameter, product, expert, reason)


def _require_matches(model: nn.Module, exclude: Sequence[str], single: bool) -> None:
    names: list[str] = []
    for name, product in products(model):
        apart = single and product.experts > 1
        alone = [expert_name(name, expert) for expert in range(product.experts)]
        names += alone if apart else [name]
    for pattern in exclude:
        if pattern == NOTHING or any(matches(pattern, name) for name in names):
            continue
        endings = dict.fromkeys(name.rpartition(".")[2] for name in names)
        raise UnitError(
            f"exclude: {pattern!r} matches none of the {len(names)} linears; their names look like "
            f"{names[0]}; for endings, {nearest(pattern, endings)}"
        )


def _require_own_weights(found: Sequence[_Found]) -> None:
    """Refuse quantized weights, and one tensor in two places: it could not be told apart."""
    owner: dict[int, str] = {}
    weights = {each.holder: each.weight for each in found if each.reason is None}
    for name, weight in weights.items():
        # A scaled FP8 weight is floating point too, but without its scale it says nothing.
        if not weight.is_floating_point() or weight.dtype.itemsize < 2:
            raise ModelError(
                f"{name} already holds {weight.dtype} weights; give the model in full "
                "precision, before quantization"
            )
        first = owner.setdefault(weight.data_ptr() or id(weight), name)
        if first != name:
            raise ModelError(
                f"{name} has the same weight as {first}, so they cannot be told apart; leave such "
                "linears in full precision with --exclude, as --exclude "
                f"{name.rpartition('.')[2]}"
            )


def _without_numbers(block: nn.Module, name: str) -> str:
    """A path with the numbers of a ModuleList's items, such as experts, as `*`."""
    parts = name.split(".")
    return ".".join(
        "*"
        if part.isdigit() and isinstance(block.get_submodule(".".join(parts[:i])), nn.ModuleList)
        else part
        for i, part in enumerate(parts)
    )


def _expert_counts(model: nn.Module) -> set[int]:
    """How many experts the configuration says there are, by any of its names."""
    config = text_config(getattr(model, "config", None))
    keys = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return {config_size(config, key, 0) for key in keys} - {0}


def _is_router(block: nn.Module, name: str, outputs: int, experts: Collection[int]) -> bool:
    """Whether a linear chooses experts: by its name, or as the only linear of its branch beside
    experts that has as many outputs as there are experts.
    """
    parts = name.split(".")
    if any("router" in part for part in parts):
        return True
    # `mlp.gate`, `shared_expert_gate`, but also `gate.wg`; `gate_proj` is none.
    if any(part.endswith("gate") for part in parts) and (outputs == 1 or outputs in experts):
        return True
    for depth, branch in enumerate(parts):
        holder = block.get_submodule(".".join(parts[:depth]))
        beside = [child for child in holder.named_children() if child[0] != branch]
        held = [child for key, child in beside if "expert" in key and "shared" not in key]
        inside = holder.get_submodule(branch)
        alone = len([*products(inside), *_bare_weights(inside)]) == 1
        if alone and any(outputs in _experts_in(child) for child in held):
            return True
    return False


def _bare_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Modules that are no product but hold a matrix `weight`: most routers."""
    known = {name for name, _ in products(module)}
    for name, inner in module.named_modules():
        weight = inner._parameters.get("weight")
        if name not in known and weight is not None and weight.ndim == 2:
            yield name, weight


def _experts_in(module: nn.Module) -> set[int]:
    """Numbers of experts that a module may hold: as a list, or in one tensor with an axis."""
    if isinstance(module, nn.ModuleList):
        return {len(module)}
    return {parameter.shape[0] for parameter in module.parameters() if parameter.ndim == 3}


def _shortest_endings(paths: set[str]) -> dict[str, str]:
    """Each dotted path's shortest ending that no other path has and that starts with a name.

    One that goes through experts, routed or shared, starts there at the latest.
    """
    names = {}
    for path in paths:
        parts = path.split(".")
        of_experts = [i for i, part in enumerate(parts) if _EXPERTS.search(part)]
        for length in range(len(parts) - min(of_experts, default=len(parts) - 1), len(parts) + 1):
            ending = ".".join(parts[-length:])
            rivals = [p for p in paths if p == ending or p.endswith(f".{ending}")]
            if len(rivals) == 1 and parts[-length].isidentifier():
                names[path] = ending
                break
        else:
            names[path] = path
    return names


def _missed(
    stack: nn.ModuleList, reached: Collection[int]
) -> tuple[int, tuple[tuple[str, float], ...]]:
    """How many parameters the blocks have, and the shares of those that are not reached."""
    total = 0
    missed: dict[str, int] = defaultdict(int)
    for name, parameter in stack.named_parameters():
        total += parameter.numel()
        if id(parameter) not in reached:
            missed[re.sub(r"^\d+\.", "", re.sub(r"\.\d+\.", ".*.", name))] += parameter.numel()
    largest = sorted(missed.items(), key=lambda item: -item[1])
    return total, tuple((name, size / total) for name, size in largest)
