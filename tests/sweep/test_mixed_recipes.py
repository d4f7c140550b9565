"""Recipes that mix formats: weights are quantized once for all of them, and let go in time."""

import random

import pytest

from fp4scope.design import Run, design
from fp4scope.operands import Injector, treated
from fp4scope.recipes import Recipe, Site, Sites
from fp4scope.study import Study
from fp4scope.sweep.passes import passes
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.tree import build_tree, last_uses, parts_by_block, peak_image_numbers
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
    own = treated.qdq

    def counted(x, *args, **kwargs):
        quantized.append(x.numel())
        found = own(x, *args, **kwargs)
        held.append(
            x.numel() + sum(loaded.model.get_submodule(n).weight.numel() for n, _ in injector.held)
        )
        return found

    monkeypatch.setattr(treated, "qdq", counted)
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


def test_sites_are_looked_at_only_where_a_recipe_differs(monkeypatch):
    """6 blocks of 128 experts with three projections, each kept and quantized alone."""
    projections = ("gate_proj", "up_proj", "down_proj")
    sites = Sites(
        [
            Site(name=f"{b}.{e}.{c}", block=b, projection=f"{e}.{c}", rows=768, cols=2048)
            for b in range(6)
            for e in range(128)
            for c in projections
        ],
        6,
    )
    assert len(sites) == 2304
    runs = design(
        Study.build(model="m", formats="nvfp4", sweep="layers", jitter=1, all_quantized=""), sites
    ).runs
    # Two directions of each, two controls and their two originals, and a replica.
    assert len(runs) == 2 * 2304 + 5
    # What a run holds does not grow with the model: one edit of one site.
    assert max(sum(len(names) for names, _ in run.recipe.edits) for run in runs) == 1
    monkeypatch.setattr(Recipe, "at", lambda self, name: pytest.fail(f"looked at {name}"))
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    by_block, kinds = parts_by_block(recipes, sites)
    assert list(kinds) == recipes
    # Each block as it is without edits, in both directions, and every edit once; nothing behind.
    assert sum(map(len, by_block)) == 6 * 2 + 2 * 2304 + 1


def test_parts_that_do_the_same_are_one_step():
    """However they are written, and in a block without sites."""
    names = ("0.a", "0.b", "2.a", "2.b", "2.c")
    sites = Sites(
        [Site(name=n, block=int(n[0]), projection=n[2], rows=2, cols=2) for n in names], 3
    )
    one, two = (Setting.from_json(name) for name in ("nvfp4", "mxfp4"))

    def steps(*recipes):
        return [
            len(block) for block in build_tree([Run(recipe) for recipe in recipes], sites).steps
        ]

    half = Recipe(one, ((frozenset(["0.b"]), two), (frozenset(["2.a", "2.b"]), None)))
    same = Recipe(None, ((frozenset(["0.a", "2.c"]), one), (frozenset(["0.b"]), two)))
    assert half != same
    assert steps(half, same) == [1, 1, 1]
    assert steps(half, same, Recipe(), Recipe(two)) == [3, 1, 3]
    kept = Recipe(one, ((frozenset(["0.a", "0.b"]), None),))
    assert steps(kept, Recipe(one), Recipe()) == [2, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_the_peak_of_weight_images_is_that_of_all_that_live_together(seed):
    dice = random.Random(seed)
    sites = Sites(
        [Site(name=f"0.{i}", block=0, projection=f"{i}", rows=1, cols=2**i) for i in range(6)], 1
    )
    settings = [None, *map(Setting.from_json, ("nvfp4", "mxfp4", {"input": "nvfp4"}))]
    names = list(sites.by_name)
    recipes = [
        Recipe(
            dice.choice(settings),
            tuple((frozenset(dice.sample(names, 2)), dice.choice(settings)) for _ in range(2)),
        )
        for _ in range(12)
    ]
    tree = build_tree([Run(recipe) for recipe in recipes], sites)
    images = [
        {(n, s.weight) for n, s in step.settings.items() if s.weight} for step in tree.steps[0]
    ]
    alive = [set().union(*images[: i + 1]) & set().union(*images[i:]) for i in range(len(images))]
    most = max(sum(sites.by_name[name].parameters for name, _ in some) for some in alive)
    assert peak_image_numbers(tree, sites) == most
