"""Where the blocks and projections of a causal language model are, from its structure alone.

The blocks are the items of the `nn.ModuleList` that holds the most linear weights. A
projection is a linear's path inside its block, cut to the shortest ending that is unambiguous
(`q_proj`; for GPT-2 `attn.c_proj` and `mlp.c_proj`); the numbers of experts become `*`, so
that all experts' `gate_proj` of a block are one layer. No list of model names is needed.
What stays in full precision (`exclude`, routers) is no layer; it is listed with its reason.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import nn

from fp4scope.errors import ModelError, UnitError, nearest
from fp4scope.models.config import config_size, text_config
from fp4scope.models.exclude import NOTHING, Excluded, reason_for
from fp4scope.operands import Product, products
from fp4scope.recipes import Site, Sites, matches

ROUTER = "router"
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
        """Their full names."""
        return tuple(self.sites.by_name)

    @cached_property
    def layers(self) -> dict[Layer, tuple[str, ...]]:
        """The linears of every layer by their full module names."""
        found: dict[Layer, tuple[str, ...]] = {}
        for site in self.sites:
            layer = Layer(site.block, site.projection)
            found[layer] = (*found.get(layer, ()), site.name)
        return found

    @property
    def layer_of(self) -> dict[str, Layer]:
        return {name: layer for layer, names in self.layers.items() for name in names}


def find_layout(
    model: nn.Module, exclude: Sequence[str] = (), silent: Collection[str] = ()
) -> Layout:
    """The blocks and layers of `model`.

    Args:
        model: The model.
        exclude: Patterns of linears that stay in full precision, beside the defaults.
        silent: Linears that are known never to run as modules.

    Raises:
        ModelError: There is no stack of blocks, or its weights are quantized already.
        UnitError: A pattern matches nothing, or nothing is left to quantize.
    """
    path, stack = _block_stack(model)
    _require_matches(model, exclude)
    experts = _expert_counts(model)
    found: dict[str, tuple[int, str, Product]] = {}
    reasons: dict[str, str] = {}
    owner: dict[int, str] = {}
    for index, block in enumerate(stack):
        for name, product in products(block):
            full = f"{path}.{index}.{name}"
            found[full] = index, _without_numbers(block, name), product
            reason = ROUTER if _is_router(block, name, product.rows, experts) else None
            if reason is None or NOTHING in exclude:
                reason = reason_for(full, exclude)
            if reason is None and full in silent:
                reason = NEVER_RUNS
            if reason is not None:
                reasons[full] = reason
                continue
            _require_own_weight(full, product.parameter, owner)

    short = _shortest_endings({inner for _, inner, _ in found.values()})
    layers: dict[Layer, list[Site]] = defaultdict(list)
    apart: dict[tuple[str, str], list[str]] = defaultdict(list)
    for full, (index, inner, product) in found.items():
        name, rows, cols = short[inner], product.rows, product.cols
        if full in reasons:
            apart[name, reasons[full]].append(full)
        else:
            site = Site(name=full, block=index, projection=name, rows=rows, cols=cols)
            layers[Layer(index, name)].append(site)
    if not layers:
        raise UnitError(f"exclude leaves none of the {len(found)} linears to quantize")

    sizes, total, missed = _coverage(stack, {full.removeprefix(f"{path}."): full for full in found})
    return Layout(
        blocks_path=path,
        sites=Sites((site for members in layers.values() for site in members), len(stack)),
        coverage=sum(size for name, size in sizes.items() if name not in reasons) / total,
        missed=missed,
        excluded=tuple(
            Excluded(projection, tuple(names), reason, sum(sizes.get(n, 0) for n in names) / total)
            for (projection, reason), names in apart.items()
        ),
    )


def _require_matches(model: nn.Module, exclude: Sequence[str]) -> None:
    names = [name for name, _ in products(model)]
    for pattern in exclude:
        if pattern == NOTHING or any(matches(pattern, name) for name in names):
            continue
        endings = dict.fromkeys(name.rpartition(".")[2] for name in names)
        raise UnitError(
            f"exclude: {pattern!r} matches none of the {len(names)} linears; their names look like "
            f"{names[0]}; for endings, {nearest(pattern, endings)}"
        )


def _require_own_weight(name: str, weight: nn.Parameter, owner: dict[int, str]) -> None:
    """Refuse quantized weights, and one tensor in two places: it could not be told apart."""
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
            f"linears in full precision with --exclude, as --exclude {name.rpartition('.')[2]}"
        )


def _block_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    best, weight = None, 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            size = sum(product.parameter.numel() for _, product in products(module))
            if size > weight:
                best, weight = (name, module), size
    if best is None:
        raise ModelError(
            f"{type(model).__name__} has no nn.ModuleList with linears in it, so no stack of blocks"
            " was found; fp4scope needs a causal language model made of transformer blocks"
        )
    return best


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


def _is_router(block: nn.Module, name: str, outputs: int, experts: set[int]) -> bool:
    """Whether a linear chooses experts: by its name, or as the only linear of its branch beside
    experts that has as many outputs as there are experts.
    """
    parts = name.split(".")
    if any("router" in part for part in parts):
        return True
    # `mlp.gate`, `shared_expert_gate`, but also `gate.wg`; `gate_proj` is none.
    if any(part.endswith("gate") for part in parts) and outputs in experts | {1}:
        return True
    for depth, branch in enumerate(parts):
        holder = block.get_submodule(".".join(parts[:depth]))
        beside = [child for child in holder.named_children() if child[0] != branch]
        held = [child for key, child in beside if "expert" in key and "shared" not in key]
        alone = len([*products(holder.get_submodule(branch))]) == 1
        if alone and any(outputs in _experts_in(child) for child in held):
            return True
    return False


def _experts_in(module: nn.Module) -> set[int]:
    """Numbers of experts that a module may hold: as a list, or in one tensor with an axis."""
    if isinstance(module, nn.ModuleList):
        return {len(module)}
    return {parameter.shape[0] for parameter in module.parameters() if parameter.ndim == 3}


def _shortest_endings(paths: set[str]) -> dict[str, str]:
    """Each dotted path's shortest ending that no other path has and that starts with a name."""
    names = {}
    for path in paths:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            ending = ".".join(parts[-length:])
            rivals = [p for p in paths if p == ending or p.endswith(f".{ending}")]
            if len(rivals) == 1 and parts[-length].isidentifier():
                names[path] = ending
                break
        else:
            names[path] = path
    return names


def _coverage(
    stack: nn.ModuleList, linears: dict[str, str]
) -> tuple[dict[str, int], int, tuple[tuple[str, float], ...]]:
    """Sizes of the linears' weights by full name, of all parameters, and the rest's shares.

    Args:
        stack: The blocks.
        linears: Names of linears inside it to their full names.
    """
    total = 0
    sizes: dict[str, int] = {}
    missed: dict[str, int] = defaultdict(int)
    for name, parameter in stack.named_parameters():
        total += parameter.numel()
        owner, _, leaf = name.rpartition(".")
        if owner in linears and leaf == "weight":
            sizes[linears[owner]] = parameter.numel()
        else:
            missed[re.sub(r"^\d+\.", "", re.sub(r"\.\d+\.", ".*.", name))] += parameter.numel()
    largest = sorted(missed.items(), key=lambda item: -item[1])
    return sizes, total, tuple((name, size / total) for name, size in largest)
