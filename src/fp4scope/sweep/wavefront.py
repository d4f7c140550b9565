"""Every variant in one pass over the blocks, on a chunk of windows.

At first there is one state for each replica: the embeddings. At a block the tree says
which states go through it in which setting; each setting's states run together, in batches, and a
state is let go when nothing needs it any more. Behind the last block every variant has its final
state, and the model's own tail turns them into logits: rows outside, variants inside, so that the
reference's logits are made once for each tile of rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from fp4scope.design import Run
from fp4scope.metrics import RowMetrics, WindowMetrics, compare, reference_predictions
from fp4scope.models import BlockInputs, LoadedModel, State, Tail, together
from fp4scope.operands import FEWEST_ROWS, Injector
from fp4scope.recipes import Recipe
from fp4scope.sweep.perturb import perturbation, perturbed
from fp4scope.sweep.routing import Routers, Routes
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.tree import Tree, last_uses

_T = TypeVar("_T")


class End(NamedTuple):
    """Where a run ends: in the state of a node, under one of the tree's heads."""

    node: int
    head: int


class Compared(NamedTuple):
    """Whose logits are wanted, and whose they are compared with."""

    end: End
    against: End


def comparisons(runs: Sequence[Run], tree: Tree) -> list[Compared]:
    """What the head does for each run; runs with the same settings share it."""
    ends = list(zip(runs, map(End, tree.leaves, tree.head_of), strict=True))
    origin = {run.recipe: end for run, end in ends if run.replica == 0}
    return [Compared(end, origin[run.against]) for run, end in ends]


def head_runs(runs: Sequence[Run], tree: Tree) -> int:
    """How many states' logits are made, with those that others are compared with."""
    pairs = set(comparisons(runs, tree))
    return len(pairs | {Compared(pair.against, pair.against) for pair in pairs})


class Wavefront:
    """Measures runs together, chunk by chunk.

    Args:
        loaded: The model.
        injector: Of the same model.
        runs: What to measure, with the replica 0 of whatever they are compared with.
        tree: Of these runs.
        shape: How much runs at once.
        seed: Of the perturbations.
        routers: Of the model.
        strata: Of all targets of the text.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        injector: Injector,
        runs: Sequence[Run],
        tree: Tree,
        shape: Shape,
        seed: int,
        routers: Routers,
        strata: UInt8[np.ndarray, "windows kinds targets"],
    ) -> None:
        self._runs, self._routers, self._strata = runs, routers, strata
        self._stack = loaded.stack
        self._device = loaded.device
        self._injector = injector
        self._tree = tree
        self._shape = shape
        self._seed = seed
        self._head_in_blocks = head_in_blocks(loaded)
        self._store = torch.device("cpu") if shape.spill else loaded.device
        self._wanted = comparisons(runs, tree)
        # In the head, those that are compared with the same one follow it.
        pairs = sorted(set(self._wanted), key=lambda p: (p.against, p.end != p.against, p.end.head))
        self._order = {pair: place for place, pair in enumerate(pairs)}
        told = zip(runs, self._wanted, strict=True)
        self._whole = {self._order[pair] for run, pair in told if run.keeps_strata}
        self._heads = [dict(part.in_block(loaded.layout.sites.behind)) for part in tree.heads]

    @torch.no_grad()
    def measure(
        self,
        ids: Int[Tensor, "windows tokens"],
        windows: Sequence[int],
        advance: Callable[[float], None] = lambda share: None,
    ) -> list[list[WindowMetrics]]:
        """Metrics of every run on every window.

        Args:
            ids: Token ids of the chunk.
            windows: Which windows of the text these are: it decides their perturbation.
            advance: Told as the work goes on how much of it was done since the last time, in
                blocks run on one window; the head counts as `head_in_blocks` of them.

        Raises:
            NonFiniteError: NaN or Inf in a quantized input.
        """
        self._injector.forget()
        inputs = self._stack.capture(ids)
        embedded = State(inputs.embedded.to(self._store))
        states = dict.fromkeys(self._tree.roots.values(), embedded)
        self._routes = Routes(self._tree, self._runs, self._routers, len(ids))
        with self._stack.fused(self._injector.gated):
            with self._routes.listening():
                self._blocks(states, inputs, windows, advance)
            with self._stack.tail() as tail:
                leaving = (
                    self._head(
                        tail, {n: s.hidden[w] for n, s in states.items()}, ids[w], advance
                    ).leaving()
                    for w in range(len(ids))
                )
                # A window is summed up while the device has the next one to do.
                measured = [
                    self._summed(rows(), self._strata[window])
                    for window, rows in zip(windows, _one_behind(leaving), strict=True)
                ]
        self._injector.check()
        self._injector.forget()
        found = [list(by_window) for by_window in zip(*measured, strict=True)]
        for place, pair in enumerate(self._wanted):
            routing = self._routes.at(pair.end.node)
            if routing is not None:
                both = zip(found[place], routing, strict=True)
                found[place] = [replace(one, routing=own) for one, own in both]
        return found

    def _blocks(
        self,
        states: dict[int, State],
        inputs: BlockInputs,
        windows: Sequence[int],
        advance: Callable[[float], None],
    ) -> None:
        """From the roots' states to those of the leaves."""
        uses = self._tree.uses()
        together = max(1, self._shape.block // len(windows))
        for block, steps in enumerate(self._tree.steps):
            self._stack.bring(block)
            moves = self._perturbations(block, windows, inputs.embedded.shape[1:])
            steps = self._routes.first(steps)
            for step, done in zip(steps, last_uses(steps), strict=True):
                with self._injector.applied(step.settings, check=False):
                    for edges in _pieces(step.edges, together):
                        self._run(block, step.part, edges, states, inputs, moves)
                        for parent, _ in edges:
                            uses[parent] -= 1
                            if not uses[parent]:
                                del states[parent]
                        advance(float(len(edges) * len(windows)))
                self._injector.forget(done)
            self._injector.check()

    def _perturbations(
        self, block: int, windows: Sequence[int], shape: Sequence[int]
    ) -> dict[int, Tensor]:
        """How the states of each replica but the first are moved as they enter a block."""
        return {
            replica: torch.stack(
                [
                    perturbation(
                        shape,
                        seed=self._seed,
                        replica=replica,
                        window=w,
                        block=block,
                        device=self._store,
                    )
                    for w in windows
                ]
            )
            for replica in self._tree.roots
            if replica
        }

    def _run(
        self,
        block: int,
        part: Recipe,
        edges: Sequence[tuple[int, int]],
        states: dict[int, State],
        inputs: BlockInputs,
        moves: dict[int, Tensor],
    ) -> None:
        """A batch of states through a block, windows in parts if a state has more than fit."""
        entering: list[State] = []
        for parent, _ in edges:
            state, steps = states[parent], moves.get(self._tree.replica_of[parent])
            if steps is not None:
                state = replace(state, hidden=perturbed(state.hidden, steps))
            entering.append(state)
        parts: list[list[State]] = []
        for chosen in _pieces(range(len(inputs.embedded)), self._shape.block):
            some = slice(chosen[0], chosen[-1] + 1)
            own = [state.some(some) for state in entering]
            batch = together(own, self._stack.reads(block), copy=self._stack.overwrites)
            batch = batch.map(lambda x: x.to(self._device))
            self._routes.enter(part, edges, chosen)
            left = self._stack.run(block, batch, inputs, [*chosen] * len(edges))
            self._routes.take(edges, chosen)
            parts.append(left.map(lambda x: x.to(self._store)).apart(len(edges)))
        for place, (_, child) in enumerate(edges):
            left = parts[0][place]
            if len(parts) > 1:
                left = together([part[place] for part in parts], left.carried)
            states[child] = self._stack.passed_on(block, entering[place], left)

    def _head(
        self,
        tail: Tail,
        states: dict[int, Tensor],
        ids: Int[Tensor, " tokens"],
        advance: Callable[[float], None],
    ) -> RowMetrics:
        """One window's final states to metrics of its targets."""
        targets = ids[1:].to(self._device)
        found = RowMetrics.empty(len(self._order), len(targets), self._device)
        for tile in tiles(len(ids), self._shape.rows):
            expected = targets[tile]
            rows = slice(tile.start, tile.start + len(expected))
            share = len(expected) / len(targets) * self._head_in_blocks
            for against, pairs in groupby(self._order, lambda pair: pair.against):
                own = self._logits(tail, [against], states, tile)[:, : len(expected)]
                reference = reference_predictions(own[0])
                advance(share)
                others = list(pairs)
                if others[0].end == against:
                    place = self._order[others.pop(0)]
                    found.put(slice(place, place + 1), rows, compare(own, expected, reference))
                for _, alike in groupby(others, lambda pair: pair.end.head):
                    for some in _pieces(list(alike), self._shape.head):
                        places = slice(self._order[some[0]], self._order[some[-1]] + 1)
                        # No name for the logits: the next ones need their memory.
                        metrics = compare(
                            self._logits(tail, [pair.end for pair in some], states, tile)[
                                :, : len(expected)
                            ],
                            expected,
                            reference,
                        )
                        found.put(places, rows, metrics)
                        advance(share * len(some))
        return found

    def _summed(
        self, rows: RowMetrics, strata: UInt8[np.ndarray, "kinds targets"]
    ) -> list[WindowMetrics]:
        """A window's sums, runs in the order of the plan."""
        sums = rows.windows(self._whole, strata)
        return [sums[self._order[pair]] for pair in self._wanted]

    def _logits(
        self, tail: Tail, ends: Sequence[End], states: dict[int, Tensor], tile: slice
    ) -> Tensor:
        """Of some rows of states under the same head."""
        together = torch.stack([states[end.node][tile] for end in ends]).to(self._device)
        settings = self._heads[ends[0].head]
        with self._injector.applied(settings, check=False) if settings else nullcontext():
            return tail(together)


def head_in_blocks(loaded: LoadedModel) -> float:
    """How many blocks the head is worth, by the size of the weights that a token meets."""
    head = loaded.vocab_size * loaded.hidden_size
    return head * loaded.layout.blocks / loaded.active


def tiles(rows: int, most: int) -> Iterator[slice]:
    """Slices of at most about so many rows, none of them short unless it is the only one."""
    start = 0
    while start < rows:
        stop = start + most
        if rows - stop < FEWEST_ROWS:
            stop = rows
        yield slice(start, stop)
        start = stop


def _pieces(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _one_behind(items: Iterable[_T]) -> Iterator[_T]:
    """Each once the next was made."""
    before: list[_T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before
