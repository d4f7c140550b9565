"""Parts of products, found by what their outputs do."""

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from fp4scope.errors import UnitError
from fp4scope.models import find_layout, find_parts
from fp4scope.study import Parts

_COMMON = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_FUSED = {
    "phi3": {},
    "gpt_neox": {},
    "bloom": {"n_head": 4},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96},
}
HEAD = 16


def built(family, **config):
    if family not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **_COMMON | _FUSED[family] | config)
    return AutoModelForCausalLM.from_config(config).eval()


def parts_of(model, wanted, layout=None):
    def forward(ids):
        with torch.no_grad():
            return model(ids, use_cache=False)

    layout = layout or find_layout(model)
    found = find_parts(model, layout, forward, wanted)
    block = f"{layout.blocks_path}.{layout.blocks - 1}."
    return {
        name.removeprefix(block): {part.name: part.places for part in parts}
        for name, parts in found.items()
        if name.startswith(block)
    }


def heads(*numbers):
    """Rows of some pieces of a head's width."""
    return [row for n in numbers for row in range(HEAD * n, HEAD * (n + 1))]


@pytest.mark.parametrize(
    ("family", "name", "q", "k", "v"),
    [
        # One after the other, by head, and by group of heads.
        ("phi3", "self_attn.qkv_proj", [0, 1, 2, 3], [4, 5], [6, 7]),
        ("gpt_neox", "attention.query_key_value", [0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]),
        ("bloom", "self_attention.query_key_value", [0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]),
        ("falcon", "self_attention.query_key_value", [0, 1, 4, 5], [2, 6], [3, 7]),
    ],
)
def test_q_k_and_v_are_found_in_any_order(family, name, q, k, v):
    found = parts_of(built(family), Parts.PROJECTIONS)
    assert found[name] == {"q": heads(*q), "k": heads(*k), "v": heads(*v)}
    assert set(found) - {name} == ({"mlp.gate_up_proj"} if family == "phi3" else set())


def test_gate_and_up_are_found_one_after_the_other_and_by_turns(tiny_model):
    assert parts_of(built("phi3"), Parts.PROJECTIONS)["mlp.gate_up_proj"] == {
        "gate": list(range(96)), "up": list(range(96, 192))
    }  # fmt: skip
    found = parts_of(tiny_model("gpt-oss"), Parts.PROJECTIONS)
    width = 2 * 160
    assert found == {
        "mlp.experts.gate_up_proj": {
            "gate": list(range(0, width, 2)), "up": list(range(1, width, 2))
        }
    }  # fmt: skip


def test_a_gate_beside_q_is_found(tiny_model):
    found = parts_of(tiny_model("qwen3-next"), Parts.PROJECTIONS)
    assert found["self_attn.q_proj"] == {"q": heads(0, 2, 4, 6), "gate": heads(1, 3, 5, 7)}


def test_latent_attention_has_k_and_v_where_they_leave_the_latent(tiny_model):
    found = parts_of(tiny_model("deepseek-v3"), Parts.PROJECTIONS)
    assert found["self_attn.kv_b_proj"] == {"k": heads(0, 2, 4, 6), "v": heads(1, 3, 5, 7)}
    assert {name for name in found if "attn" in name} == {"self_attn.kv_b_proj"}


def test_groups_of_heads_are_those_that_share_k_and_v(tiny_model):
    found = parts_of(tiny_model("llama"), Parts.HEADS)
    groups = ("heads.0-1", "heads.2-3")
    assert found == {
        "self_attn.q_proj": dict(zip(groups, (heads(0, 1), heads(2, 3)), strict=True)),
        "self_attn.k_proj": dict(zip(groups, (heads(0), heads(1)), strict=True)),
        "self_attn.v_proj": dict(zip(groups, (heads(0), heads(1)), strict=True)),
        "self_attn.o_proj": dict(zip(groups, (heads(0, 1), heads(2, 3)), strict=True)),
    }
    fused = parts_of(built("phi3"), Parts.HEADS)["self_attn.qkv_proj"]
    assert fused == {"heads.0-1": heads(0, 1, 4, 6), "heads.2-3": heads(2, 3, 5, 7)}
    alone = parts_of(tiny_model("gpt2"), Parts.HEADS)
    assert list(alone["attn.c_proj"]) == [f"heads.{n}" for n in range(4)]
    assert alone["attn.c_attn"]["heads.1"] == heads(1, 5, 9)


def test_bfloat16_says_the_same(tiny_model):
    for family in ("llama", "gpt-oss", "gemma3"):
        model = tiny_model(family)
        exact = parts_of(model, Parts.HEADS)
        assert parts_of(model.bfloat16(), Parts.HEADS) == exact
    model = built("phi3")
    exact = parts_of(model, Parts.PROJECTIONS)
    assert parts_of(model.bfloat16(), Parts.PROJECTIONS) == exact


def test_the_model_is_as_it_was(tiny_model, unchanged):
    model = tiny_model("gpt-oss")
    with unchanged(model):
        parts_of(model, Parts.PROJECTIONS)
        parts_of(model, Parts.HEADS)


def test_where_nothing_can_be_told_there_is_one_clear_error(tiny_model):
    with pytest.raises(UnitError, match=r"parts: projections, .* no linear is fused") as error:
        parts_of(tiny_model("llama"), Parts.PROJECTIONS)
    assert "leave --parts at none" in str(error.value)
    with pytest.raises(UnitError, match="one group of heads"):
        parts_of(tiny_model("smollm2"), Parts.HEADS)
    assert parts_of(tiny_model("llama"), Parts.NONE) == {}


def test_parts_are_sites_of_their_own():
    model = built("phi3")
    whole = find_layout(model)
    parts = find_parts(model, whole, lambda ids: model(ids), Parts.PROJECTIONS)
    layout = find_layout(model, parts=parts)
    assert layout.projections == (
        "o_proj", "qkv_proj.q", "qkv_proj.k", "qkv_proj.v", "gate_up_proj.gate",
        "gate_up_proj.up", "down_proj",
    )  # fmt: skip
    assert layout.linears == whole.linears
    assert (layout.coverage, layout.missed) == (pytest.approx(whole.coverage), whole.missed)
    k = layout.sites.by_name["model.layers.1.self_attn.qkv_proj.k"]
    assert (k.product, k.part, k.rows, k.cols) == (
        "model.layers.1.self_attn.qkv_proj", "k", 32, 64
    )  # fmt: skip
    assert layout.kinds["qkv_proj.k"] == "attention"
    assert layout.sites.match("qkv_proj.*") == {s.name for s in layout.sites if "qkv" in s.name}
    left = find_layout(model, ["qkv_proj.v", "*.0.mlp.gate_up_proj.up"], parts=parts)
    assert [(e.projection, len(e.linears)) for e in left.excluded] == [
        ("qkv_proj.v", 2), ("gate_up_proj.up", 1)
    ]  # fmt: skip
    assert left.reachable == pytest.approx(whole.coverage)
