"""How much of the full-precision model's routing is left, along the way of each state.

In every block with experts a router sends a token to some of them. What it chooses for a state is
compared with what it chose for the full-precision model's state, on the same window at the same
place. Rounding alone makes tokens near a tie go elsewhere: what the full-precision model's own
perturbed realisations keep is the ceiling.

Nothing here waits for the device before a chunk is over: what the routers of a batch give stays
there, some numbers for each state and window, and is added up along the tree on the host.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor, nn

from fp4scope.design import NOTHING, Run
from fp4scope.ledger import ROUTERS, ROUTING
from fp4scope.metrics import WindowMetrics
from fp4scope.models import LoadedModel
from fp4scope.operands import Choice, Scores, choices, find_scores, told
from fp4scope.recipes import Recipe
from fp4scope.sweep.tree import Step, Tree

_PROBED = 64
"""Tokens on which the softmax of routers is looked for."""


class Seen(NamedTuple):
    """What is compared of a choice: that of the tokens that have a target."""

    index: Int[Tensor, "*batch tokens chosen"]
    shares: Float[Tensor, "*batch tokens chosen"]
    load: Int[Tensor, "*batch experts"]
    logs: Float[Tensor, "*batch tokens experts"] | None

    @classmethod
    def of(cls, choice: Choice) -> "Seen":
        """Of windows (*batch, tokens, chosen), the last token of each left out."""
        index, weights = choice.index[..., :-1, :], choice.weights[..., :-1, :].float()
        logs = None if choice.logs is None else choice.logs[..., :-1, :]
        return cls(index, weights / weights.sum(-1, keepdim=True), _load(index, choice), logs)

    def of_state(self, place: int) -> "Seen":
        """One of a batch's states."""
        logs = None if self.logs is None else self.logs[place]
        return Seen(self.index[place], self.shares[place], self.load[place], logs)


def _load(index: Tensor, choice: Choice) -> Shaped[Tensor, "*batch experts"]:
    """How many tokens each expert has."""
    flat = index.flatten(-2)
    zeros = torch.zeros(*flat.shape[:-1], choice.experts, dtype=torch.int64, device=index.device)
    return zeros.scatter_add_(-1, flat, torch.ones_like(flat))


def alike(one: Seen, other: Seen) -> Float64[Tensor, "*batch kinds"]:
    """How much of a choice is in another: sums over a window's targets, in the order of `ROUTING`.

    `kept`: of a token's experts, the share that the other chooses too. `same`: 1 where all are the
    same. `weight`: what the gate weights have in common, each token's as shares. `load`: of all
    tokens' places at experts those that are at others, half the sum of what the counts differ by.
    `kl`: KL(other || one) of the routers' softmax in nats, NaN where there is none.
    """
    chosen = one.index.shape[-1]
    match = one.index[..., :, None] == other.index[..., None, :]
    common = match.sum((-1, -2))
    least = torch.minimum(one.shares[..., :, None], other.shares[..., None, :]) * match
    moved = (one.load - other.load).abs().sum(-1).double() / (2 * chosen)
    if one.logs is None or other.logs is None:
        kl = torch.full_like(moved, torch.nan)
    else:
        # p log(p/q) - p + q, which sums to the same and has no negative term.
        more = one.logs - other.logs
        rows = (other.logs.exp() * (more.expm1() - more)).sum(-1)
        kl = rows.sum(-1, dtype=torch.float64)
    sums = (
        common.sum(-1).double() / chosen,
        (common == chosen).sum(-1).double(),
        least.sum((-1, -2)).sum(-1, dtype=torch.float64),
        moved,
        kl,
    )
    return torch.stack(sums, -1)


class Router(NamedTuple):
    """What sends tokens to some experts."""

    name: str
    """Of the experts."""
    block: int
    experts: nn.Module


class Routers:
    """The routers of a model's blocks, in the order of their names.

    Args:
        loaded: The model.
        ids: A window, on which it is seen which of them are a softmax.
    """

    def __init__(self, loaded: LoadedModel, ids: Int[Tensor, " tokens"]) -> None:
        self._loaded, self._ids = loaded, ids[:_PROBED]
        self.all = routers(loaded)
        self.places = {router.experts: place for place, router in enumerate(self.all)}

    def __len__(self) -> int:
        return len(self.all)

    @cached_property
    def _scores(self) -> dict[nn.Module, Scores]:
        loaded = self._loaded
        return find_scores(loaded.model, lambda: loaded.logits(self._ids, last=1))

    @contextmanager
    def listening(
        self, forced: Callable[[nn.Module], Choice | None] = lambda experts: None
    ) -> Iterator[list[tuple[nn.Module, Choice]]]:
        """A list of what they choose in a forward of the model, and for which experts.

        Args:
            forced: Where tokens go instead, by experts; None where they go where they are sent.
        """
        found: list[tuple[nn.Module, Choice]] = []

        def listen(experts: nn.Module, choice: Choice) -> Choice | None:
            found.append((experts, choice))
            return forced(experts)

        with choices(self._loaded.model, self._scores if self.all else {}, listen):
            yield found


def routers(loaded: LoadedModel) -> list[Router]:
    """The routers of a model's blocks that tell experts where tokens go."""
    path = loaded.layout.blocks_path
    blocks = enumerate(loaded.model.get_submodule(path).children())
    return [
        Router(f"{path}.{index}.{name}", index, experts)
        for index, block in blocks
        for name, experts in told(block)
    ]


class Routes:
    """What a tree's nodes have of the full-precision model's choices, block by block.

    Args:
        tree: Of the runs.
        runs: With the full-precision model as it is.
        routers: Of the model.
        windows: How many there are.
    """

    def __init__(self, tree: Tree, runs: Sequence[Run], routers: Routers, windows: int) -> None:
        self._plain = _plain(tree, runs)
        self._parents = {c: p for steps in tree.steps for step in steps for p, c in step.edges}
        self._routers, self._windows = routers, windows
        self._reference: dict[tuple[nn.Module, int], tuple[Choice, Seen]] = {}
        self._at: tuple[int, int] | None = None
        self._batches: list[_Batch] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Choices are heard, until the `with` block ends."""
        with self._routers.listening(self._forced) as self._found:
            yield

    def _forced(self, experts: nn.Module) -> Choice | None:
        """The full-precision model's choice for every state of a batch that replays it."""
        if self._at is None:
            return None
        states, window = self._at
        choice, _ = self._reference[experts, window]
        index, weights = (
            x.expand(states, *x.shape).flatten(0, 2) for x in (choice.index, choice.weights)
        )
        return Choice(index, weights, choice.experts)

    def first(self, steps: Sequence[Step]) -> list[Step]:
        """The steps of a block, that of the full-precision model before the others."""
        self._reference.clear()
        return sorted(steps, key=lambda step: all(c not in self._plain for _, c in step.edges))

    def enter(self, part: Recipe, edges: Sequence[tuple[int, int]], windows: Sequence[int]) -> None:
        """A batch of a step is next: states by windows by tokens."""
        self._at = (len(edges), windows[0]) if part.replay else None

    def take(self, edges: Sequence[tuple[int, int]], windows: Sequence[int]) -> None:
        """What the routers of a block chose for a batch: states by windows by tokens."""
        found, self._found[:] = list(self._found), []
        batch = len(edges), len(windows), -1
        plain = next((place for place, (_, c) in enumerate(edges) if c in self._plain), None)
        sums: list[Tensor] = []
        for experts, choice in found:
            choice = _unflat(choice, batch)
            seen = Seen.of(choice)
            if plain is not None:
                own = Choice(choice.index[plain], choice.weights[plain], choice.experts)
                self._reference[experts, windows[0]] = own, seen.of_state(plain)
            _, reference = self._reference[experts, windows[0]]
            sums.append(alike(seen, reference))
        if sums:
            children = [child for _, child in edges]
            places = [self._routers.places[experts] for experts, _ in found]
            self._batches.append(_Batch(children, list(windows), places, torch.stack(sums, -2)))

    def at(self, node: int) -> Float64[np.ndarray, "windows routers kinds"] | None:
        """Sums at the routers on the way to a node; None of a model without routers."""
        if not len(self._routers):
            return None
        found = np.full((self._windows, len(self._routers), len(ROUTING)), np.nan)
        while node in self._parents:
            for windows, places, sums in self._by_node.get(node, ()):
                found[np.ix_(windows, places)] = sums
            node = self._parents[node]
        return found

    @cached_property
    def _by_node(self) -> "dict[int, list[tuple[list[int], list[int], np.ndarray]]]":
        """Windows, routers and sums at each node, brought here at once."""
        if not self._batches:
            return {}
        flat = torch.cat([batch.sums.flatten() for batch in self._batches]).cpu().numpy()
        found: dict[int, list[tuple[list[int], list[int], np.ndarray]]] = {}
        for batch in self._batches:
            own, flat = np.split(flat, [batch.sums.numel()])
            for node, sums in zip(batch.nodes, own.reshape(batch.sums.shape), strict=True):
                found.setdefault(node, []).append((batch.windows, batch.places, sums))
        return found


class _Batch(NamedTuple):
    """What some routers had of the reference's choices, for some nodes on some windows."""

    nodes: list[int]
    windows: list[int]
    places: list[int]
    sums: Float64[Tensor, "nodes windows places kinds"]


def _unflat(choice: Choice, batch: tuple[int, ...]) -> Choice:
    """States by windows by tokens."""
    logs = None if choice.logs is None else choice.logs.unflatten(0, batch)
    index, weights = choice.index.unflatten(0, batch), choice.weights.unflatten(0, batch)
    return Choice(index, weights, choice.experts, logs)


def _plain(tree: Tree, runs: Sequence[Run]) -> set[int]:
    """The nodes of the full-precision model as it is."""
    found: set[int] = set()
    node = next((tree.roots[0] for run in runs if run.recipe == NOTHING and not run.replica), None)
    for steps in tree.steps:
        for step in steps:
            if step.part == Recipe() and node in dict(step.edges):
                node = dict(step.edges)[node]
                found.add(node)
                break
    return found


def routing_values(run: Run, metrics: Sequence[WindowMetrics]) -> dict[str, list[object]]:
    """A run's measures of routing, a value for each window; nothing of a model without routers.

    Means over routers of every run, and the value at each router of whole models.
    """
    known = [m.routing for m in metrics if m.routing is not None]
    if not known:
        return {}
    sums = np.stack(known)
    there = ~np.isnan(sums)
    counts = there.sum(1)
    means = np.where(there, sums, 0.0).sum(1) / np.maximum(counts, 1)
    found: dict[str, list[object]] = {}
    for place, kind in enumerate(ROUTING):
        if not counts[:, place].all():
            continue
        found[ROUTING[kind]] = means[:, place].tolist()
        if run.is_whole:
            values = sums[:, :, place].tolist()
            found[ROUTERS[kind]] = [[None if v != v else v for v in row] for row in values]
    return found
