"""The two products of attention as sites: both operands of each, in the family's own function."""

import random

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from fp4scope.design import NOTHING, Run, design
from fp4scope.errors import ModelError
from fp4scope.formats import get_cache_format
from fp4scope.kernels import qdq
from fp4scope.models import adopt, find_layout
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.study import More, Study
from fp4scope.treatments import Setting

SETTINGS = [Setting.from_json({"input": name}) for name in ("nvfp4", "mxfp4", "fp8:calibrated")]
LINEARS = [None, *map(Setting.from_json, ("nvfp4", "mxfp4"))]


@pytest.fixture
def attending(tiny_model):
    """`attending(family, more=..., **config)`: a loaded model that attends eagerly."""

    def build(family, more=(More.ATTENTION,), **config):
        model = tiny_model(family, **config)
        model.set_attn_implementation("eager")
        return adopt(model, None, name=family, allow_partial=True, more=more)

    return build


def multiplied(loaded):
    return [site.name for site in loaded.layout.sites if not site.is_linear]


def mixed(loaded, count=4):
    """Recipes that differ in an operand, in a linear, and in both."""
    dice = random.Random(3)
    names = multiplied(loaded)
    every = frozenset(names)
    runs = [Run(NOTHING), Run(NOTHING, 1)]
    runs += [Run(Recipe(None, ((every, setting),))) for setting in SETTINGS]
    runs.append(Run(Recipe(LINEARS[1], ((every, SETTINGS[0]),)), 1))
    alone = [name for name in names if not name.endswith("_cache")][:4]
    runs += [Run(Recipe(None, ((frozenset([name]), SETTINGS[1]),))) for name in alone]
    for _ in range(count):
        edits = [(frozenset([name]), dice.choice([None, *SETTINGS])) for name in names]
        edits += [
            (frozenset([n]), dice.choice(LINEARS)) for n in dice.sample(loaded.layout.linears, 2)
        ]
        runs.append(Run(Recipe(dice.choice(LINEARS), ((every, None), *edits))))
    return list(dict.fromkeys(runs))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"more": [More.ATTENTION, More.KV_CACHE]}),
        ("gemma3", {"num_hidden_layers": 2}),
        ("gpt2", {}),
        ("gpt-oss", {}),
        ("deepseek-v3", {}),
    ],
    ids=["grouped", "sliding", "gpt2", "sinks", "latent"],
)
def test_equal_to_the_bit(
    family,
    config,
    attending,
    ids,
    calibrated,
    open_sweep,
    numbers_of,
    naive_numbers,
    unchanged,
):
    loaded = attending(family, **config)
    injector, runs = calibrated(loaded, ids), mixed(loaded)
    expected = naive_numbers(loaded, ids, runs, injector)
    with unchanged(loaded.model):
        sweep = open_sweep(loaded, ids, runs, injector)
        sweep.run()
    found = numbers_of(sweep)
    assert {k: v for k, v in found.items() if v != expected[k]} == {}
    assert found.keys() == expected.keys()
    # Every operand makes a difference of its own.
    nlls = [found[run.recipe, 0, "nll", 0] for run in runs if not run.replica]
    assert len(set(nlls[:8])) == 8


def test_both_operands_of_both_products_are_images(attending, ids):
    """Against attention that is written out."""
    loaded = attending("llama")
    module = loaded.model.model.layers[1].self_attn
    seen = []
    hook = module.register_forward_hook(
        lambda _, args, kwargs, output: seen.append((args, kwargs, output[0])), with_kwargs=True
    )
    fmt = get_cache_format("mxfp4")
    names = [name for name in multiplied(loaded) if ".1." in name]
    assert {name.rpartition(".")[2] for name in names} == {
        "qk_queries", "qk_keys", "pv_probabilities", "pv_values",
    }  # fmt: skip
    with Injector(loaded.model).applied(dict.fromkeys(names, SETTINGS[1])):
        loaded.logits(ids[0])
    hook.remove()
    [(args, kwargs, output)] = seen
    x = args[0] if args else kwargs["hidden_states"]
    cos, sin = kwargs["position_embeddings"]
    heads = (1, x.shape[1], -1, module.head_dim)
    q, k, v = (
        getattr(module, f"{name}_proj")(x).view(heads).transpose(1, 2) for name in ("q", "k", "v")
    )
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    k, v = (repeat_kv(each, module.num_key_value_groups) for each in (k, v))
    scores = qdq(q, fmt) @ qdq(k, fmt).mT * module.scaling
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    p = functional.softmax(scores.masked_fill(later, -torch.inf), dim=-1)
    attended = qdq(p, fmt) @ qdq(v.mT, fmt).mT
    expected = module.o_proj(attended.transpose(1, 2).reshape(1, x.shape[1], -1))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    unquantized = module.o_proj((p @ v).transpose(1, 2).reshape(1, x.shape[1], -1))
    assert not torch.allclose(output, unquantized, rtol=1e-2)


def test_operands_are_sites_and_products_are_projections(attending):
    loaded = attending("llama")
    sites = loaded.layout.sites
    asked = design(Study.build(model="x", attention="nvfp4", formats="mxfp4"), sites).contrasts
    units = {c.unit.name: c.unit.sites for c in asked if c.family.level == "projections"}
    assert units["attention.qk"] == {
        f"model.layers.{b}.self_attn.qk_{x}" for b in (0, 1) for x in ("queries", "keys")
    }
    assert units["attention.pv"] == {
        f"model.layers.{b}.self_attn.pv_{x}" for b in (0, 1) for x in ("probabilities", "values")
    }
    nvfp4 = Setting.from_json({"input": "nvfp4"})
    assert all(asked[0].own.at(name) == nvfp4 for name in multiplied(loaded))


def test_a_kernel_that_keeps_its_probabilities_is_refused(tiny_model):
    with pytest.raises(ModelError, match="attends by sdpa, one kernel without probabilities"):
        find_layout(tiny_model("llama"), more=[More.ATTENTION])


def test_other_products_than_two_are_refused(attending, ids, monkeypatch):
    from transformers.models.llama import modeling_llama

    own = modeling_llama.eager_attention_forward

    def thrice(module, query, *args, **kwargs):
        torch.matmul(query, query.mT)
        return own(module, query, *args, **kwargs)

    loaded = attending("llama")
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", thrice)
    settings = dict.fromkeys(multiplied(loaded), SETTINGS[1])
    with (
        pytest.raises(ModelError, match="LlamaAttention makes 3 matrix products as it attends"),
        Injector(loaded.model).applied(settings),
    ):
        loaded.logits(ids[0])
