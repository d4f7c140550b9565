"""Variants as a prefix tree over the blocks: what they have in common is computed once.

To a block, a variant is nothing but the settings of that block's linears. Two variants with the
same settings in blocks 0 to b have the same hidden state behind block b, so they share a node of
the tree. A cell of block b shares all blocks before b with its baseline (restore) or with the
reference (isolate), and costs the L - b blocks from b on: (L + 1) / 2 of L on average. Nothing
here knows what a restore or a component is.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fp4scope.design import Run
from fp4scope.recipes import Recipe, Sites
from fp4scope.treatments import Setting, Treatment

Settings = tuple[tuple[str, Setting], ...]
Image = tuple[str, Treatment]
"""A quantized weight, by its site and how it is treated."""


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


def build_tree(runs: Sequence[Run], sites: Sites) -> Tree:
    """The prefix tree of these runs."""
    by_block, kinds_of = settings_by_block(dict.fromkeys(run.recipe for run in runs), sites)
    kinds = [kinds_of[run.recipe] for run in runs]
    roots = {replica: i for i, replica in enumerate(sorted({run.replica for run in runs}))}
    at = [roots[run.replica] for run in runs]
    replica_of = list(roots)
    steps: list[tuple[Step, ...]] = []
    for block, settings in enumerate(by_block):
        edges: dict[int, dict[int, int]] = {}
        for i, run in enumerate(runs):
            children = edges.setdefault(kinds[i][block], {})
            if at[i] not in children:
                children[at[i]] = len(replica_of)
                replica_of.append(run.replica)
            at[i] = children[at[i]]
        # Nodes in the order in which they were made: neighbours stay neighbours.
        steps.append(
            tuple(
                Step(dict(settings[kind]), tuple(sorted(children.items())))
                for kind, children in edges.items()
            )
        )
    return Tree(tuple(steps), roots, tuple(at), tuple(replica_of))


def settings_by_block(
    recipes: Iterable[Recipe], sites: Sites
) -> tuple[list[list[Settings]], dict[Recipe, list[int]]]:
    """The different settings of every block, and which of them each recipe has in each block.

    A recipe is its base's but for the blocks that it edits, so only these are looked at.
    """
    found: list[dict[Settings, int]] = [{} for _ in sites.blocks]

    def kind_in(recipe: Recipe, block: int) -> int:
        settings = recipe.in_block(sites.blocks[block])
        return found[block].setdefault(settings, len(found[block]))

    kinds: dict[Recipe, list[int]] = {}
    for recipe in recipes:
        base = Recipe(recipe.base)
        if base not in kinds:
            kinds[base] = [kind_in(base, block) for block in range(len(found))]
        kinds[recipe] = [*kinds[base]]
        for block in {sites.by_name[name].block for name in recipe.edited}:
            kinds[recipe][block] = kind_in(recipe, block)
    return [list(settings) for settings in found], kinds


def last_uses(steps: Sequence[Step]) -> list[set[Image]]:
    """For each step of a block, the weight images that no later step of it needs."""
    later: set[Image] = set()
    found: list[set[Image]] = []
    for step in reversed(steps):
        images = {(name, s.weight) for name, s in step.settings.items() if s.weight is not None}
        found.append(images - later)
        later |= images
    return found[::-1]


def peak_image_numbers(tree: Tree, sites: Sites) -> int:
    """How many numbers all weight images have that live at the same time, at most."""
    peak = 0
    for steps in tree.steps:
        live: set[Image] = set()
        for step, done in zip(steps, last_uses(steps), strict=True):
            live |= {(name, s.weight) for name, s in step.settings.items() if s.weight is not None}
            peak = max(peak, sum(sites.by_name[name].parameters for name, _ in live))
            live -= done
    return peak
