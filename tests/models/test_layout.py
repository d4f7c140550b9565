"""Blocks and projections found from structure alone: dense families, experts, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DbrxConfig, DbrxForCausalLM
from transformers.pytorch_utils import Conv1D

from fp4scope.errors import ModelError, UnitError
from fp4scope.models import Excluded, Layer, adopt, find_layout, require_coverage
from fp4scope.models.exclude import DEFAULTS

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPT2 = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
BLOCKS = {"qwen2-sliding": 3, "gemma3": 7}


def test_every_family_has_its_blocks_and_projections(family, tiny_model):
    model = tiny_model(family)
    layout = find_layout(model)
    projections = GPT2 if family == "gpt2" else PROJECTIONS
    blocks = BLOCKS.get(family, 2)
    assert layout.blocks == blocks
    assert layout.projections == projections
    assert list(layout.layers) == [Layer(b, c) for b in range(blocks) for c in projections]
    for layer, names in layout.layers.items():
        prefix = f"{layout.blocks_path}.{layer.block}."
        assert len(names) == 1
        assert names[0].startswith(prefix)
        assert names[0].endswith(f".{layer.projection}")
        assert layout.layer_of[names[0]] == layer
    assert layout.coverage > 0.95
    assert layout.excluded == ()


def test_nothing_but_linears_inside_blocks_is_listed(family, tiny_model):
    model = tiny_model(family)
    layout = find_layout(model)
    blocks = model.get_submodule(layout.blocks_path)
    inside = {
        f"{layout.blocks_path}.{n}"
        for n, m in blocks.named_modules()
        if isinstance(m, nn.Linear | Conv1D)
    }
    assert set(layout.linears) == inside
    assert len(layout.linears) == len(inside)
    head = model.get_output_embeddings()
    assert all(model.get_submodule(name) is not head for name in layout.linears)


def test_a_projection_is_in_the_blocks_that_have_it_under_its_whole_path(tiny_model):
    """The second block of this one is dense."""
    found = {}
    for site in find_layout(tiny_model("qwen2-moe")).sites:
        found.setdefault(site.projection, {})[site.block] = site.path
    assert found["q_proj"] == dict.fromkeys([0, 1], "self_attn.q_proj")
    assert found["shared_expert.up_proj"] == {0: "mlp.shared_expert.up_proj"}
    assert found["mlp.up_proj"] == {1: "mlp.up_proj"}


def test_coverage_is_the_share_of_weights(tiny_model):
    model = tiny_model("llama-biased")
    layout = find_layout(model)
    sizes = {name: p.numel() for name, p in model.model.layers.named_parameters()}
    weights = sum(n for name, n in sizes.items() if "proj.weight" in name)
    assert layout.coverage == weights / sum(sizes.values())
    assert layout.coverage + sum(share for _, share in layout.missed) == pytest.approx(1)
    # Two blocks of 160 biases each.
    assert dict(layout.missed)["mlp.up_proj.bias"] == 2 * 160 / sum(sizes.values())
    assert [s for _, s in layout.missed] == sorted((s for _, s in layout.missed), reverse=True)


def test_families_hold_every_kind_of_layer_they_promise(tiny_model):
    """The fixtures' promise, which tests all over rely on."""
    gemma = tiny_model("gemma3").config
    assert gemma.layer_types[5] == "full_attention"
    assert set(gemma.layer_types[:5] + gemma.layer_types[6:]) == {"sliding_attention"}
    mixed = tiny_model("qwen2-sliding").config.layer_types
    assert set(mixed) == {"full_attention", "sliding_attention"}
    tied = {f: tiny_model(f).config.tie_word_embeddings for f in ("smollm2", "qwen3", "llama")}
    assert tied == {"smollm2": True, "qwen3": True, "llama": False}
    biased = tiny_model("llama-biased").model.layers[1]
    for bias in (biased.self_attn.o_proj.bias, biased.mlp.down_proj.bias):
        assert bool(bias.any())


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("*.1.mlp.*", 3),
        ("*.self_attn.?_proj", 8),
        ("model.layers.0.mlp.up_proj", 1),
        ("up_proj", 2),
        ("[qk]_proj", 4),
        ("mlp.*", 6),
        (r"re:.*\.1\.mlp\..*_proj$", 3),
        ("*", 14),
    ],
)
def test_pattern(pattern, count, tiny_model):
    layout = find_layout(tiny_model("llama"))
    matched = layout.sites.match(pattern)
    assert len(matched) == count
    assert set(matched) <= set(layout.linears)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("*.moe.*", "model.layers.0.self_attn.q_proj"), ("up_prj", "did you mean up_proj")],
)
def test_pattern_that_matches_nothing_is_an_error(pattern, hint, tiny_model):
    with pytest.raises(UnitError, match="matches none of the 14 linears") as error:
        find_layout(tiny_model("llama")).sites.match(pattern)
    assert hint in str(error.value)


# Experts.


def test_experts_in_one_tensor_are_two_sites_a_block(tiny_model, tiny_tokenizer):
    layout = adopt(tiny_model("qwen2-moe"), tiny_tokenizer()).layout
    stacked = [site for site in layout.sites if site.experts > 1]
    # The second block is dense.
    assert [
        (site.name, site.projection, site.experts, site.rows, site.cols) for site in stacked
    ] == [
        ("model.layers.0.mlp.experts.gate_up_proj", "experts.gate_up_proj", 4, 64, 64),
        ("model.layers.0.mlp.experts.down_proj", "experts.down_proj", 4, 64, 32),
    ]
    assert layout.coverage > 0.95
    assert layout.sites.match("experts.*") == {site.name for site in stacked}
    assert len(layout.sites.match("*shared_expert*")) == 3


def test_single_experts_are_sites_of_one_layer(tiny_model):
    model = tiny_model("gpt-oss")
    together, single = find_layout(model), find_layout(model, single=True)
    down = [site for site in single.sites if site.projection == "experts.down_proj"]
    assert [site.name for site in down[:2]] == [
        f"model.layers.0.mlp.experts.{e}.down_proj" for e in range(2)
    ]
    assert [site.expert for site in down] == [0, 1, 2, 3] * 2
    assert {site.product for site in down} == together.sites.match("experts.down_proj")
    assert single.linears == together.linears
    assert single.layers == together.layers
    assert (single.coverage, single.missed) == (together.coverage, together.missed)
    assert sum(s.parameters for s in single.sites) == sum(s.parameters for s in together.sites)


def test_single_experts_may_stay_in_full_precision(tiny_model):
    model = tiny_model("qwen3-moe")
    with pytest.raises(UnitError, match=r"'experts.3.\*' matches none"):
        find_layout(model, ["experts.3.*"])
    layout = find_layout(model, ["experts.3.*"], single=True)
    assert not [site for site in layout.sites if site.expert == 3]
    whole = find_layout(model)
    apart = [e for e in layout.excluded if e.reason == "by experts.3.*"]
    assert [(e.projection, len(e.linears)) for e in apart] == [
        ("experts.gate_up_proj", 2), ("experts.down_proj", 2)
    ]  # fmt: skip
    assert layout.coverage + sum(e.share for e in apart) == pytest.approx(whole.coverage)


def test_experts_that_cannot_be_reached_are_refused_by_name_or_allowed(tiny_tokenizer):
    """DBRX multiplies by slices of one matrix, in a loop of its own."""
    config = DbrxConfig(
        d_model=64, n_heads=4, n_layers=2, vocab_size=96, max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    )  # fmt: skip
    model = DbrxForCausalLM(config)
    with pytest.raises(ModelError, match="allow-partial") as error:
        adopt(model, tiny_tokenizer())
    assert "ffn.experts.mlp.w1 (" in str(error.value)
    loaded = adopt(model, tiny_tokenizer(), allow_partial=True)
    assert f"only {loaded.layout.reachable:.1%} of" in str(error.value)
    assert loaded.layout.projections == ("Wqkv", "out_proj")
    assert excluded(loaded.layout) == {
        f"transformer.blocks.{b}.ffn.router.layer": "router" for b in range(2)
    }


def test_packed_experts_are_refused(tiny_model, tiny_tokenizer):
    model = tiny_model("qwen3-moe")
    experts = model.model.layers[1].mlp.experts
    packed = experts.down_proj.data.to(torch.float8_e4m3fn)
    experts.down_proj = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ModelError, match=r"layers.1.mlp.experts.down_proj already holds .*e4m3fn"):
        find_layout(model)


def excluded(layout):
    return {name: e.reason for e in layout.excluded for name in e.linears}


def test_shared_expert_gate_stays_in_full_precision(tiny_model):
    layout = find_layout(tiny_model("qwen2-moe"))
    gate = "model.layers.0.mlp.shared_expert_gate"
    assert excluded(layout) == {gate: "router", "model.layers.0.mlp.gate": "router"}
    # Block 0 has experts, block 1 is dense: endings must tell them apart.
    names = ("shared_expert.gate_proj", "mlp.gate_proj")
    assert [len(layout.layers[Layer(b, name)]) for b, name in enumerate(names)] == [1, 1]


class Mlp(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.gate_proj = nn.Linear(32, width, bias=False)
        self.down_proj = nn.Linear(width, 32, bias=False)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(32, 3, bias=False)
        self.experts = nn.ModuleList(Mlp() for _ in range(3))
        self.shared_experts = Mlp()


class Block(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.q_proj = nn.Linear(32, 32, bias=False)
        self.mlp = mlp


class Model(nn.Module):
    def __init__(self, *blocks, **config):
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.embed = nn.Embedding(8, 32)
        self.layers = nn.ModuleList(blocks)
        self.lm_head = nn.Linear(32, 8)


@pytest.mark.parametrize(
    "key", ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"]
)
def test_experts_that_are_linears_make_one_layer(key):
    layout = find_layout(Model(Block(Mlp(64)), Block(Experts()), **{key: 3}))
    assert layout.layers[Layer(1, "experts.*.gate_proj")] == tuple(
        f"layers.1.mlp.experts.{i}.gate_proj" for i in range(3)
    )
    assert layout.layers[Layer(1, "shared_expert.down_proj")] == (
        "layers.1.mlp.shared_experts.down_proj",
    )
    assert layout.layers[Layer(0, "mlp.gate_proj")] == ("layers.0.mlp.gate_proj",)
    assert layout.layers[Layer(1, "q_proj")] == ("layers.1.q_proj",)
    total = 2 * 1024 + 4 * 2048 + 4096 + 96
    assert layout.excluded == (Excluded("gate", ("layers.1.mlp.gate",), "router", 96 / total),)
    assert (layout.coverage, layout.missed) == ((total - 96) / total, ())
    assert layout.reachable == pytest.approx(1)
    experts = frozenset(layout.layers[Layer(1, "experts.*.down_proj")])
    assert layout.sites.match("*.experts.*.down_proj") == experts
    assert layout.sites.match("experts.*.down_proj") == experts


def test_the_name_of_an_expert_says_so():
    class Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(Mlp() for _ in range(3))

    layout = find_layout(Model(Block(Only()), num_experts=3))
    assert layout.projections == ("q_proj", "experts.*.gate_proj", "experts.*.down_proj")
    assert len(layout.layers[Layer(0, "experts.*.gate_proj")]) == 3


@pytest.mark.parametrize(
    "path", ["gate", "mlp.gate", "router", "mlp.router.layer", "gate.wg", "router.proj"]
)
def test_routers_by_any_of_their_names(path):
    """As transformers spells them: Mixtral, Qwen, Llama 4, DBRX and JetMoE, Hunyuan, Gemma 4."""
    block = Block(Mlp())
    holder = block
    for part in path.split(".")[:-1]:
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    holder.add_module(path.split(".")[-1], nn.Linear(32, 5))
    model = Model(block, num_local_experts=5)
    assert excluded(find_layout(model)) == {f"layers.0.{path}": "router"}
    # The count may stand in the text part of a configuration.
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_experts=5))
    assert excluded(find_layout(model)) == {f"layers.0.{path}": "router"}
    assert excluded(find_layout(model, ["none"])) == {}
    # A gate as wide as something else is a linear like others; a router is one by its name.
    model.config = SimpleNamespace(num_local_experts=4)
    assert bool(excluded(find_layout(model))) == ("router" in path)


@pytest.mark.parametrize("path", ["shared_experts", "mlp.shared_mlp", "mlp.dense", "residual_mlp"])
def test_a_shared_expert_is_called_so_whatever_its_module_is_called(path):
    """By the word, or as an MLP beside routed experts in one module; another MLP is none."""
    block = Block(Experts())
    del block.mlp.shared_experts
    holder, _, leaf = path.rpartition(".")
    own = type("SomeMLP", (Mlp,), {})()
    block.get_submodule(holder).add_module(leaf, own)
    layout = find_layout(Model(block, Block(Mlp(64)), num_experts=3))
    name = "shared_expert.gate_proj" if path != "residual_mlp" else "residual_mlp.gate_proj"
    kind = "shared expert" if path != "residual_mlp" else "MLP"
    assert layout.layers[Layer(0, name)] == (f"layers.0.{path}.gate_proj",)
    assert (layout.kinds[name], layout.kinds["mlp.gate_proj"]) == (kind, "MLP")
    assert layout.kinds["experts.*.gate_proj"] == "routed experts"
    assert layout.sites.match(name) == {f"layers.0.{path}.gate_proj"}
    reasons = excluded(find_layout(Model(block, num_experts=3), [f"{name[:8]}*.gate_proj"]))
    assert f"layers.0.{path}.gate_proj" in reasons


def test_without_routed_experts_there_is_no_shared_one():
    """Granite 4 calls its dense MLP so."""
    block = Block(Mlp())
    block.shared_mlp = block.mlp
    del block.mlp
    layout = find_layout(Model(block))
    assert layout.projections == ("q_proj", "gate_proj", "down_proj")
    assert layout.kinds["gate_proj"] == "MLP"


def test_experts_that_are_products_of_their_own_say_so(tiny_model):
    """JetMoE has them in attention too."""
    layout = find_layout(tiny_model("jetmoe"))
    ends = ("input_linear", "output_linear")
    kinds = {f"mlp.experts.{end}": "routed experts" for end in ends}
    kinds |= {f"self_attention.experts.{end}": "attention" for end in ends}
    assert layout.kinds == kinds | {"kv_proj": "attention"}
    assert set(layout.projections) == set(layout.kinds)


class Hybrid(nn.Module):
    """One attribute, two classes, as in Kimi Linear."""

    def __init__(self, mixer):
        super().__init__()
        self.self_attn = mixer
        self.mlp = Mlp()


def mixer(name, *leaves, **parameters):
    made = type(name, (nn.Module,), {})()
    for leaf in leaves:
        made.add_module(leaf, nn.Linear(32, 32))
    for key, size in parameters.items():
        made.register_parameter(key, nn.Parameter(torch.ones(size)))
    return made


def test_modules_of_two_classes_are_told_apart():
    delta = mixer("HybridDeltaAttention", "q_proj", "k_proj", A_log=2)
    latent = mixer("HybridAttention", "q_proj", "kv_b_proj")
    layout = find_layout(Model(Hybrid(delta), Hybrid(latent)))
    of_delta, of_latent = layout.projections[:2], layout.projections[4:]
    assert of_delta == ("delta_attention.q_proj", "delta_attention.k_proj")
    assert of_latent == ("attention.q_proj", "attention.kv_b_proj")
    assert {layout.kinds[name] for name in of_delta} == {"linear attention"}
    assert {layout.kinds[name] for name in of_latent} == {"attention"}
    assert layout.layer_types == ("linear attention", "attention")
    assert layout.sites.match("delta_attention.*") == {
        "layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"
    }  # fmt: skip
    # Without a name in common nothing has to be told apart.
    apart = mixer("HybridAttention", "q_b_proj")
    assert find_layout(Model(Hybrid(delta), Hybrid(apart))).projections[:2] == ("q_proj", "k_proj")


@pytest.mark.parametrize(
    ("name", "parameters", "kind"),
    [
        ("HybridMixer", {"A_log": 2, "D": 2}, "state space"),
        ("HybridMixer", {"A_log": 2}, "linear attention"),
        ("HybridShortConv", {}, "convolution"),
        ("HybridRecurrentBlock", {}, "recurrence"),
        ("HybridLightningAttention", {}, "linear attention"),
        ("HybridSelfAttention", {"time_decay": 2}, "linear attention"),
        ("HybridMLP", {}, "MLP"),
        ("HybridThing", {}, None),
    ],
)
def test_kinds_by_structure(name, parameters, kind):
    block = nn.Module()
    block.mixer = mixer(name, "in_proj", **parameters)
    assert find_layout(Model(block)).kinds.get("in_proj") == kind


def test_types_of_blocks_are_those_of_the_configuration(tiny_model):
    types = find_layout(tiny_model("gemma3")).layer_types
    assert types == tuple(tiny_model("gemma3").config.layer_types)
    assert find_layout(tiny_model("llama")).layer_types == ()


def test_a_projection_as_wide_as_there_are_experts_is_no_router():
    layout = find_layout(Model(Block(Mlp()), num_experts=32))
    assert layout.excluded == ()
    assert layout.projections == ("q_proj", "gate_proj", "down_proj")


def test_numbers_that_tell_projections_apart_stay():
    """Only the items of a ModuleList are alike; those of a Sequential are not."""
    block = Block(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)))
    assert find_layout(Model(block)).projections == ("q_proj", "mlp.0", "mlp.2")


class FusedExperts(nn.Module):
    """Experts in one tensor, as transformers 5 has them."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.ones(5, 8, 32))


def test_a_router_is_told_by_the_experts_beside_it():
    """Whatever it is called and whatever the configuration says; several linears are no router."""
    block = Block(Mlp())
    block.experts, block.chooser = FusedExperts(), nn.Module()
    block.chooser.pick = nn.Linear(32, 5)
    block.attention = nn.ModuleDict({"k": nn.Linear(32, 5), "v": nn.Linear(32, 5)})
    assert excluded(find_layout(Model(block))) == {"layers.0.chooser.pick": "router"}
    block.chooser.pick = nn.Linear(32, 6)
    assert excluded(find_layout(Model(block))) == {}


# What stays in full precision.


def named(path):
    """A block with a linear of this path beside its others."""
    block = holder = Block(Mlp())
    *parents, leaf = path.split(".")
    for part in parents:
        holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    holder.add_module(leaf, nn.Linear(32, 7))
    return Model(block)


@pytest.mark.parametrize(
    "path",
    [
        "linear_attn.in_proj_a",
        "linear_attn.in_proj_b",
        "linear_attn.in_proj_ba",
        "linear_attn.a_proj",
        "self_attn.b_proj",
        "self_attn.f_a_proj",
        "mixer.dt_proj",
        "self_attn.indexer.weights_proj",
        "per_layer_input_gate",
        "altup.prediction_coefs",
        "mlstm_layer.igate_preact",
        "altup.modality_router",
        "feed_forward.shared_expert_gate",
    ],
)
def test_what_engines_leave_alone_stays_in_full_precision(path):
    model = named(path)
    assert list(excluded(find_layout(model))) == [f"layers.0.{path}"]
    assert excluded(find_layout(model, ["none"])) == {}


@pytest.mark.parametrize(
    "path", ["self_attn.kv_b_proj", "self_attn.q_b_proj", "mixer.in_proj", "mlp.gate_up_proj"]
)
def test_defaults_leave_no_more_than_they_mean(path):
    assert excluded(find_layout(named(path))) == {}


def test_every_default_says_why_and_where_from():
    for default in DEFAULTS:
        assert default.reason
        assert default.source


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("o_proj", 2),
        ("self_attn.*", 8),
        ("*.layers.1.*", 7),
        ("model.layers.1.mlp.up_proj", 1),
        (r"re:.*\.[qk]_proj$", 4),
        (r"re:model\.layers\.0\.", 7),
        ("lm_head", 0),
    ],
)
def test_a_pattern_leaves_linears_in_full_precision(pattern, count, tiny_model):
    model = tiny_model("llama")
    whole, layout = find_layout(model), find_layout(model, [pattern])
    assert len(excluded(layout)) == count
    assert set(excluded(layout)) | set(layout.linears) == set(whole.linears)
    assert not set(excluded(layout)) & set(layout.linears)
    assert set(excluded(layout).values()) <= {f"by {pattern}"}
    # What is left keeps its name; what was chosen is not what cannot be reached.
    assert layout.layers.items() <= whole.layers.items()
    assert layout.reachable == pytest.approx(whole.coverage)
    assert layout.missed == whole.missed


@pytest.mark.parametrize("pattern", ["re:proj$", "proj", "*.9.*", "Q_proj"])
def test_an_exclusion_that_matches_nothing_is_an_error(pattern, tiny_model):
    with pytest.raises(UnitError, match=r"exclude: .* matches none of the 15 linears") as error:
        find_layout(tiny_model("llama"), [pattern])
    assert "model.layers.0.self_attn.q_proj" in str(error.value)
    assert "q_proj" in str(error.value)


def test_excluding_everything_is_an_error(tiny_model):
    with pytest.raises(UnitError, match="leaves none of the 14 linears"):
        find_layout(tiny_model("llama"), ["*"])


def test_what_never_runs_cannot_be_reached(tiny_model):
    model = tiny_model("llama")
    whole = find_layout(model)
    layout = find_layout(model, silent=whole.sites.match("down_proj"))
    assert "down_proj" not in layout.projections
    assert layout.reachable == layout.coverage < whole.coverage
    with pytest.raises(ModelError, match=r"only 7\d.\d% of .*allow-partial"):
        require_coverage(layout)


# One weight in several blocks.


def test_a_weight_in_two_blocks_is_one_site_in_two_places():
    model = Model(Block(Mlp()), Block(Mlp()))
    apart = find_layout(model)
    model.layers[1].q_proj.weight = model.layers[0].q_proj.weight
    layout = find_layout(model)
    first, second = "layers.0.q_proj", "layers.1.q_proj"
    assert [site.name for site in layout.sites] == [s.name for s in apart.sites if s.name != second]
    assert [place.name for place in layout.sites.places[first]] == [first, second]
    assert layout.linears == (*(s.name for s in layout.sites), second)
    assert {s.name for s in layout.sites.blocks[1]} == {s.name for s in apart.sites.blocks[1]}
    # Counted once, and either name means it.
    total = sum(p.numel() for p in model.layers.parameters())
    quantized = sum(site.parameters for site in layout.sites)
    assert layout.coverage == pytest.approx(quantized / total)
    assert layout.sites.match("layers.1.q_proj") == layout.sites.match("layers.0.q_proj") == {first}
    left = find_layout(model, ["q_proj"])
    assert len(excluded(left)) == 2
    assert left.coverage + sum(e.share for e in left.excluded) == pytest.approx(layout.coverage)


def test_of_a_weight_in_several_places_the_first_that_runs_is_the_site():
    model = Model(Block(Mlp()), Block(Mlp()), Block(Mlp()))
    for layer in model.layers[1:]:
        layer.q_proj.weight = model.layers[0].q_proj.weight
    layout = find_layout(model, silent=["layers.0.q_proj"])
    assert [p.block for p in layout.sites.places["layers.1.q_proj"]] == [1, 2]
    assert layout.excluded == ()
    assert layout.coverage == find_layout(model).coverage


def test_a_block_that_comes_twice():
    shared = Block(Mlp())
    layout = find_layout(Model(shared, Block(Mlp()), shared))
    assert [len(places) for places in layout.sites.places.values()].count(2) == len(
        layout.sites.blocks[2]
    )


# What is refused.


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype):
    model = Model(Block(Mlp()), Block(Mlp()))
    weight = torch.zeros(32, 32).to(dtype)
    model.layers[1].mlp.down_proj.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ModelError, match="before quantization") as error:
        find_layout(model)
    assert f"layers.1.mlp.down_proj already holds {dtype}" in str(error.value)


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(4, 4)), nn.Module(), nn.ModuleList([nn.LayerNorm(4)])]
)
def test_a_model_without_blocks_is_refused(model):
    with pytest.raises(ModelError, match=r"no nn\.ModuleList with linears"):
        find_layout(model)
