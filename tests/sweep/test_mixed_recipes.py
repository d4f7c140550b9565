"""Recipes that mix formats: weights are quantized once for all of them, and let go in time."""

import random

import pytest

from fp4scope.design import Run, design
from fp4scope.operands import Injector
from fp4scope.operands import apply as inject
from fp4scope.recipes import Recipe, Site, Sites
from fp4scope.study import Study
from fp4scope.sweep.passes import passes
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.tree import build_tree, last_uses, settings_by_block
from fp4scope.treatments import Setting

WEIGHTS = [
    Setting.from_json({"weight": name}) for name in ("mxfp4", "mxfp4:even", "nvfp4", "mxfp8:e4m3")
]


@pytest.fixture
def mixed(adopted):
    """A model and twenty recipes, each with a format of its own for every linear."""
    loaded = adopted("llama")
    dice = random.Random(5)
    runs = [Run(Recipe())]
    for _ in range(20):
        edits = [(frozenset([name]), dice.choice(WEIGHTS)) for name in loaded.layout.linears]
        runs.append(Run(Recipe(None, tuple(edits))))
    return loaded, runs


def test_every_weight_is_quantized_once_in_each_format(
    mixed, ids, open_sweep, numbers_of, naive_numbers, monkeypatch
):
    loaded, runs = mixed
    injector = Injector(loaded.model)
    quantized, held = [], []
    own = inject.qdq

    def counted(x, *args, **kwargs):
        quantized.append(x.numel())
        found = own(x, *args, **kwargs)
        held.append(
            x.numel() + sum(loaded.model.get_submodule(n).weight.numel() for n, _ in injector.held)
        )
        return found

    monkeypatch.setattr(inject, "qdq", counted)
    shape = Shape(windows=2, groups=1, block=8, head=8)
    sweep = open_sweep(loaded, ids, runs, injector, shape=shape)
    sweep.run()
    different = {(name, s) for run in runs for name, s in run.recipe.in_block(loaded.layout.sites)}
    assert len(quantized) == len(different) > 50
    (together,) = passes(runs, 1, loaded.layout.sites)
    assert max(held) == together.image_numbers
    assert injector.held == set()
    monkeypatch.undo()
    assert numbers_of(sweep) == naive_numbers(loaded, ids, runs, injector)


def test_an_image_is_let_go_after_the_last_step_that_needs_it(mixed):
    loaded, runs = mixed
    for steps in build_tree(runs, loaded.layout.sites).steps:
        gone = set()
        for step, done in zip(steps, last_uses(steps), strict=True):
            used = {(name, setting.weight) for name, setting in step.settings.items()}
            assert not used & gone
            assert done <= used
            gone |= done
        assert gone == {(n, s.weight) for step in steps for n, s in step.settings.items()}


def test_thousands_of_sites_are_looked_at_only_where_a_recipe_differs(monkeypatch):
    """48 blocks of 128 experts with three projections, each kept and quantized alone."""
    components = ("gate_proj", "up_proj", "down_proj")
    sites = Sites(
        [
            Site(name=f"{b}.{e}.{c}", block=b, component=f"{e}.{c}", rows=768, cols=2048)
            for b in range(48)
            for e in range(128)
            for c in components
        ],
        48,
    )
    assert len(sites) == 18_432
    runs = design(Study.build(model="m", formats="nvfp4", sweep="cells", jitter=1), sites).runs
    # Two directions of each, two controls and their two originals, and a replica.
    assert len(runs) == 2 * 18_432 + 5
    # What a run holds does not grow with the model: one edit of one site.
    assert max(sum(len(names) for names, _ in run.recipe.edits) for run in runs) == 1
    looked = []
    own = Recipe.in_block
    monkeypatch.setattr(
        Recipe, "in_block", lambda self, chosen: looked.append(len(chosen)) or own(self, chosen)
    )
    some = runs[:: len(runs) // 100]
    by_block, kinds = settings_by_block([run.recipe for run in some], sites)
    edited = sum(bool(recipe.edits) for recipe in kinds)
    bases = len({recipe.base for recipe in kinds})
    assert len(looked) == 48 * bases + edited
    assert sum(map(len, by_block)) == len(looked)
