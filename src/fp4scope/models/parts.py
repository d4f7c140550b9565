"""Parts of products: q, k and v, or gate and up where they are fused; groups of heads.

What the outputs of a product are is found by what they do, not by a name. In windows of two tokens
the products of a module get outputs that are random but the same in every window. In each window
one output of one product is changed, at one token. What then changes at the entrance of the
module's last product says what it is:

| changed at a token | changes that token, when first | changes the next one |
| --- | --- | --- |
| q | no: a softmax over one key is 1 | no |
| k | no | yes |
| v | yes | yes |
| gate | yes | no |

In an MLP the last product's entrance is linear in an output of up and is not in one of gate. A head
is what a change of q reaches; heads with a k or v in common are one group. So any order of rows is
found: one after the other, by head, by turns. Outputs that reach nothing belong to a product whose
outputs go through another one, as in latent attention; such a product is one part.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from fp4scope.errors import UnitError
from fp4scope.kinds import ATTENTION, FEED_FORWARD, MLP
from fp4scope.models.layout import Layout
from fp4scope.operands import Input, Product, products, watched
from fp4scope.recipes import Part
from fp4scope.study import Parts

_ROWS_AT_ONCE = 256
_DRAWS = 3
"""Random outputs: with some, a change may by chance do nothing."""
_CHANGE = 32.0
_WHY = {
    Parts.PROJECTIONS: "no linear is fused, or not in a way that shows in its outputs",
    Parts.HEADS: "its attention has one group of heads, or mixes them",
}
_CURVED = 0.05
"""Of a change of an output of up: how far from linear rounding may make it look."""


def find_parts(
    model: nn.Module,
    layout: Layout,
    forward: Callable[[Int[Tensor, "windows tokens"]], object],
    wanted: Parts,
) -> dict[str, tuple[Part, ...]]:
    """The parts of every product that has some, by its name.

    Args:
        model: The model, with its weights.
        layout: Where its products are.
        forward: Runs the model on token ids.
        wanted: Which parts.

    Raises:
        UnitError: No product has any that can be told.
    """
    if wanted is Parts.NONE:
        return {}
    known: dict[object, dict[str, tuple[Part, ...]]] = {}
    found: dict[str, tuple[Part, ...]] = {}
    for (path, kind), leaves in _modules(layout, wanted).items():
        module = model.get_submodule(path)
        held = {leaf: product for leaf, product in products(module) if leaf}
        alike = type(module), kind, tuple((leaf, p.rows, p.cols) for leaf, p in held.items())
        if alike not in known:
            with torch.no_grad():
                known[alike] = _KINDS[kind, wanted](_Probe(held, forward))
        own = known[alike]
        found |= {f"{path}.{leaf}": own[leaf] for leaf in leaves if leaf in own}
    if not found:
        raise UnitError(
            f"parts: {wanted.value}, but this model has none that can be told: {_WHY[wanted]}; it "
            f"has {', '.join(layout.projections)}; leave --parts at none"
        )
    return found


def _modules(layout: Layout, wanted: Parts) -> dict[tuple[str, str], list[str]]:
    """The modules that are looked at, of which kind they are, and which products in them are sites.

    An attention as a whole; of an MLP or experts what holds the products.
    """
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for site in layout.sites:
        kind = layout.kinds.get(site.projection)
        block, *parts = f"{layout.blocks_path}.{site.block}", *site.path.split(".")
        if kind == ATTENTION and len(parts) > 1:
            found[f"{block}.{parts[0]}", ATTENTION].append(".".join(parts[1:]))
        elif kind in FEED_FORWARD and wanted is Parts.PROJECTIONS and len(parts) > 1:
            found[".".join([block, *parts[:-1]]), MLP].append(parts[-1])
    return found


class _Probe:
    """Runs the model with random outputs of one module's products, and sees what enters the last.

    Args:
        held: Its products by their paths in it.
        forward: Runs the model on token ids.
    """

    def __init__(self, held: Mapping[str, Product], forward: Callable[[Tensor], object]) -> None:
        self._held, self._forward = held, forward
        ran: dict[str, None] = {}
        with watched(held, lambda leaf, _: ran.setdefault(leaf)):
            forward(_windows(1))
        *self.others, self.last = ran or [""]

    def rows(self, leaf: str) -> int:
        """How many outputs a product has."""
        return self._held[leaf].rows

    def changed(
        self, leaf: str, token: int, draw: int, changes: Sequence[float]
    ) -> Iterator[Shaped[Tensor, "changes outputs tokens inputs"]]:
        """What enters the last product, with one output of a product changed; outputs in order.

        Args:
            leaf: The product.
            token: Where it is changed: in the first or the second of a window.
            draw: Which random outputs there are.
            changes: By how much, one after the other.

        Yields:
            Of some outputs: first without any change. Nothing where too few rows enter.
        """
        rows = self._held[leaf].rows
        for start in range(0, rows, _ROWS_AT_ONCE):
            count = min(rows - start, _ROWS_AT_ONCE)
            # In each window which output is changed, and by how much.
            at = torch.arange(start, start + count).repeat(len(changes) + 1)
            by = torch.tensor([0.0, *changes]).repeat_interleave(count)
            entering = self._entering(leaf, token, draw, at, by).flatten(0, -2)
            if len(entering) < 2 * len(at):
                return
            yield entering[: 2 * len(at)].unflatten(0, (len(changes) + 1, count, 2))

    def _entering(self, leaf: str, token: int, draw: int, at: Tensor, by: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def put(name: str, _: Input, output: Tensor) -> Tensor:
            every = _random(name, draw, 2, output.shape[-1]).repeat(len(at), 1, 1)
            if name == leaf:
                every[torch.arange(len(at)), token, at] += by
            # A token may come several times, to several experts.
            count = output.shape[:-1].numel()
            flat = every.flatten(0, 1).repeat(-(-count // every[..., 0].numel()), 1)[:count]
            return flat.reshape(output.shape).to(output)

        def see(_: str, entering: Input) -> None:
            seen.append(entering.x.float().cpu())

        others = {name: self._held[name] for name in self.others}
        with watched({self.last: self._held[self.last]}, see), watched(others, after=put):
            self._forward(_windows(len(at)))
        return seen[0]


def _roles_of_attention(probe: _Probe) -> dict[str, tuple[Part, ...]]:
    """Products whose outputs are several of q, k, v and a gate."""
    found: dict[str, tuple[Part, ...]] = {}
    for leaf in probe.others:
        reached = _reached(probe, leaf)
        first, following, alone = (each.any(1).tolist() for each in reached)
        known = {(False, True): "k", (True, True): "v", (True, False): "gate"}
        roles = [
            known.get(ends, "q" if own else "")
            for *ends, own in zip(first, following, alone, strict=True)
            for ends in [tuple(ends)]
        ]
        found |= _parts(leaf, roles, ("q", "k", "v", "gate"))
    return found


def _roles_of_mlp(probe: _Probe) -> dict[str, tuple[Part, ...]]:
    """Products whose outputs are both a gate and what it lets through."""
    found: dict[str, tuple[Part, ...]] = {}
    for leaf in probe.others:
        roles: list[str] = []
        for plain, more, less in probe.changed(leaf, 0, 0, (2.0, -2.0)):
            slope = (more - less)[:, 0].abs().amax(-1)
            curve = (more - 2 * plain + less)[:, 0].abs().amax(-1)
            said = torch.where(curve > _CURVED * slope, 1, 2) * (slope > 0)
            roles += [("", "gate", "up")[role] for role in said.tolist()]
        if 2 * roles.count("gate") == 2 * roles.count("up") == probe.rows(leaf):
            found |= _parts(leaf, roles, ("gate", "up"))
    return found


def _groups_of_heads(probe: _Probe) -> dict[str, tuple[Part, ...]]:
    """The outputs of each product, and the inputs of the last, of each group of heads."""
    reached = {leaf: _reached(probe, leaf) for leaf in probe.others}
    columns = {leaf: torch.stack(ends).any(0) for leaf, ends in reached.items()}
    direct = {leaf: of for leaf, of in columns.items() if bool(of.any(1).all())}
    if not direct:
        return {}
    group_of = _components(list(direct.values()))
    groups = group_of.unique().tolist()
    # A q reaches its own head; a k that of every head in the group.
    heads = [(of & ~reached[leaf][1])[~reached[leaf][1].any(1)] for leaf, of in direct.items()]
    own = {tuple(row.nonzero().flatten().tolist()) for of in heads for row in of}
    names, before = {}, 0
    for group in groups:
        inside = {cols for cols in own if cols and group_of[cols[0]] == group}
        count = _most_apart(inside)
        names[group] = f"heads.{before}" + (f"-{before + count - 1}" if count > 1 else "")
        before += count
    if len(groups) < 2:
        return {}
    found: dict[str, tuple[Part, ...]] = {}
    for leaf, of in direct.items():
        groups_of_rows = group_of[of.int().argmax(1)]
        found[leaf] = tuple(
            Part.of(names[g], "rows", (groups_of_rows == g).nonzero().flatten().tolist())
            for g in groups
        )
    found[probe.last] = tuple(
        Part.of(names[g], "cols", (group_of == g).nonzero().flatten().tolist()) for g in groups
    )
    return {leaf: tuple(part for part in parts if part.size) for leaf, parts in found.items()}


_KINDS = {
    (ATTENTION, Parts.PROJECTIONS): _roles_of_attention,
    (ATTENTION, Parts.HEADS): _groups_of_heads,
    (MLP, Parts.PROJECTIONS): _roles_of_mlp,
}


def _reached(probe: _Probe, leaf: str) -> tuple[Tensor, Tensor, Tensor]:
    """What changing each output of a product changes at the last one's entrance: outputs by inputs.

    At the token itself when it is the first, at the next one, and at the token itself behind one.
    """
    ends: list[list[Tensor]] = [[], [], []]
    for draw in range(_DRAWS):
        parts: list[list[Tensor]] = [[], [], []]
        for token in (0, 1):
            for plain, more in probe.changed(leaf, token, draw, (_CHANGE,)):
                moved = (more - plain).abs() > 4 * _rounding(plain)
                if token == 0:
                    parts[0].append(moved[:, 0])
                    parts[1].append(moved[:, 1])
                else:
                    parts[2].append(moved[:, 1])
        for end, found in zip(ends, parts, strict=True):
            end.append(torch.cat(found))
    first, following, alone = (torch.stack(end).any(0) for end in ends)
    return first, following, alone


def _rounding(x: Tensor) -> float:
    """One unit in the last place of the largest, as bfloat16 if it is exact there."""
    exact = torch.equal(x.bfloat16().float(), x)
    return float(x.abs().amax()) * torch.finfo(torch.bfloat16 if exact else torch.float32).eps


def _parts(leaf: str, roles: Sequence[str], names: Sequence[str]) -> dict[str, tuple[Part, ...]]:
    """The parts of a product, if every output is of some part and there are several."""
    used = [name for name in names if name in roles]
    if "" in roles or len(used) < 2:
        return {}
    rows = {name: [i for i, role in enumerate(roles) if role == name] for name in used}
    return {leaf: tuple(Part.of(name, "rows", at) for name, at in rows.items())}


def _components(links: Sequence[Bool[Tensor, "_ cols"]]) -> Int[Tensor, " cols"]:
    """Of every column the first one that it hangs together with, through rows that have both."""
    cols = links[0].shape[1]
    first = torch.arange(cols, dtype=torch.int32)
    while True:
        before = first.clone()
        for link in links:
            of_rows = torch.where(link, first, cols).amin(1)
            first = torch.minimum(first, torch.where(link, of_rows[:, None], cols).amin(0).int())
        if torch.equal(first, before):
            return first


def _most_apart(supports: Collection[tuple[int, ...]]) -> int:
    """How many of these sets of columns have none in common."""
    seen: set[int] = set()
    count = 0
    for cols in sorted(supports, key=len, reverse=True):
        if not seen & set(cols):
            seen |= set(cols)
            count += 1
    return max(1, count)


def _windows(count: int) -> Int[Tensor, "windows tokens"]:
    return torch.tensor([[4, 5]]).repeat(count, 1)


def _random(name: str, draw: int, *shape: int) -> Tensor:
    """Numbers between 0.5 and 1 with random signs, the same for the same name."""
    seed = zlib.crc32(f"{name} {draw}".encode())
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return signs * (0.5 + 0.5 * torch.rand(shape, generator=generator))
