"""How much of the full-precision model's routing is left, along the way of each state.

In every block with experts a router sends a token to some of them. What it chooses for a state is
compared with what it chose for the full-precision model's state, on the same window at the same
place. Rounding alone makes tokens near a tie go elsewhere: what the full-precision model's own
perturbed realisations keep is the ceiling.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fp4scope.design import NOTHING, Run
from fp4scope.metrics import Routing
from fp4scope.operands import Choice, experts_in, routed
from fp4scope.recipes import Recipe
from fp4scope.sweep.tree import Step, Tree


def alike(one: Choice, other: Choice) -> Float[Tensor, "*batch kinds"]:
    """How much of a choice is in another: sums over a window's targets, as `Routing` has them.

    Args:
        one: Of windows (*batch, tokens, chosen).
        other: Of the same windows, or one of them.
    """
    (i, w), (j, v) = (_of_targets(choice) for choice in (one, other))
    chosen = i.shape[-1]
    match = i[..., :, None] == j[..., None, :]
    common = match.sum((-1, -2))
    least = torch.minimum(w[..., :, None], v[..., None, :]) * match
    loads = [_load(index, one.experts) for index in (i, j)]
    moved = (loads[0] - loads[1]).abs().sum(-1).double() / (2 * chosen)
    sums = (
        common.sum(-1).double() / chosen,
        (common == chosen).sum(-1).double(),
        least.sum((-1, -2)).double().sum(-1),
        moved.expand(common.shape[:-1]),
    )
    return torch.stack(sums, -1)


def _of_targets(choice: Choice) -> tuple[Tensor, Tensor]:
    """What the tokens that have a target chose, its weights in shares."""
    index, weights = choice.index[..., :-1, :], choice.weights[..., :-1, :].float()
    return index, weights / weights.sum(-1, keepdim=True)


def _load(index: Tensor, experts: int) -> Shaped[Tensor, "*batch experts"]:
    """How many tokens each expert has."""
    flat = index.flatten(-2)
    zeros = torch.zeros(*flat.shape[:-1], experts, dtype=torch.int64, device=index.device)
    return zeros.scatter_add_(-1, flat, torch.ones_like(flat))


@contextmanager
def listening(model: nn.Module) -> Iterator[list[Choice]]:
    """A list of what the routers of a model choose, in the order in which they run."""
    found: list[Choice] = []

    def listen(_: nn.Module, choice: Choice) -> None:
        found.append(choice)

    with routed(experts_in(model), listen):
        yield found


class Routes:
    """Sums of a tree's nodes, as its states go through the blocks.

    Args:
        tree: Of the runs.
        runs: With the full-precision model as it is.
        windows: How many there are.
        device: Of the model.
    """

    def __init__(self, tree: Tree, runs: Sequence[Run], windows: int, device: torch.device) -> None:
        self._plain = _plain(tree, runs)
        self._reference: dict[int, list[Choice]] = {}
        self._routers = 0
        zero = torch.zeros(windows, len(Routing._fields), dtype=torch.float64, device=device)
        self._sums = dict.fromkeys(tree.roots.values(), zero)

    def first(self, steps: Sequence[Step]) -> list[Step]:
        """The steps of a block, that of the full-precision model before the others."""
        return sorted(steps, key=lambda step: all(c not in self._plain for _, c in step.edges))

    def take(
        self, found: list[Choice], edges: Sequence[tuple[int, int]], windows: Sequence[int]
    ) -> None:
        """What the routers of a block chose for a batch: states by windows by tokens."""
        choices, found[:] = list(found), []
        if not choices:
            for parent, child in edges:
                self._sums[child] = self._sums[parent]
            return
        batch = len(edges), len(windows), -1
        by_state = [
            Choice(c.index.unflatten(0, batch), c.weights.unflatten(0, batch), c.experts)
            for c in choices
        ]
        for place, (parent, child) in enumerate(edges):
            if child not in self._sums:
                self._sums[child] = self._sums[parent].clone()
                self._routers += len(choices) if child in self._plain else 0
            if child in self._plain:
                for w, window in enumerate(windows):
                    self._reference[window] = [
                        Choice(c.index[place, w], c.weights[place, w], c.experts) for c in by_state
                    ]
        for router, choice in enumerate(by_state):
            own = [self._reference[window][router] for window in windows]
            reference = Choice(
                torch.stack([c.index for c in own]),
                torch.stack([c.weights for c in own]),
                choice.experts,
            )
            for (_, child), sums in zip(edges, alike(choice, reference), strict=True):
                self._sums[child][list(windows)] += sums

    def at(self, node: int) -> list[Routing] | None:
        """By window; None of a model without routers."""
        if not self._routers:
            return None
        means = self._sums[node] / self._routers
        return [Routing(*values) for values in means.tolist()]


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
