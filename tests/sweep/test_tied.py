"""A weight that several blocks share is one site, whose setting holds in all its places."""

from copy import deepcopy

import pytest
import torch
from transformers import CONFIG_MAPPING, LlamaForCausalLM

from fp4scope.models import adopt
from fp4scope.models.offload import Offloaded
from fp4scope.sweep.gradient import estimate_window

SHARED = ("self_attn.q_proj", "mlp.down_proj")


@pytest.fixture
def tied(tiny_model):
    """A Llama whose blocks 0 and 2 share two weights, and one with a copy of them in each."""
    own = tiny_model("llama", num_hidden_layers=3)
    for path in SHARED:
        first, last = (own.get_submodule(f"model.layers.{b}.{path}") for b in (0, 2))
        last.weight = torch.nn.Parameter(first.weight.clone(), requires_grad=False)
    one = deepcopy(own)
    for path in SHARED:
        first, last = (one.get_submodule(f"model.layers.{b}.{path}") for b in (0, 2))
        last.weight = first.weight
    return adopt(one, None, name="tied"), adopt(own, None, name="own")


def run(loaded, ids, planned, calibrated, open_sweep, formats="nvfp4", **study):
    injector = calibrated(loaded, ids)
    variants = planned(loaded, formats=formats, **study)
    sweep = open_sweep(loaded, ids, variants, injector)
    sweep.run()
    return sweep, variants, injector


def test_a_tied_site_is_switched_in_all_its_places(
    tied, ids, planned, calibrated, open_sweep, numbers_of, naive_numbers, unchanged
):
    """As the same weights are in a model that has them twice, both at once."""
    one, own = tied
    with unchanged(one.model):
        sweep, variants, injector = run(
            one, ids, planned, calibrated, open_sweep, sweep="layers", replicas=2
        )
    found = numbers_of(sweep)
    assert found == naive_numbers(one, ids, variants, injector)
    pattern = r"re:.*layers\.[02]\.self_attn\.q_proj"
    other, _, _ = run(
        own, ids, planned, calibrated, open_sweep, patterns=[pattern], sweep="blocks", replicas=2
    )
    expected = {}
    for (recipe, *key), value in numbers_of(other).items():
        if recipe.edited == {f"model.layers.{block}.self_attn.q_proj" for block in (0, 2)}:
            ((_, setting),) = recipe.edits
            expected[(recipe.base, setting, *key)] = value
    assert expected
    same = {
        (recipe.base, recipe.edits[0][1], *key): value
        for (recipe, *key), value in found.items()
        if recipe.edited == {"model.layers.0.self_attn.q_proj"}
    }
    assert same == expected


def test_an_estimate_is_the_sum_over_its_places(tied, ids, units, calibrated):
    found = []
    for loaded in tied:
        asked = units(loaded, formats="nvfp4", sweep="projections")
        estimate = estimate_window(loaded, ids[0], asked, calibrated(loaded, ids))
        found.append({(c.unit.name, c.family): nats for c, nats in estimate.nats.items()})
    one, own = found
    assert one.keys() == own.keys()
    assert list(one.values()) == pytest.approx(list(own.values()), rel=1e-5)


def test_a_block_that_comes_twice_is_quantized_once_a_call(
    tiny_model, ids, planned, calibrated, open_sweep, numbers_of
):
    """The same module under two names: measured by the model's own forward.

    Without a calibrated scale, which one module has for all its calls.
    """
    study = {"formats": "mxfp4", "sweep": "projections"}
    model = tiny_model("llama", num_hidden_layers=3)
    assert isinstance(model, LlamaForCausalLM)
    own = deepcopy(model)
    model.model.layers[2] = model.model.layers[0]
    own.model.layers[2].load_state_dict(own.model.layers[0].state_dict())
    results = []
    for each in (model, own):
        loaded = adopt(each, None, name="twice")
        sweep, _, _ = run(loaded, ids, planned, calibrated, open_sweep, **study)
        found = numbers_of(sweep)
        results.append({k: v for k, v in found.items() if not k[1] and not k[0].edits})
        assert sweep.shape.whole == (each is model)
    assert results[0] == results[1]


@pytest.mark.skipif("zamba2" not in CONFIG_MAPPING, reason="this transformers has no zamba2")
def test_zamba_2_is_equal_to_the_bit(
    adopted, ids, planned, calibrated, open_sweep, numbers_of, naive_numbers
):
    loaded = adopted("zamba2")
    shared = "model.layers.1.shared_transformer.self_attn.q_proj"
    assert [place.block for place in loaded.layout.sites.places[shared]] == [1, 4]
    sweep, variants, injector = run(loaded, ids, planned, calibrated, open_sweep, sweep="blocks")
    assert not sweep.shape.whole
    assert numbers_of(sweep) == naive_numbers(loaded, ids, variants, injector)


def test_shared_weights_stay_on_the_device_with_the_block_that_needs_them(tied):
    one, _ = tied
    blocks = list(one.model.model.layers)
    offloaded = Offloaded(blocks, torch.device("cpu"))
    slots = [slot.untyped_storage().data_ptr() for slot in offloaded._slots]
    for block in (0, 1, 2, 0, 2, 1, 2):
        offloaded.bring(block)
        places = {p.untyped_storage().data_ptr() for p in blocks[block].parameters()}
        assert len(places) == 1
        assert places <= set(slots)
