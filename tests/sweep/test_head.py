"""The head as a site: runs that end in one state go through it under settings of their own."""

import random

import pytest
import torch

from fp4scope.design import NOTHING, Run
from fp4scope.errors import ModelError, StudyError
from fp4scope.models import adopt, find_layout
from fp4scope.operands import Injector
from fp4scope.preflight import check
from fp4scope.recipes import Recipe
from fp4scope.study import More, Study
from fp4scope.sweep import estimate_window
from fp4scope.sweep.passes import passes
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.tree import build_tree
from fp4scope.treatments import Setting

HEAD = "lm_head"
SETTINGS = [None, *map(Setting.from_json, ("nvfp4", "mxfp4", {"weight": "nvfp4"}))]


@pytest.fixture
def headed(tiny_model):
    """`headed(family, **config)`: a loaded model whose head is a site."""

    def build(family, **config):
        model = tiny_model(family, **config)
        return adopt(model, None, name=family, allow_partial=True, more=[More.LM_HEAD])

    return build


def mixed(loaded, count=6):
    """Recipes that differ in the head, in a block, in both, and replicas of some."""
    dice = random.Random(7)
    names = loaded.layout.linears
    runs = [Run(NOTHING), Run(NOTHING, 1)]
    for setting in SETTINGS[1:]:
        runs += [
            Run(Recipe(setting)),
            Run(Recipe(setting), 1),
            Run(Recipe(setting), 1, Recipe(setting)),
        ]
        runs.append(Run(Recipe(setting, ((frozenset([HEAD]), None),))))
        runs.append(Run(Recipe(None, ((frozenset([HEAD]), setting),))))
    for _ in range(count):
        edits = [(frozenset([name]), dice.choice(SETTINGS)) for name in dice.sample(names, 3)]
        edits.append((frozenset([HEAD]), dice.choice(SETTINGS)))
        runs.append(Run(Recipe(dice.choice(SETTINGS), tuple(edits))))
    return list(dict.fromkeys(runs))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma3", {"num_hidden_layers": 2, "final_logit_softcapping": 5.0}),
        ("gpt2", {}),
    ],
    ids=["untied", "tied", "soft-capped", "gpt2"],
)
def test_equal_to_the_bit_with_other_heads_in_one_batch(
    family, config, headed, ids, calibrated, open_sweep, numbers_of, naive_numbers, unchanged
):
    loaded = headed(family, **config)
    injector, runs = calibrated(loaded, ids), mixed(loaded)
    expected = naive_numbers(loaded, ids, runs, injector)
    with unchanged(loaded.model):
        sweep = open_sweep(loaded, ids, runs, injector)
        sweep.run()
    found = numbers_of(sweep)
    assert {k: v for k, v in found.items() if v != expected[k]} == {}
    assert found.keys() == expected.keys()
    # It matters, and to those alone whose head is quantized.
    plain = {key[3]: value for key, value in found.items() if key[:3] == (NOTHING, 0, "nll")}
    only = Recipe(None, ((frozenset([HEAD]), SETTINGS[1]),))
    assert all(found[only, 0, "nll", w] != value for w, value in plain.items())


def test_cut_in_small_pieces_it_is_the_same(headed, ids, calibrated, open_sweep, numbers_of):
    loaded = headed("llama")
    injector, runs = calibrated(loaded, ids), mixed(loaded)
    whole = open_sweep(loaded, ids, runs, injector)
    small = Shape(windows=1, groups=3, block=2, head=2, rows=128)
    pieces = open_sweep(loaded, ids, runs, injector, shape=small)
    whole.run()
    pieces.run()
    assert numbers_of(whole) == numbers_of(pieces)


def test_a_recipe_that_differs_in_the_head_runs_no_block_more(headed):
    loaded = headed("llama")
    sites = loaded.layout.sites
    runs = [Run(NOTHING), *(Run(Recipe(None, ((frozenset([HEAD]), s),))) for s in SETTINGS[1:])]
    tree = build_tree(runs, sites)
    assert tree.executions == 2
    assert len(set(tree.leaves)) == 1
    assert len(tree.heads) == len(set(tree.head_of)) == len(SETTINGS)
    # The images of a head wait for each other: one in MXFP4, and one in NVFP4 for two recipes.
    (together,) = passes(runs, 1, sites)
    assert together.image_numbers == 2 * sites.by_name[HEAD].parameters


def test_the_image_of_a_tied_weight_stands_in_the_head_alone(headed, ids):
    loaded = headed("llama", tie_word_embeddings=True)
    embeddings = loaded.model.get_input_embeddings()
    with Injector(loaded.model).applied({HEAD: Setting.from_json({"weight": "mxfp4"})}):
        assert loaded.model.lm_head.weight is not embeddings.weight
        assert not torch.equal(loaded.model.lm_head.weight, embeddings.weight)
    assert loaded.model.lm_head.weight is embeddings.weight


def test_the_head_is_a_projection_in_no_block(tiny_model):
    model = tiny_model("llama")
    plain, layout = find_layout(model), find_layout(model, more=[More.LM_HEAD])
    assert layout.projections == (*plain.projections, HEAD)
    assert [site.name for site in layout.sites.behind] == [HEAD]
    assert (layout.blocks, layout.layers) == (plain.blocks, plain.layers)
    assert (layout.coverage, layout.missed) == (plain.coverage, plain.missed)
    excluded = find_layout(model, [HEAD], more=[More.LM_HEAD])
    assert excluded.sites.behind == ()
    assert [e.projection for e in excluded.excluded] == [HEAD]


def test_a_model_whose_head_is_none_is_refused(tiny_model):
    model = tiny_model("llama")
    model.lm_head = torch.nn.Identity()
    with pytest.raises(ModelError, match="is a Identity and no linear, so it"):
        find_layout(model, more=[More.LM_HEAD])
    model.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match="names no module as its head"):
        find_layout(model, more=[More.LM_HEAD])


def test_a_head_never_sees_a_whole_window():
    asked = {"model": "x", "lm_head": True, "activation_scale": "dynamic"}
    with pytest.raises(StudyError, match="activation_scale is dynamic, but the head"):
        check(Study.build(**asked), in_memory=True)
    check(Study.build(**asked, formats="mxfp4"), in_memory=True)
    check(Study.build(**asked, operands="w4a16"), in_memory=True)


def test_a_study_without_it_is_what_it_was_before():
    assert "lm_head" not in Study.build(model="x").identity
    assert Study.build(model="x", lm_head=True).identity["lm_head"] is True


def test_the_gradient_estimates_what_quantizing_the_head_costs(headed, ids, calibrated, units):
    """With respect to the logits it is the softmax less the targets."""
    loaded = headed("llama")
    injector = calibrated(loaded, ids)
    only = [c for c in units(loaded, formats="nvfp4", sweep="projections", direction="only")]
    (asked,) = (contrast for contrast in only if contrast.unit.name == HEAD)
    found = estimate_window(loaded, ids[0], [asked], injector).nats[asked]
    own = loaded.logits(ids[0])[:-1].double()
    with injector.applied({HEAD: asked.family.setting}):
        moved = loaded.logits(ids[0])[:-1].double() - own
    slope = own.softmax(-1) - torch.nn.functional.one_hot(ids[0][1:], own.shape[-1])
    assert found == pytest.approx(float((slope * moved).sum()), rel=1e-4)
