"""Runs as a prefix tree over the blocks: what they have in common is computed once.

To a block, a recipe is nothing but its part there: the settings of that block's sites. Two recipes
with the same parts in blocks 0 to b have the same hidden state behind block b, so they share a node
of the tree. A layer of block b that is kept shares all blocks before b with the all-quantized
model, one that alone is quantized with the full-precision model. It costs the L - b blocks from b
on: (L + 1) / 2 of L on average. Nothing here knows what keeping or a projection is.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from fp4scope.design import Run
from fp4scope.recipes import Edit, Recipe, Site, Sites
from fp4scope.treatments import Setting, Treatment

Image = tuple[str, Treatment]
"""A quantized weight, by its site and how it is treated."""


@dataclass(frozen=True)
class Step:
    """One block with one part of recipes, for every node that passes through it.

    `edges` are (parent, child) pairs, and `sites` those of the block.
    """

    part: Recipe
    edges: tuple[tuple[int, int], ...]
    sites: Sequence[Site]

    @property
    def settings(self) -> dict[str, Setting]:
        """What is done in the block, by the name of the place there."""
        return dict(self.part.in_block(self.sites))

    def names(self, sites: Set[str]) -> Set[str]:
        """Where some of the block's sites are in it."""
        if all(site.key == site.name for site in self.sites):
            return sites
        return {site.name for site in self.sites if site.key in sites}


@dataclass(frozen=True)
class Tree:
    """Steps by block, the root of each replica, and the node that each run ends in.

    Replicas share nothing, since they are perturbed at every block; `replica_of` has every node's.
    `heads` are the parts of recipes behind the blocks, and `head_of` says which of them each run
    has: runs with other heads end in one node.
    """

    steps: tuple[tuple[Step, ...], ...]
    roots: Mapping[int, int]
    leaves: tuple[int, ...]
    replica_of: tuple[int, ...]
    heads: tuple[Recipe, ...]
    head_of: tuple[int, ...]

    @property
    def executions(self) -> int:
        """How many times a block runs on one window."""
        return sum(len(step.edges) for steps in self.steps for step in steps)

    def uses(self) -> Counter[int]:
        """How many times each node is needed: by its children and by runs that end in it."""
        uses = Counter(parent for steps in self.steps for step in steps for parent, _ in step.edges)
        return uses + Counter(self.leaves)

    def peak_states(self, at_once: int, sizes: Sequence[float] | None = None) -> float:
        """The most that states take which live at the same time: how many, or their sizes.

        Args:
            at_once: How many edges of a step run together: their parents and children coexist.
            sizes: Of a state as it enters each block, and behind the last; by default 1.
        """
        uses = self.uses()
        sizes = sizes or [1.0] * (len(self.steps) + 1)
        live = peak = len(self.roots) * sizes[0]
        for steps, before, behind in zip(self.steps, sizes, sizes[1:], strict=False):
            for step in steps:
                for start in range(0, len(step.edges), at_once):
                    edges = step.edges[start : start + at_once]
                    live += len(edges) * behind
                    peak = max(peak, live)
                    for parent, _ in edges:
                        uses[parent] -= 1
                        live -= before * (uses[parent] == 0)
        return peak


def build_tree(runs: Sequence[Run], sites: Sites) -> Tree:
    """The prefix tree of these runs."""
    by_block, kinds_of = parts_by_block(dict.fromkeys(run.recipe for run in runs), sites)
    kinds = [kinds_of[run.recipe] for run in runs]
    roots = {replica: i for i, replica in enumerate(sorted({run.replica for run in runs}))}
    at = [roots[run.replica] for run in runs]
    replica_of = list(roots)
    steps: list[tuple[Step, ...]] = []
    *by_block, heads = by_block
    for block, parts in enumerate(by_block):
        edges: defaultdict[int, dict[int, int]] = defaultdict(dict)
        for i, run in enumerate(runs):
            children = edges[kinds[i][block]]
            if at[i] not in children:
                children[at[i]] = len(replica_of)
                replica_of.append(run.replica)
            at[i] = children[at[i]]
        # Nodes in the order in which they were made: neighbours stay neighbours.
        steps.append(
            tuple(
                Step(parts[kind], tuple(sorted(children.items())), sites.blocks[block])
                for kind, children in edges.items()
            )
        )
    head_of = tuple(kind[-1] for kind in kinds)
    return Tree(tuple(steps), roots, tuple(at), tuple(replica_of), tuple(heads), head_of)


def parts_by_block(
    recipes: Iterable[Recipe], sites: Sites
) -> tuple[list[list[Recipe]], dict[Recipe, list[int]]]:
    """The different parts of recipes in every block, and which of them each recipe has there.

    The last are those behind the blocks. A recipe is its base's but for the blocks that it edits,
    so only these are looked at.
    """
    places = (*sites.blocks, sites.behind)
    found: list[dict[Recipe, int]] = [{} for _ in places]

    def kind_in(block: int, recipe: Recipe) -> int:
        return found[block].setdefault(_part(recipe, places[block]), len(found[block]))

    kinds: dict[Recipe, list[int]] = {}
    for recipe in recipes:
        base = Recipe(recipe.base, replay=recipe.replay)
        if base not in kinds:
            kinds[base] = [kind_in(block, base) for block in range(len(found))]
        kinds[recipe] = [*kinds[base]]
        edits = _edits_by_block(recipe, sites)
        for block, own in edits.items():
            part = recipe if len(edits) == 1 else replace(recipe, edits=tuple(own))
            kinds[recipe][block] = kind_in(block, part)
    return [list(parts) for parts in found], kinds


def _edits_by_block(recipe: Recipe, sites: Sites) -> dict[int, list[Edit]]:
    found: dict[int, list[Edit]] = {}
    for names, setting in recipe.edits:
        by_block: defaultdict[int, list[str]] = defaultdict(list)
        for name in names:
            for place in {place.block for place in sites.places[name]}:
                by_block[len(sites.blocks) if place is None else place].append(name)
        for block, own in by_block.items():
            found.setdefault(block, []).append((frozenset(own), setting))
    return found


def _part(recipe: Recipe, sites: Sequence[Site]) -> Recipe:
    """The same to these sites, which are all that it edits: equal for recipes that do the same.

    Its base is what most of the sites have. That is the recipe's own if it edits less than half.
    """
    if 2 * len(recipe.edited) < len(sites):
        return recipe
    settings = {site.key: recipe.at(site.key) for site in sites}
    base = max(settings.values(), key=Counter(settings.values()).__getitem__, default=None)
    edits = tuple((frozenset([name]), s) for name, s in settings.items())
    return Recipe(base, edits, recipe.replay)


def first_uses(steps: Iterable[Step]) -> list[set[Image]]:
    """For each step of a block, the weight images that no step before it needs.

    A base's image is looked at until some step has it: not for each of the many steps that differ
    in one site.
    """
    seen: set[Image] = set()
    unseen: dict[Treatment, set[str]] = {}  # sites by what a base does to them
    found: list[set[Image]] = []
    for step in steps:
        base, edited = step.part.base, step.names(step.part.edited)
        images = {
            (name, setting.weight)
            for names, setting in step.part.edits
            if setting and setting.weight
            for name in step.names(names)
        }
        if base and base.weight:
            if base.weight not in unseen:
                unseen[base.weight] = {site.name for site in step.sites}
            images |= {(name, base.weight) for name in unseen[base.weight] - edited}
            unseen[base.weight] &= edited
        found.append(images - seen)
        seen |= images
    return found


def last_uses(steps: Sequence[Step]) -> list[set[Image]]:
    """For each step of a block, the weight images that no later step of it needs."""
    return first_uses(reversed(steps))[::-1]


def peak_image_numbers(tree: Tree, sites: Sites) -> int:
    """How many numbers all weight images have that live at the same time, at most.

    Those behind the blocks live until all heads have run.
    """
    parameters = {site.name: site.parameters for site in sites.everywhere}

    def numbers(images: Iterable[Image]) -> int:
        return sum(parameters[name] for name, _ in images)

    peak = numbers(
        {
            (name, setting.weight)
            for part in tree.heads
            for name, setting in part.in_block(sites.behind)
            if setting.weight is not None
        }
    )
    for steps in tree.steps:
        live = 0
        for made, done in zip(first_uses(steps), last_uses(steps), strict=True):
            live += numbers(made)
            peak = max(peak, live)
            live -= numbers(done)
    return peak
