"""Keys and values as sites: quantized as they are written, whatever function attends to them."""

import inspect
import random

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
)
from transformers.models.llama import modeling_llama

from fp4scope.design import NOTHING, Run, design
from fp4scope.errors import ModelError
from fp4scope.formats import get_cache_format
from fp4scope.kernels import qdq
from fp4scope.models import adopt, find_layout
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.study import More, Study
from fp4scope.treatments import Setting

FORMATS = ("nvfp4", "mxfp8", "fp8", "fp8:calibrated")
CACHE = [Setting.from_json({"input": name}) for name in FORMATS]
LINEARS = [None, *map(Setting.from_json, ("nvfp4", "mxfp4"))]


@pytest.fixture
def cached(tiny_model):
    """`cached(family, **config)`: a loaded model whose keys and values are sites."""

    def build(family, **config):
        model = tiny_model(family, **config)
        return adopt(model, None, name=family, allow_partial=True, more=[More.KV_CACHE])

    return build


def caches(loaded):
    return [site.name for site in loaded.layout.sites if site.projection == "kv_cache"]


def mixed(loaded, count=5):
    """Recipes that differ in caches, in linears, and in both."""
    dice = random.Random(7)
    names = caches(loaded)
    every = frozenset(names)
    runs = [Run(NOTHING), Run(NOTHING, 1)]
    for setting in CACHE:
        runs.append(Run(Recipe(None, ((every, setting),))))
    whole = Recipe(LINEARS[1], ((every, CACHE[0]),))
    runs += [Run(whole), Run(whole, 1), Run(whole, 1, whole)]
    runs.append(Run(Recipe(LINEARS[1], ((every, None),))))
    for _ in range(count):
        edits = [(frozenset([name]), dice.choice([None, *CACHE])) for name in names]
        edits += [
            (frozenset([n]), dice.choice(LINEARS)) for n in dice.sample(loaded.layout.linears, 2)
        ]
        runs.append(Run(Recipe(dice.choice(LINEARS), ((every, None), *edits))))
    return list(dict.fromkeys(runs))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"attn_implementation": "eager"}),
        ("gemma3", {"num_hidden_layers": 2}),
        ("gpt2", {}),
        ("granite-hybrid", {}),
        ("deepseek-v3", {}),
    ],
    ids=["grouped", "eager", "sliding", "gpt2", "hybrid", "latent"],
)
def test_equal_to_the_bit(
    family,
    config,
    cached,
    ids,
    calibrated,
    open_sweep,
    numbers_of,
    naive_numbers,
    unchanged,
):
    loaded = cached(family, **config)
    injector, runs = calibrated(loaded, ids), mixed(loaded)
    expected = naive_numbers(loaded, ids, runs, injector)
    with unchanged(loaded.model):
        sweep = open_sweep(loaded, ids, runs, injector)
        sweep.run()
    found = numbers_of(sweep)
    assert {k: v for k, v in found.items() if v != expected[k]} == {}
    assert found.keys() == expected.keys()
    # Every format makes a difference of its own.
    nlls = [found[run.recipe, 0, "nll", 0] for run in runs if not run.replica]
    assert len(set(nlls[:5])) == 5


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_keys_are_quantized_where_a_cache_has_them(family, implementation, cached, ids, calibrated):
    """As if the cache itself held images: in `update`, which gets what is to be attended to."""

    class Quantized(DynamicCache):
        def update(self, key_states, value_states, layer_idx, *args, **kwargs):
            images = (qdq(x, get_cache_format("mxfp8")) for x in (key_states, value_states))
            return super().update(*images, layer_idx, *args, **kwargs)

    loaded = cached(family, attn_implementation=implementation)
    named = inspect.signature(loaded.model.forward).parameters
    cache = {"cache" if "cache" in named else "past_key_values": Quantized()}
    expected = loaded.model(ids[:1], use_cache=True, **cache).logits[0]
    settings = dict.fromkeys(caches(loaded), CACHE[1])
    own = loaded.logits(ids[0])
    with Injector(loaded.model).applied(settings):
        found = loaded.logits(ids[0])
    assert torch.equal(found, expected)
    assert not torch.equal(found, own)
    assert torch.equal(loaded.logits(ids[0]), own)


def test_keys_and_values_have_a_scale_each(cached, ids, calibrated):
    loaded = cached("llama")
    injector = calibrated(loaded, ids)
    found = {name: injector.calibrated[name] for name in caches(loaded)}
    assert len(set(found.values())) == len(found) == 4


def test_the_table_of_functions_is_what_it_was(cached, ids):
    """Also after an exception, and for another model of the family meanwhile."""
    loaded, other = cached("llama"), cached("llama")
    own, table = other.logits(ids[0]), modeling_llama.ALL_ATTENTION_FUNCTIONS
    settings = dict.fromkeys(caches(loaded), CACHE[0])
    injector = Injector(loaded.model, dict.fromkeys(caches(loaded), 1.0))
    with injector.applied(settings):
        assert modeling_llama.ALL_ATTENTION_FUNCTIONS is not table
        assert torch.equal(other.logits(ids[0]), own)
    with pytest.raises(ZeroDivisionError), injector.applied(settings):
        raise ZeroDivisionError
    assert modeling_llama.ALL_ATTENTION_FUNCTIONS is table


def test_what_is_a_cache_and_where(tiny_model):
    def names(family, **config):
        model = tiny_model(family, **config)
        layout = find_layout(model, more=[More.KV_CACHE])
        plain = find_layout(model)
        assert (layout.linears, layout.coverage) == (plain.linears, plain.coverage)
        assert set(layout.projections) == {*plain.projections, "kv_cache"}
        return [site.path for site in layout.sites if site.projection == "kv_cache"]

    assert names("llama") == ["self_attn.key_cache", "self_attn.value_cache"] * 2
    # Linear attention has no such cache; an attention with a latent keeps that.
    assert names("qwen3-next") == ["self_attn.key_cache", "self_attn.value_cache"]
    assert names("deepseek-v3") == ["self_attn.latent_cache"] * 2


def test_a_model_without_such_attention_is_refused():
    config = BloomConfig(vocab_size=96, hidden_size=64, n_layer=2, n_head=4)
    with pytest.raises(ModelError, match="so what it multiplies cannot be reached"):
        find_layout(BloomForCausalLM(config), more=[More.KV_CACHE])


def test_blocks_that_share_a_cache_are_refused():
    config = AutoConfig.for_model(
        "gemma4_text", vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=96,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"layers\.2\S* of g4 attends to the keys and values of"):
        adopt(model, None, name="g4", allow_partial=True, more=[More.KV_CACHE])


def test_a_study_quantizes_the_cache_in_every_all_quantized_model(cached):
    loaded = cached("llama")
    sites, every = loaded.layout.sites, frozenset(caches(loaded))
    study = Study.build(model="x", formats="nvfp4,mxfp4", kv_cache="fp8", operands="w4a16")
    asked = design(study, sites)
    fp8 = Setting.from_json({"input": "fp8:unscaled"})
    for contrast in asked.contrasts:
        at = {contrast.own.at(name) for name in every}
        if contrast.unit is None:
            assert at == {fp8}
        elif contrast.unit.name == "kv_cache" and contrast.unit.level == "projections":
            keep = contrast.family.direction.value == "keep"
            assert at == ({None} if keep else {fp8})
            assert contrast.own.edited == every
            assert contrast.quantized == (
                Recipe(contrast.family.setting, ((every, fp8),)) if keep else contrast.own
            )
    layers = {(c.unit.name, c.unit.block) for c in asked.contrasts if c.family.level == "layers"}
    assert {("kv_cache", 0), ("kv_cache", 1)} <= layers
    # A unit of both has each in its own format.
    both = design(study.but(patterns="re:.*self_attn.*"), sites).contrasts
    (only,) = (
        c
        for c in both
        if c.family.level == "patterns"
        and c.family.setting.format == "nvfp4"
        and c.family.direction.value == "only"
    )
    assert {only.own.at(name) for name in only.unit.sites} == {fp8, only.family.setting}
