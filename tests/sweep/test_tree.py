"""The prefix tree: what is shared is computed once, and the cost is what was promised."""

from collections import Counter

import pytest

from fp4scope.design import NOTHING, ROUTING
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.sweep import routing, worker
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.tree import build_tree
from fp4scope.sweep.wavefront import Wavefront

FAMILIES = ("llama", "qwen2-sliding", "gemma3", "gpt2", "qwen2-moe")


@pytest.fixture(params=FAMILIES)
def loaded(request, adopted):
    return adopted(request.param)


def executions(planned, loaded, **study):
    """Of the tree of a study, less what its controls alone take."""
    options = {"formats": "mxfp4"} | study
    own = planned(loaded, **options)
    # What is run beside to tell routing from values has no layers.
    variants = [r for r in own if r.contrast is None or r.contrast.family.level != ROUTING]
    controls = [run for run in variants if _is_whole(run.recipe)]
    own = build_tree(controls, loaded.layout.sites).executions
    units = len({run.recipe for run in variants if not _is_whole(run.recipe)})
    return build_tree(variants, loaded.layout.sites).executions - own, units


def _is_whole(recipe):
    return not recipe.edits


def different_prefixes(variants, layout):
    """Brute force: how many different (replica, replay, settings of blocks 0 to b) there are."""
    block_of = {name: layer.block for name, layer in layout.layer_of.items()}
    found = set()
    for v in variants:
        for block in range(layout.blocks):
            settings = v.recipe.in_block(layout.sites)
            upto = frozenset((n, s) for n, s in settings if block_of[n] <= block)
            found.add((v.replica, v.recipe.replay, block, upto))
    return len(found)


@pytest.mark.parametrize("direction", ["keep", "only"])
def test_layers_cost_half_a_model_on_average(direction, loaded, planned):
    """Exactly (L + 1) / 2 blocks a layer, where every block has the same projections."""
    blocks = loaded.layout.blocks
    ran, layers = executions(planned, loaded, sweep="layers", direction=direction)
    assert layers == len(loaded.layout.layers)
    per_block = Counter(layer.block for layer in loaded.layout.layers)
    assert ran == sum(count * (blocks - block) for block, count in per_block.items())
    if len(set(per_block.values())) == 1:
        assert 2 * ran == layers * (blocks + 1)


@pytest.mark.parametrize("direction", ["keep", "only"])
def test_projections_cost_a_model_each(direction, loaded, planned):
    ran, projections = executions(planned, loaded, sweep="projections", direction=direction)
    if len({c for b, c in loaded.layout.layers if b == 0}) == projections:
        assert ran == projections * loaded.layout.blocks


def test_a_projection_and_its_layer_in_block_0_share_that_block(adopted, planned):
    """Quantizing a projection alone, and only in block 0, is the same up to there."""
    loaded = adopted("llama")
    layers, _ = executions(planned, loaded, sweep="layers", direction="only")
    projections, _ = executions(planned, loaded, sweep="projections", direction="only")
    both, _ = executions(planned, loaded, sweep="layers,projections", direction="only")
    assert both == layers + projections - 7


def test_every_different_prefix_runs_exactly_once(loaded, planned):
    variants = planned(
        loaded,
        operands="weights+activations,weights",
        sweep="projections,blocks,layers",
        patterns=["*.1.*", "*mlp*"],
        replicas=2,
    )
    tree = build_tree(variants, loaded.layout.sites)
    assert tree.executions == different_prefixes(variants, loaded.layout)


def test_steps_give_every_variant_its_settings(loaded, planned):
    """A walk from a variant's leaf to its root meets exactly the variant's settings."""
    variants = planned(loaded, sweep="projections,layers", replicas=2)
    tree = build_tree(variants, loaded.layout.sites)
    above = {}
    for block, steps in enumerate(tree.steps):
        for step in steps:
            for parent, child in step.edges:
                assert child not in above
                above[child] = block, parent, step.settings
    for planned_variant, leaf in zip(variants, tree.leaves, strict=True):
        met, node = {}, leaf
        for block in reversed(range(loaded.layout.blocks)):
            at, node, settings = above[node]
            assert at == block
            met |= settings
        assert met == dict(planned_variant.recipe.in_block(loaded.layout.sites))
        assert node == tree.roots[planned_variant.replica]
        assert tree.replica_of[leaf] == planned_variant.replica


def test_uses_are_children_and_variants(loaded, planned):
    tree = build_tree(planned(loaded, sweep="projections,layers", replicas=2), loaded.layout.sites)
    expected = Counter(tree.leaves)
    for steps in tree.steps:
        for step in steps:
            expected.update(parent for parent, _ in step.edges)
    assert tree.uses() == expected
    assert set(tree.uses()) == set(range(len(tree.replica_of)))


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_peak_states_is_what_a_sweep_holds(
    at_once, adopted, ids, planned, calibrated, monkeypatch, open_sweep
):
    loaded = adopted("qwen2-sliding")
    variants = planned(loaded, formats="mxfp4", operands="weights", sweep="layers", replicas=2)
    held = []
    own = Wavefront._run

    def counted(self, block, part, edges, states, *rest):
        own(self, block, part, edges, states, *rest)
        held.append(len(states))

    monkeypatch.setattr(Wavefront, "_run", counted)
    shape = Shape(windows=1, groups=1, block=at_once, head=8)
    sweep = open_sweep(loaded, ids[:1], variants, calibrated(loaded, ids), shape=shape)
    sweep.run()
    assert max(held) == build_tree(variants, loaded.layout.sites).peak_states(at_once)


@pytest.mark.parametrize("groups", [1, 3])
def test_blocks_really_run_that_often(
    groups, loaded, ids, planned, open_sweep, monkeypatch, calibrated
):
    """`Scheduler.executions` windows' worth of batch entries go through the blocks' own forward."""
    variants = planned(loaded, formats="nvfp4", operands="weights", sweep="layers")
    shape = Shape(windows=2, groups=groups, block=6, head=8)
    sweep = open_sweep(loaded, ids, variants, calibrated(loaded, ids), shape=shape)
    # These run blocks as well.
    monkeypatch.setattr(worker, "still_the_same", lambda *_: None)
    monkeypatch.setattr(routing, "find_scores", lambda *_: {})
    ran = []
    # The classes' forward, because the tail calls the blocks too but puts them aside.
    for kind in {type(block) for block in loaded.model.get_submodule(loaded.layout.blocks_path)}:
        monkeypatch.setattr(kind, "forward", _counting(kind.forward, ran))
    events = []
    sweep.run(events.append)
    assert sum(ran) == sweep.executions * len(ids)
    # The progress counts the same, the capture of the inputs aside, which is not told.
    done = [event.done for event in events]
    assert done == sorted(done)
    assert events[0].done == 0
    assert events[-1].done == events[-1].total == pytest.approx(sweep.work * len(ids))


def _counting(forward, ran):
    def counted(self, hidden_states, *args, **kwargs):
        ran.append(len(hidden_states))
        return forward(self, hidden_states, *args, **kwargs)

    return counted


def test_what_changes_nothing_is_the_reference_itself(loaded, ids, planned, open_sweep, numbers_of):
    """The control: all restored, or nothing isolated, ends in the reference's own node."""
    variants = planned(loaded, formats="mxfp4", sweep="blocks", patterns=["*"])
    setting = variants[-1].recipe.settings.pop()
    everything = frozenset(loaded.layout.linears)
    kept, alone = Recipe(setting, ((everything, None),)), Recipe(None, ((everything, setting),))
    assert {kept, alone} < {run.recipe for run in variants}
    whole = Recipe(setting)
    leaves = build_tree(variants, loaded.layout.sites).leaves
    leaf = {(run.recipe, run.replica): leaf for run, leaf in zip(variants, leaves, strict=True)}
    assert leaf[kept, 0] == leaf[NOTHING, 0]
    assert leaf[alone, 0] == leaf[whole, 0]

    sweep = open_sweep(loaded, ids, variants, Injector(loaded.model))
    sweep.run()
    found = numbers_of(sweep)
    for window in range(len(ids)):
        for name in ("nll", "kl", "top1"):
            assert found[kept, 0, name, window] == found[NOTHING, 0, name, window]
            assert found[alone, 0, name, window] == found[whole, 0, name, window]
        tokens, kl = found[NOTHING, 0, "kl", window]
        assert (kl, found[NOTHING, 0, "top1", window]) == (0.0, (tokens, tokens))
        assert found[whole, 0, "kl", window][1] > 0
