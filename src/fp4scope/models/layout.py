"""Where the blocks and projections of a causal language model are, from its structure alone.

The blocks are the items of the `nn.ModuleList` in the language model that holds the most linear
weights (`text`). A projection is what one linear is in every block (`projections`): all experts'
`gate_proj` of a block are one layer, and experts in one tensor are one site. No list of model names
is needed. What stays in full precision (`exclude`, routers) is no layer; it is listed with its
reason.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from torch import nn

from fp4scope.errors import ModelError, UnitError, nearest
from fp4scope.kinds import ATTENTION
from fp4scope.models.beside import beside
from fp4scope.models.config import config_size, text_config
from fp4scope.models.exclude import NOTHING, Excluded, reason_for
from fp4scope.models.projections import Place, Places, layer_types, names, several
from fp4scope.models.text import block_stack
from fp4scope.operands import Operand, Product, products
from fp4scope.recipes import Part, Site, Sites, TiedSite, expert_name, matches
from fp4scope.study import More

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
    all other parameters, largest first, with their share: they cannot be reached. `kinds` is what
    each projection belongs to, where that is known (`fp4scope.kinds`), `layer_types` what tells the
    blocks apart, where something does (`sliding_attention`). `parts` has those of linears whose
    parts are sites.
    """

    blocks_path: str
    sites: Sites
    coverage: float
    missed: tuple[tuple[str, float], ...]
    excluded: tuple[Excluded, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    layer_types: tuple[str, ...] = ()
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)

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
        """Full names of what holds the sites' weights, also where they come again: the sites and
        their places, but for single experts.
        """
        sites = self.sites.everywhere
        return tuple(dict.fromkeys(site.product for site in sites if site.is_linear))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Full names of all whose values on their way are quantized: linears, and what attention
        multiplies.
        """
        return tuple(dict.fromkeys(site.product for site in self.sites.everywhere))

    @cached_property
    def layers(self) -> dict[Layer, tuple[str, ...]]:
        """The linears of every layer by their full module names, also where weights come again."""
        found: defaultdict[Layer, dict[str, None]] = defaultdict(dict)
        for block, members in enumerate(self.sites.blocks):
            for site in members:
                found[Layer(block, site.projection)][site.product] = None
        return {layer: tuple(names) for layer, names in found.items()}

    @property
    def layer_of(self) -> dict[str, Layer]:
        return {name: layer for layer, names in self.layers.items() for name in names}

    def described(self, name: str) -> str:
        """A linear as messages call it, with its layer."""
        if (layer := self.layer_of.get(name)) is None:
            return name
        return f"{name} (block {layer.block}, projection {layer.projection})"


class _Found(NamedTuple):
    """What may be a site. Routers without a linear are no product."""

    name: str
    holder: str
    """Where its weight is: itself, but for one of several experts in a tensor."""
    block: int | None
    place: Place
    weight: nn.Parameter | None
    """None of what attention multiplies."""
    product: Operand | None
    expert: int | None = None
    part: Part | None = None
    projection: str = ""
    reason: str | None = None
    """Why it stays in full precision."""

    @property
    def size(self) -> int:
        """Numbers in its weight."""
        if self.weight is None:
            return 0
        if self.part is not None and self.product is not None:
            every = getattr(self.product, self.part.axis)
            return self.weight.numel() // every * self.part.size
        alone = self.product is not None and self.expert is not None
        return self.weight.numel() // (self.product.experts if alone and self.product else 1)

    @property
    def identity(self) -> Hashable:
        """The same where blocks share the weight."""
        if self.weight is None:
            return self.name
        part = self.part and self.part.name
        return self.weight.data_ptr() or id(self.weight), self.weight.shape, self.expert, part


def find_layout(
    model: nn.Module,
    exclude: Sequence[str] = (),
    silent: Collection[str] = (),
    *,
    single: bool = False,
    parts: Mapping[str, Sequence[Part]] | None = None,
    more: Collection[More] = (),
) -> Layout:
    """The blocks and layers of `model`.

    Args:
        model: The model.
        exclude: Patterns of linears that stay in full precision, beside the defaults.
        silent: Linears that are known never to run as modules.
        single: Experts in one tensor are a site each, not one together.
        parts: Of linears whose parts are a site each: all of them, by the linear's name.
        more: What is quantized beside the linears of the blocks.

    Raises:
        ModelError: There is no stack of blocks, its weights are quantized already, or some of
            `more` is not there.
        UnitError: A pattern matches nothing, or nothing is left to quantize.
    """
    path, stack = block_stack(model)
    found = _divided(_found(model, path, stack, single), parts or {})
    found += _beside(model, path, stack, more)
    found.sort(key=lambda each: len(stack) if each.block is None else each.block)
    _require_matches(exclude, model, found)
    found = _explained(found, exclude, silent)
    _require_weights(found)

    layers: dict[tuple[int | None, str], list[Site]] = defaultdict(list)
    owner: dict[Hashable, Site] = {}
    tied: list[TiedSite] = []
    apart: dict[tuple[str, str], list[_Found]] = defaultdict(list)
    for each in found:
        if each.reason is not None or each.product is None:
            apart[each.projection, each.reason or ROUTER].append(each)
            continue
        site = _site(each, each.product)
        first = owner.setdefault(each.identity, site)
        if first is site:
            layers[each.block, each.projection].append(site)
        else:
            tied.append(TiedSite(**vars(site), site=first.name))
    if not layers:
        raise UnitError(f"exclude leaves none of the {len(found)} linears to quantize")

    total, missed = _missed(stack, {id(each.weight) for each in found if each.weight is not None})
    inside = [each for each in found if each.block is not None]
    return Layout(
        blocks_path=path,
        sites=Sites((s for members in layers.values() for s in members), len(stack), tied),
        coverage=_size(each for each in inside if each.reason is None) / total,
        missed=missed,
        excluded=tuple(
            Excluded(
                projection,
                tuple(each.name for each in members),
                reason,
                _size(e for e in members if e.block is not None and e.identity not in owner)
                / total,
            )
            for (projection, reason), members in apart.items()
            if reason != NEVER_RUNS or any(each.identity not in owner for each in members)
        ),
        kinds={e.projection: e.place.kind for e in found if e.reason is None and e.place.kind},
        layer_types=_layer_types(model, found, len(stack)),
        parts={name: tuple(of) for name, of in (parts or {}).items()},
    )


def _site(found: _Found, product: Operand) -> Site:
    part = found.part
    return Site(
        name=found.name,
        block=found.block,
        projection=found.projection,
        rows=part.size if part and part.axis == "rows" else _rows(product),
        cols=part.size if part and part.axis == "cols" else product.cols,
        experts=product.experts if found.expert is None else 1,
        expert=found.expert,
        part=part and part.name,
    )


def _rows(operand: Operand) -> int:
    return operand.rows if isinstance(operand, Product) else 0


def _layer_types(model: nn.Module, found: Sequence[_Found], blocks: int) -> tuple[str, ...]:
    kinds: list[set[str]] = [set() for _ in range(blocks)]
    for each in found:
        if each.place.kind is not None and each.block is not None:
            kinds[each.block].add(each.place.kind)
    return layer_types(text_config(getattr(model, "config", None)), kinds)


def _found(model: nn.Module, path: str, stack: nn.ModuleList, single: bool) -> list[_Found]:
    """All that may be a site, and routers that are no linear; projections are not known yet."""
    counts = _expert_counts(model)
    found: list[_Found] = []
    for index, block in enumerate(stack):
        places, prefix = Places(block), f"{path}.{index}"
        for name, weight in _bare_weights(block):
            if _is_router(block, name, len(weight), counts):
                full, place = f"{prefix}.{name}", places.of(name, None)
                found.append(_Found(full, full, index, place, weight, None, reason=ROUTER))
        for name, product in products(block):
            full, place = f"{prefix}.{name}", places.of(name, product)
            chooses = product.experts == 1 and _is_router(block, name, product.rows, counts)
            one = _Found(full, full, index, place, product.parameter, product)
            one = one._replace(reason=ROUTER if chooses else None)
            if single and product.experts > 1:
                every = range(product.experts)
                found += [one._replace(name=expert_name(full, e), expert=e) for e in every]
            else:
                found.append(one)
    named = names(each.place for each in found)
    return [each._replace(projection=named[each.place]) for each in found]


def _divided(found: Sequence[_Found], parts: Mapping[str, Sequence[Part]]) -> list[_Found]:
    """The same, with the parts of a linear in its place."""
    return [
        each
        if part is None
        else each._replace(
            name=f"{each.name}.{part.name}",
            projection=f"{each.projection}.{part.name}",
            part=part,
        )
        for each in found
        for part in parts.get(each.name, (None,))
    ]


def _beside(
    model: nn.Module, path: str, stack: nn.ModuleList, more: Collection[More]
) -> list[_Found]:
    """What may be a site beside the linears of the blocks."""
    found: list[_Found] = []
    for name, block, projection, operand in beside(model, path, stack, more):
        weight = operand.parameter if isinstance(operand, Product) else None
        place = Place(name, (), None if block is None else ATTENTION)
        found.append(_Found(name, name, block, place, weight, operand, projection=projection))
    return found


def _explained(
    found: Sequence[_Found], exclude: Sequence[str], silent: Collection[str]
) -> list[_Found]:
    """The same, with why each stays in full precision."""
    explained: list[_Found] = []
    for each in found:
        reason = each.reason
        if each.product is not None and (reason is None or NOTHING in exclude):
            reason = reason_for(each.name, each.projection, exclude)
        if reason is None and each.holder in silent:
            reason = NEVER_RUNS
        explained.append(each._replace(reason=reason))
    return explained


def _require_matches(exclude: Sequence[str], model: nn.Module, found: Sequence[_Found]) -> None:
    """Refuse patterns that match no linear, of a block or of any other part of the model."""
    linears = {each.name: each.projection for each in found if each.product is not None}
    held = {each.holder for each in found}
    linears |= {name: "" for name, _ in products(model) if name not in held}
    for pattern in exclude:
        if pattern == NOTHING or any(matches(pattern, *linear) for linear in linears.items()):
            continue
        endings = [name.rpartition(".")[2] for name in linears]
        known = dict.fromkeys([*filter(None, linears.values()), *endings])
        raise UnitError(
            f"exclude: {pattern!r} matches none of the {len(linears)} linears; their names look "
            f"like {next(iter(linears))}; for endings, {nearest(pattern, known)}"
        )


def _size(found: Iterable[_Found]) -> int:
    """Numbers in their weights, each counted once."""
    return sum({each.identity: each.size for each in found}.values())


def _require_weights(found: Sequence[_Found]) -> None:
    """Refuse weights that are quantized."""
    weights = {each.holder: each.weight for each in found if each.reason is None}
    for name, weight in weights.items():
        if weight is None:
            continue
        # A scaled FP8 weight is floating point too, but without its scale it says nothing.
        if not weight.is_floating_point() or weight.dtype.itemsize < 2:
            raise ModelError(
                f"{name} already holds {weight.dtype} weights; give the model in full "
                "precision, before quantization"
            )


def _expert_counts(model: nn.Module) -> set[int]:
    """How many experts the configuration says there are, by any of its names."""
    config = text_config(getattr(model, "config", None))
    keys = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return {config_size(config, key, 0) for key in keys} - {0}


def _is_router(block: nn.Module, name: str, outputs: int, experts: Collection[int]) -> bool:
    """Whether a linear chooses experts: by its name, by the class of what holds it, or as the only
    linear of its branch beside experts that has as many outputs as there are experts.
    """
    parts = name.split(".")
    holders = (block.get_submodule(".".join(parts[:end])) for end in range(1, len(parts) + 1))
    if any("router" in part for part in parts):
        return True
    if any("Router" in type(holder).__name__ for holder in holders):
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
        if alone and any(outputs in several(child) for child in held):
            return True
    return False


def _bare_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Modules that are no product but hold a matrix `weight`: most routers."""
    known = {name for name, _ in products(module)}
    for name, inner in module.named_modules():
        weight = inner._parameters.get("weight")
        if name not in known and weight is not None and weight.ndim == 2:
            yield name, weight


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
