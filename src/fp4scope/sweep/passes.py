"""Runs cut into groups, each of which goes over the weights together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fp4scope.design import NOTHING, Run
from fp4scope.models import LoadedModel
from fp4scope.recipes import Recipe, Sites
from fp4scope.sweep.tree import Tree, build_tree, peak_image_numbers
from fp4scope.sweep.wavefront import head_in_blocks, head_runs


@dataclass(frozen=True)
class Pass:
    """Runs that go over the weights together. The first `carried` are only compared with.

    `image_numbers` is how many numbers its quantized weights have at the peak.
    """

    runs: tuple[Run, ...]
    carried: int
    tree: Tree
    image_numbers: int


def passes(runs: Sequence[Run], groups: int, sites: Sites) -> list[Pass]:
    """Runs cut into groups of about the same number, neighbours together.

    Units of one block are neighbours, so that what they share is computed in few groups. Every
    group has the full-precision model and whatever else its runs are compared with.
    """
    ordered = sorted(runs, key=lambda run: _place(run.recipe, sites))
    needed = {run.against for run in runs}
    fixed = [run for run in runs if not run.replica and run.recipe in needed]
    held = set(fixed)
    others = [run for run in ordered if run not in held]
    size = -(-len(others) // groups)
    found: list[Pass] = []
    for start in range(0, max(1, len(others)), max(1, size)):
        chosen = others[start : start + size]
        wanted = {NOTHING} | {run.against for run in chosen}
        carried = [run for run in fixed if run.recipe in wanted] if found else fixed
        members = (*carried, *chosen)
        tree = build_tree(members, sites)
        images = peak_image_numbers(tree, sites)
        found.append(Pass(members, len(carried) if found else 0, tree, images))
    return found


def _place(recipe: Recipe, sites: Sites) -> tuple[Any, ...]:
    """Its settings, its base, and the first block where it is not its base's."""
    settings = sorted((s.format, s.precision) for s in recipe.settings)
    first = min(map(sites.blocks_before, recipe.edited), default=-1)
    return settings, recipe.base is not None, first


def executions(parts: Sequence[Pass]) -> int:
    """Blocks to run on each window."""
    return sum(part.tree.executions for part in parts)


def work(parts: Sequence[Pass], loaded: LoadedModel) -> float:
    """The same with the head, which counts as `head_in_blocks` blocks for each final state."""
    heads = sum(head_runs(part.runs, part.tree) for part in parts)
    return executions(parts) + heads * head_in_blocks(loaded)
