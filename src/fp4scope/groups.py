"""What serving engines have as one: linears that they fuse, and the experts of a block.

An engine loads q, k and v as one matrix, gate and up as another. All of one share a format and
one tensor scale. Engines tell what to fuse by the names of linears, so names are looked at here.

Source: `packed_modules_mapping` and `stacked_params_mapping` of vLLM's models.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fp4scope.recipes import Site, Sites

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
"""Names of linears of one module that engines hold as one matrix."""
_FUSED_WITH = {name: names for names in FUSED for name in names}
EXPERTS = "experts"
"""The name of the group of all routed experts of a block."""


@dataclass(frozen=True)
class Group:
    """Sites that an engine treats alike.

    Attributes:
        name: The same in every block, such as `self_attn.q_proj+k_proj+v_proj`.
        block: None of what is behind the blocks.
        sites: In the order of the model.
    """

    name: str
    block: int | None
    sites: tuple[Site, ...]

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of its sites, as recipes call them."""
        return frozenset(site.key for site in self.sites)

    @property
    def parameters(self) -> int:
        """Numbers in its weights."""
        return sum(site.parameters for site in self.sites)


def fused_groups(sites: Sites) -> tuple[Group, ...]:
    """Every site that has a weight, in exactly one group each; groups in the order of the model.

    Routed experts of a block are one group, gates and downs alike: engines want one format for
    them. Parts of one linear are one group too.

    Example:
        >>> names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj")
        >>> sites = Sites(
        ...     (
        ...         Site(name=f"layers.0.{name}", block=0, projection=name, rows=4, cols=4)
        ...         for name in names
        ...     ),
        ...     blocks=1,
        ... )
        >>> [group.name for group in fused_groups(sites)]
        ['self_attn.q_proj+k_proj', 'self_attn.o_proj', 'mlp.up_proj']
    """
    found: dict[tuple[int | None, str], list[Site]] = {}
    for site in sites:
        if site.is_linear:
            found.setdefault((site.block, _place(site)), []).append(site)
    return tuple(
        Group(_name(members), block, tuple(members)) for (block, _), members in found.items()
    )


def tensor_groups(group: Group) -> list[tuple[Site, ...]]:
    """Those of a group that share one tensor scale: never several experts.

    Separate modules of one expert that are fused share one; a stack of experts has one for each of
    its experts anyway, of gate and up together.
    """
    found: dict[tuple[str, int | None], list[Site]] = {}
    for site in group.sites:
        found.setdefault((_fused_place(site.product), site.expert), []).append(site)
    return list(map(tuple, found.values()))


def scale_partners(sites: Sites) -> dict[str, tuple[str, ...]]:
    """Products whose weights share a tensor scale where they are served, by the name of each.

    Products that share with none are left out. Of stacks of experts it is one expert of each.

    Example:
        >>> names = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        >>> sites = [Site(name=f"0.{n}", block=0, projection=n, rows=4, cols=4) for n in names]
        >>> sorted(scale_partners(Sites(sites, blocks=1)))
        ['0.mlp.gate_proj', '0.mlp.up_proj']
    """
    found: dict[str, dict[str, None]] = {}
    for site in sites.everywhere:
        if site.is_linear:
            found.setdefault(_fused_place(site.product), {})[site.product] = None
    return {name: tuple(all_) for all_ in found.values() if len(all_) > 1 for name in all_}


def is_routed(site: Site) -> bool:
    """Whether it is, or holds, routed experts."""
    return site.experts > 1 or site.expert is not None or "*" in site.projection


def _place(site: Site) -> str:
    if is_routed(site):
        return EXPERTS
    return _fused_place(site.product)


def _fused_place(name: str) -> str:
    """A name that all linears have that are fused with this one."""
    holder, _, leaf = name.rpartition(".")
    return f"{holder}.{'+'.join(_FUSED_WITH.get(leaf, (leaf,)))}"


def _name(members: Iterable[Site]) -> str:
    members = list(members)
    if is_routed(members[0]):
        return EXPERTS
    first = members[0]
    path = first.product.partition(f".{first.block}.")[2] or first.product
    holder, _, _ = path.rpartition(".")
    leaves = dict.fromkeys(site.product.rpartition(".")[2] for site in members)
    return ".".join(filter(None, (holder, "+".join(leaves))))
