"""Variants as a prefix tree over the blocks: what they have in common is computed once.

To a block, a variant is nothing but the settings of that block's linears. Two variants with the
same settings in blocks 0 to b have the same hidden state behind block b, so they share a node of
the tree. A cell of block b shares all blocks before b with its baseline (restore) or with the
reference (isolate), and costs the L - b blocks from b on: (L + 1) / 2 of L on average. Nothing
here knows what a restore or a component is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fp4scope.inject import Setting
from fp4scope.models import Layout
from fp4scope.sweep.plan import PlannedVariant

Settings = tuple[tuple[str, Setting], ...]


@dataclass(frozen=True)
class Step:
    """One block in one setting, for every node that passes through it: (parent, child) pairs."""

    settings: Mapping[str, Setting]
    edges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tree:
    """Steps by block, the root of each replica, and the node that each variant ends in.

    Replicas share nothing, since they are perturbed at every block; `replica_of` has every node's.
    """

    steps: tuple[tuple[Step, ...], ...]
    roots: Mapping[int, int]
    leaves: tuple[int, ...]
    replica_of: tuple[int, ...]

    @property
    def executions(self) -> int:
        """How many times a block runs on one window."""
        return sum(len(step.edges) for steps in self.steps for step in steps)

    def uses(self) -> Counter[int]:
        """How many times each node is needed: by its children and by variants that end in it."""
        uses = Counter(parent for steps in self.steps for step in steps for parent, _ in step.edges)
        return uses + Counter(self.leaves)

    def peak_states(self, at_once: int) -> int:
        """The most hidden states that live at the same time.

        Args:
            at_once: How many edges of a step run together: their parents and children coexist.
        """
        uses = self.uses()
        live = peak = len(self.roots)
        for steps in self.steps:
            for step in steps:
                for start in range(0, len(step.edges), at_once):
                    edges = step.edges[start : start + at_once]
                    live += len(edges)
                    peak = max(peak, live)
                    for parent, _ in edges:
                        uses[parent] -= 1
                        live -= uses[parent] == 0
        return peak


def build_tree(variants: Sequence[PlannedVariant], layout: Layout) -> Tree:
    """The prefix tree of these variants."""
    cell_of = layout.cell_of
    by_block: list[dict[int, list[tuple[str, Setting]]]] = []
    for planned in variants:
        blocks: dict[int, list[tuple[str, Setting]]] = {}
        for name, setting in planned.settings.items():
            blocks.setdefault(cell_of[name].block, []).append((name, setting))
        by_block.append(blocks)

    roots = {replica: i for i, replica in enumerate(sorted({v.replica for v in variants}))}
    at = [roots[v.replica] for v in variants]
    replica_of = list(roots)
    steps: list[tuple[Step, ...]] = []
    for block in range(layout.blocks):
        edges: dict[Settings, dict[int, int]] = {}
        for i, blocks in enumerate(by_block):
            settings = tuple(sorted(blocks.get(block, ()), key=lambda item: item[0]))
            children = edges.setdefault(settings, {})
            if at[i] not in children:
                children[at[i]] = len(replica_of)
                replica_of.append(variants[i].replica)
            at[i] = children[at[i]]
        # Nodes in the order in which they were made: neighbours stay neighbours.
        steps.append(
            tuple(
                Step(dict(settings), tuple(sorted(children.items())))
                for settings, children in edges.items()
            )
        )
    return Tree(tuple(steps), roots, tuple(at), tuple(replica_of))
