"""A mixture of experts from a folder to its tables, and the scales of its experts' inputs."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

import fp4scope as package
from fp4scope.conductor.calibrate import amaxes
from fp4scope.errors import UnitError
from fp4scope.models import find_layout
from fp4scope.operands import InputStatistics
from fp4scope.recipes import Site, Sites
from fp4scope.study import Direction
from fp4scope.treatments import FEWEST_TOKENS

PROJECTIONS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "experts.gate_up_proj", "experts.down_proj",
    "shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj",
)  # fmt: skip


@pytest.fixture(scope="module")
def mixture_folder(tmp_path_factory, tiny_tokenizer):
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
        shared_expert_intermediate_size=32, num_experts=8, num_experts_per_tok=2, vocab_size=96,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.25,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny-mixture"
    Qwen2MoeForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_mixture_of_experts_to_its_tables(fp4scope, mixture_folder, text_file, tmp_path):
    code, out, err = fp4scope(
        "run", mixture_folder, "--text", text_file, "--seq-len", 32, "--windows", 4,
        "--calibration-windows", 4, "--calibration-seq-len", 32, "--all-quantized", "",
        "--formats", "nvfp4",
        "--sweep", "projections", "--pattern", "experts.*", "--method", "exact,gradient",
        "-o", "out",
    )  # fmt: skip
    assert code == 0
    assert "experts.down_proj" in out
    assert "in full precision: gate (2, router), shared_expert_gate (2, router)" in err
    data = json.loads((tmp_path / "out/results.json").read_text())
    seen = {(a["block"], a["projection"]): a.get("tokens") for a in data["activations"]}
    assert {k for k, v in seen.items() if v} == {
        (b, f"experts.{p}") for b in (0, 1) for p in ("gate_up_proj", "down_proj")
    }
    first = seen[0, "experts.down_proj"]
    assert first == seen[0, "experts.gate_up_proj"]
    assert (len(first), sum(first)) == (8, 4 * 32 * 2)
    few = [str(expert) for expert, tokens in enumerate(first) if tokens < FEWEST_TOKENS]
    row = package.load(tmp_path / "out").experts_seen[0]
    assert (row["experts"], row["few"], row["below"]) == ("experts", len(few), " ".join(few))
    assert few
    assert f"fewer than {FEWEST_TOKENS} tokens of the calibration text" in err
    assert f"0.experts: {few[0]}" in err
    assert (tmp_path / "out/experts_seen.csv").exists()
    assert data["model"]["projections"] == list(PROJECTIONS)
    assert data["model"]["coverage"] > 0.95
    stacked = {row[2]: row[3:] for row in data["sites"] if len(row) == 6}
    assert stacked == {"experts.gate_up_proj": [64, 64, 8], "experts.down_proj": [64, 32, 8]}
    assert package.load(tmp_path / "out").results.sites[4].experts == 8
    rows = data["summary"]["projections"]
    assert {row["projection"] for row in rows} == set(PROJECTIONS)
    assert all(row["delta_nll"] for row in rows if row["projection"].startswith("experts"))


def test_routing_stands_beside_its_ceiling(mixture_folder, text_file, tmp_path):
    d = package.diagnose(
        str(mixture_folder), text=str(text_file), seq_len=32, windows=2, formats="nvfp4",
        sweep="blocks:only", calibration_windows=2, calibration_seq_len=32, all_quantized="",
        output_dir=tmp_path / "out",
    )  # fmt: skip
    ceiling, *others = d.routing.rows
    assert (ceiling["format"], ceiling["level"]) == ("full precision", "model")
    assert [row["level"] for row in others] == ["model", "blocks", "blocks", *["routing"] * 3]
    assert [row["unit"] for row in others[3:]] == ["all, replayed", "experts", "experts, replayed"]
    for row in others:
        assert 0 < row["same"] <= row["kept"] < ceiling["kept"] + 1e-9 <= 1 + 2e-9
        assert row["load"] <= 1 - row["kept"] + 1e-9
        assert row["kl"] > ceiling["kl"] >= 0
    # The last block's own quantization comes behind its router.
    assert others[2]["kept"] > others[0]["kept"]
    report = (tmp_path / "out/report.md").read_text()
    loaded = package.load(tmp_path / "out")
    for table, title in (
        ("routing", "Routing, against the full-precision model"),
        ("routers", "Routing by block"),
        ("replay", "How much of the damage is routing"),
        ("experts_seen", "Tokens that experts saw at calibration"),
    ):
        assert title in report
        assert (tmp_path / f"out/{table}.csv").exists()
        assert getattr(loaded, table).rows == getattr(d, table).rows
    # Every whole model at every router; their mean is the other table's.
    assert [row["block"] for row in d.routers.where(format="nvfp4", unit="")] == [0, 1]
    for row in d.routing:
        if row["level"] in ("model", "routing"):
            at = d.routers.where(format=row["format"], unit=row["unit"] or "")
            for kind in ("kept", "kl"):
                assert row[kind] == pytest.approx(sum(at[kind]) / 2, rel=1e-5, abs=1e-12)


def test_the_share_of_routing_is_what_replay_saves(mixture_folder, text_file):
    on_the_way = []

    def listen(event):
        if event.phase == "measuring" and event.windows:
            on_the_way.append(event.diagnosis)

    d = package.diagnose(
        str(mixture_folder), text=str(text_file), seq_len=32, windows=9, formats="mxfp4",
        sweep="", calibration_windows=2, calibration_seq_len=32, all_quantized="", progress=listen,
    )  # fmt: skip
    (whole,) = d.all_quantized.where(format="mxfp4:floor")
    every, experts = d.replay
    assert (every["sites"], experts["sites"]) == ("all", "experts")
    assert every["own_nll"] == pytest.approx(whole["delta_nll"])
    assert every["own_kl"] == pytest.approx(whole["kl"])
    ledger = d.results.ledger
    for row in (every, experts):
        assert row["windows"] == 9
        for measure in ("nll", "kl"):
            parts = [row[f"{part}_{measure}"] for part in ("own", "values", "routing")]
            assert parts[0] == pytest.approx(parts[1] + parts[2])
            low, high = (row[f"routing_{measure}_{end}"] for end in ("low", "high"))
            assert low < parts[2] < high
            assert 0 < row[f"p_{measure}"] <= 1
    (forced,) = [recipe for recipe in ledger if recipe.replay and recipe.base]
    own, values = (ledger[one] for one in (replace(forced, replay=False), forced))
    unmoved = [kl for kl, r in zip(own.values["kl"], own.replicas, strict=True) if r == 0]
    differences = [(a - b) / 31 for a, b in zip(unmoved, values.values["kl"], strict=True)]
    assert every["routing_kl"] == pytest.approx(sum(differences) / 9)
    # What is known on the way has all of it.
    for table in ("routing", "routers", "replay"):
        assert getattr(on_the_way[-1], table).rows == getattr(d, table).rows != []


def test_experts_may_have_scales_of_their_own(mixture_folder, text_file):
    def nll(scale):
        d = package.diagnose(
            str(mixture_folder), text=str(text_file), seq_len=32, windows=2, formats="nvfp4,mxfp4",
            sweep="", calibration_windows=24, calibration_seq_len=32, all_quantized="",
            activation_scale=scale,
        )  # fmt: skip
        assert d.results.protocol["activation_scale"] == scale
        return {row["format"]: row["nll"] for row in d.all_quantized.rows}

    own, shared = nll("by-expert"), nll("calibrated")
    assert own.keys() == shared.keys()
    assert [fmt for fmt in own if own[fmt] != shared[fmt]] == ["nvfp4"]


def test_experts_that_saw_little_take_the_largest_of_their_layer(tiny_model):
    layout = find_layout(tiny_model("qwen3-moe"))
    enough, few = FEWEST_TOKENS, FEWEST_TOKENS - 1
    seen = {name: InputStatistics(max=5.0, experts=((5.0, enough),)) for name in layout.linears}
    down = "model.layers.1.mlp.experts.down_proj"
    each = ((1.0, enough), (2.0, few), (3.0, enough), (0.0, 0))
    seen[down] = InputStatistics(max=3.0, experts=each)
    layer, by_expert = amaxes(layout, seen)
    assert layer[down] == 3.0
    assert by_expert == {down: [1.0, 3.0, 3.0, 3.0]}


def test_experts_that_are_linears_share_an_amax_as_well(tiny_model):
    sites = [
        Site(name=f"layers.0.experts.{e}.up", block=0, projection="experts.*.up", rows=32, cols=32)
        for e in range(2)
    ]
    layout = replace(find_layout(tiny_model("llama")), sites=Sites(sites, 1))
    one, other = layout.linears
    seen = {
        one: InputStatistics(max=4.0, experts=((4.0, FEWEST_TOKENS),)),
        other: InputStatistics(experts=((0.0, 0),)),
    }
    assert amaxes(layout, seen) == ({one: 4.0, other: 4.0}, {one: [4.0], other: [4.0]})


def test_single_experts_are_units(fp4scope, mixture_folder, text_file, tmp_path):
    """One left out, one pattern of two, and each for itself."""
    code, out, err = fp4scope(
        "run", mixture_folder, "--text", text_file, "--seq-len", 32, "--windows", 3,
        "--calibration-windows", 2, "--calibration-seq-len", 32, "--all-quantized", "",
        "--formats", "nvfp4",
        "--sweep", "experts:only,projections:only", "--pattern", "experts.[12].*",
        "--exclude", "*.1.mlp.experts.0.*", "--method", "exact,gradient", "-o", "out",
    )  # fmt: skip
    assert code == 0, err
    assert "experts.gate_up_proj (1, by *.1.mlp.experts.0.*)" in err
    assert "Experts, only, nvfp4, W4A4: the 10 largest of 15" in out
    results = package.load(tmp_path / "out").results
    single = [site for site in results.sites if site.expert is not None]
    assert len(single) == 2 * (8 + 7)
    rows = json.loads((tmp_path / "out/results.json").read_text())["summary"]["experts"]
    places = {(row["block"], row["expert"]) for row in rows}
    expected = {(b, f"mlp.experts.{e}") for b in range(2) for e in range(8)} - {
        (1, "mlp.experts.0")
    }
    assert places == expected
    assert (tmp_path / "out/experts.csv").exists()
    assert "## Experts" in (tmp_path / "out/report.md").read_text()
    assert "<h3>Experts</h3>" in (tmp_path / "out/report.html").read_text()
    # An estimate of several experts is the sum of theirs.
    estimates = {}
    for contrast in results.contrasts:
        if contrast.unit is not None and contrast.family.direction is Direction.ONLY:
            nats = results.ledger[contrast.own].values["gradient"]
            estimates[contrast.unit.level, contrast.unit.name, contrast.unit.block] = sum(nats)
    pattern = estimates["patterns", "experts.[12].*", None]
    alone = [estimates["experts", f"mlp.experts.{e}", b] for b in range(2) for e in (1, 2)]
    assert pattern == pytest.approx(sum(alone), rel=1e-4)
    both = [v for (level, *_), v in estimates.items() if level == "experts"]
    together = [
        v for (_, name, _), v in estimates.items() if name.startswith("experts.") and "_" in name
    ]
    assert sum(both) == pytest.approx(sum(together), rel=1e-3)


def test_a_model_without_experts_has_none_to_sweep(model_folder, options):
    with pytest.raises(UnitError, match="the model has no routed experts"):
        package.diagnose(str(model_folder), **options, sweep="experts")
