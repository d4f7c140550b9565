"""What each linear of a block is: the kind of module that it is in, and the name of its projection.

A projection is a linear's path inside its block, cut to the shortest ending that is unambiguous
(`q_proj`; for GPT-2 `attn.c_proj` and `mlp.c_proj`). Before it is cut, the path is made to say what
the linear is, whatever its family calls the modules:

- Experts of a list are alike, so their numbers become `*`. A name of an expert says so:
  `experts.down_proj`, `shared_expert.down_proj`.
- A shared expert is an MLP in a block with routed experts that is called shared, or that stands
  beside them in one module. A dense block's MLP is none, whatever it is called.
- Where one path leads to modules of several classes, as to Kimi Linear's two attentions, the class
  stands for the module: `delta_attention.q_proj` and `attention.q_proj`.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from fp4scope.kinds import (
    EXPERTS,
    LINEAR_ATTENTION,
    MLP,
    SHARED_EXPERT,
    STATE_SPACE,
    kind_of_path,
    kind_of_words,
    snake_case,
    words_of,
)
from fp4scope.models.config import config_value
from fp4scope.operands import Product

_EXPERTS = re.compile(r"experts?$")
_SHARED = "shared_expert"
_LAYER_TYPES = ("layer_types", "layers_block_type")


class Place(NamedTuple):
    """Where a linear is in its block.

    Attributes:
        path: Its path there, as the head of this module says, not cut yet.
        classes: What the modules on it are.
        kind: What it belongs to.
    """

    path: str
    classes: tuple[str, ...]
    kind: str | None

    def module(self, end: int) -> str:
        """The path of its module at a depth from 1."""
        return ".".join(self.path.split(".")[:end])


class Places:
    """Places of the linears of one block."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._routed = [*_holders_of_experts(block)]
        self._kept: dict[str, Place] = {}

    def of(self, name: str, product: Product | None) -> Place:
        """Where a linear of this path in the block is; routers may be no product."""
        *holders, leaf = name.split(".")
        key = ".".join([*self._numberless(holders), leaf])
        if key not in self._kept:
            self._kept[key] = self._of(key.split("."), holders, product)
        return self._kept[key]

    def _of(self, parts: list[str], holders: Sequence[str], product: Product | None) -> Place:
        modules = [
            self._block.get_submodule(".".join(holders[:end])) for end in range(1, len(holders) + 1)
        ]
        own = [_own_name(module, self._block) for module in modules]
        classes = [type(module).__name__ for module in modules]
        kind = _kind(parts, modules, own)
        stacked = product is not None and product.experts > 1
        if kind in (MLP, None) and (shared := self._shared(holders, modules, own)) is not None:
            parts[shared] = _SHARED
            kind = SHARED_EXPERT
        elif stacked or any(_is_experts(part) for part in parts[:-1]):
            if not any(_is_experts(part) for part in parts[:-1]):
                parts.insert(-1, "experts")
                classes.append("")
            kind = EXPERTS if kind in (MLP, None) else kind
        return Place(".".join(parts), tuple(classes), kind)

    def _shared(
        self, holders: Sequence[str], modules: Sequence[nn.Module], classes: Sequence[str]
    ) -> int | None:
        """The place in a path of the shared expert that it goes through; None if of none."""
        if not self._routed:
            return None
        above: nn.Module = self._block
        for place, (part, module, kind) in enumerate(zip(holders, modules, classes, strict=True)):
            said = words_of(part) | words_of(kind)
            if said & {"shared", "share"}:
                return place
            beside = any(above is routed for routed in self._routed)
            if beside and not _is_experts(part) and kind_of_words([said]) is MLP:
                return place
            above = module
        return None

    def _numberless(self, holders: Sequence[str]) -> Iterator[str]:
        """A path with the numbers of a ModuleList's items, such as experts, as `*`."""
        above = self._block
        for part in holders:
            alike = part.isdigit() and isinstance(above, nn.ModuleList)
            yield "*" if alike else part
            above = above.get_submodule(part)


def names(places: Iterable[Place]) -> dict[Place, str]:
    """The projection of each place: of places in different blocks one, if it is the same thing."""
    found = list(dict.fromkeys(places))
    apart = {module for alike in _by_path(found) if (module := _mixed(alike)) is not None}
    written: dict[Place, tuple[str, int]] = {}
    for place in found:
        parts = place.path.split(".")
        ends = [end for end in range(1, len(parts)) if ".".join(parts[:end]) in apart]
        for end in ends:
            classes = {
                p.classes[end - 1] for p in found if p.path.startswith(f"{place.module(end)}.")
            }
            parts[end - 1] = snake_case(place.classes[end - 1][_common(*classes) :])
        written[place] = ".".join(parts), min(ends, default=len(parts)) - 1
    short = _shortest_endings(set(written.values()))
    return {place: short[path] for place, (path, _) in written.items()}


def _by_path(places: Iterable[Place]) -> Iterable[list[Place]]:
    found: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        found[place.path].append(place)
    return found.values()


def _mixed(alike: Sequence[Place]) -> str | None:
    """The outermost module of a path whose classes differ; None where they do not."""
    columns = zip(*(place.classes for place in alike), strict=True)
    differs = (end for end, classes in enumerate(columns, 1) if len(set(classes)) > 1)
    return next((alike[0].module(end) for end in differs), None)


def layer_types(config: Any, kinds: Sequence[Collection[str]]) -> tuple[str, ...]:  # noqa: ANN401
    """What tells the blocks apart, such as `sliding_attention`; nothing where they are alike.

    As the configuration says, else the kinds of what mixes tokens in each.

    Args:
        config: Of the text model.
        kinds: Of the linears of each block.
    """
    found = [config_value(config, key) for key in _LAYER_TYPES]
    named = [tuple(map(str, types)) for types in found if isinstance(types, list | tuple)]
    mixers = tuple(" and ".join(sorted(set(of) - {MLP, EXPERTS, SHARED_EXPERT})) for of in kinds)
    for types in (*named, mixers):
        if len(types) == len(kinds) and len(set(types)) > 1:
            return types
    return ()


def _own_name(module: nn.Module, block: nn.Module) -> str:
    """A class's name without what all classes of its model begin with."""
    name, other = type(module).__name__, type(block).__name__
    return name[_common(name, other) :]


def _common(*names: str) -> int:
    """How many letters names have in common at the front, in whole words."""
    columns = zip(*names, strict=False)
    end = next((i for i, letters in enumerate(columns) if len(set(letters)) > 1), len(min(names)))
    while end and not all(name[end : end + 1].isupper() for name in names):
        end -= 1
    return end


def _kind(parts: Sequence[str], modules: Sequence[nn.Module], classes: Sequence[str]) -> str | None:
    """By a state that decays, else by the words of modules and classes, else by a path alone."""
    for module in modules:
        held = dict(module.named_parameters(recurse=False))
        if "A_log" in held:
            return STATE_SPACE if "D" in held else LINEAR_ATTENTION
        if "time_decay" in held:
            return LINEAR_ATTENTION
    said = [words_of(part) | words_of(kind) for part, kind in zip(parts, classes, strict=False)]
    found = kind_of_words(said)
    if found is None:
        found = kind_of_path(".".join(parts))
    return MLP if found in (EXPERTS, SHARED_EXPERT) else found


def _holders_of_experts(block: nn.Module) -> Iterator[nn.Module]:
    """Modules that have routed experts as a child."""
    for module in block.modules():
        if any(_is_experts(key) and several(child) for key, child in module.named_children()):
            yield module


def several(module: nn.Module) -> set[int]:
    """Numbers of experts that a module may hold: as a list, or in one tensor with an axis."""
    if isinstance(module, nn.ModuleList):
        return {len(module)}
    return {parameter.shape[0] for parameter in module.parameters() if parameter.ndim == 3}


def _is_experts(part: str) -> bool:
    return "expert" in part and "share" not in part


def _shortest_endings(paths: Collection[tuple[str, int]]) -> dict[str, str]:
    """Each dotted path's shortest ending that no other path has and that starts with a name.

    One that goes through experts, routed or shared, starts there at the latest.

    Args:
        paths: With each the part at which its ending starts at the latest.
    """
    every, found = {path for path, _ in paths}, {}
    for path, latest in paths:
        parts = path.split(".")
        of_experts = [i for i, part in enumerate(parts) if _EXPERTS.search(part)]
        latest = min([latest, *of_experts])
        for start in range(latest, -1, -1):
            ending = ".".join(parts[start:])
            rivals = [p for p in every if p == ending or p.endswith(f".{ending}")]
            if len(rivals) == 1 and parts[start].isidentifier():
                found[path] = ending
                break
        else:
            found[path] = path
    return found
