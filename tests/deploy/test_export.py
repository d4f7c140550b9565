"""What is exported how: every linear once, what fuses alike, and what no engine serves refused."""

import json
import re

import pytest
import yaml
from click.testing import CliRunner

from fp4scope.cli.app import app
from fp4scope.deploy import dialects
from fp4scope.deploy.plan import plan_export
from fp4scope.errors import Fp4ScopeError, ModelError, StudyError
from fp4scope.models import declared, open_source
from fp4scope.treatments import Setting

from .chosen import setting_for, written_for

LINEAR = re.compile(r"model\.layers\.\d+\..*|lm_head")


def linears(source):
    """Every matrix of a checkpoint that is a linear's, and a head that is tied."""
    held = [key.removesuffix(".weight") for key, s in source.stored.items() if len(s.shape) == 2]
    return sorted({name for name in held if LINEAR.fullmatch(name)} | {"lm_head"})


@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_compressed_tensors_has_every_linear_once(exported, family):
    compressed = pytest.importorskip("compressed_tensors.quantization")
    source, export = exported(family)
    config = dialects.compressed_tensors(export)
    named = [name for group in config["config_groups"].values() for name in group["targets"]]
    assert sorted(named + config["ignore"]) == linears(source)
    assert config["format"] == "mixed-precision"
    found = compressed.QuantizationConfig.model_validate(config)  # its own parser
    assert found.config_groups.keys() == config["config_groups"].keys()
    assert {group["format"] for group in config["config_groups"].values()} == {
        "nvfp4-pack-quantized",
        "mxfp8-quantized",
    } | ({"mxfp4-pack-quantized", "float-quantized"} if family == "llama" else set())


def test_one_scheme_is_no_mixture(exported):
    _, export = exported("llama", lambda name: Setting.from_json({"weight": "nvfp4"}))
    config = dialects.compressed_tensors(export)
    (group,) = config["config_groups"].values()
    assert config["format"] == group["format"] == "nvfp4-pack-quantized"
    assert group["input_activations"] is None


def no_mxfp4(name):
    setting = setting_for(name)
    return None if setting and "mxfp4" in setting.format else setting


def test_modelopt_says_the_same_twice(exported):
    _, export = exported("qwen3-moe", no_mxfp4)
    inline, file = dialects.modelopt(export), dialects.modelopt_file(export)
    inner = file["quantization"]
    assert inner["quantized_layers"] == inline["quantized_layers"]
    assert inner["exclude_modules"] == inline["ignore"]
    assert {layer["quant_algo"] for layer in inline["quantized_layers"].values()} == {
        "NVFP4",
        "MXFP8",
    }
    names = {p.name for p in declared._read(inline).packings}
    assert names == {p.name for p in declared._read(file).packings} == {"NVFP4", "MXFP8"}


def test_what_modelopt_leaves_out_takes_nothing_with_it(exported):
    """A router `mlp.gate` is part of the name of `mlp.gate_proj`."""
    _, export = exported("qwen2-moe", lambda name: Setting.from_json("nvfp4"))
    config = dialects.modelopt(export)
    assert "model.layers.0.mlp.gate" in export.plain
    assert not [
        (ignored, layer)
        for ignored in config["ignore"]
        for layer in config["quantized_layers"]
        if ignored in layer
    ]


def test_llm_compressor_gets_exact_targets(exported):
    _, export = exported("llama")
    (stage,) = dialects.llm_compressor(export).values()
    modifier = stage["default_modifiers"]["QuantizationModifier"]
    targets = [t for group in modifier["config_groups"].values() for t in group["targets"]]
    assert sorted(targets) == sorted(each.module for each in export.packed)


def test_vllm_online_says_what_it_cannot(exported):
    _, export = exported("llama", lambda n: Setting.from_json("mxfp8") if ".mlp." in n else None)
    config = dialects.vllm_online(export)
    assert set(config["targets"].values()) == {"mxfp8"}
    assert len(config["targets"]) + len(config["ignore"]) == 15
    _, mixed = exported("llama")
    with pytest.raises(
        StudyError, match=r"per-layer NVFP4 W4A4.*, which .*0\.self_attn\.q_proj.* more have"
    ):
        dialects.vllm_online(mixed)
    with pytest.raises(StudyError, match="ModelOpt has no per-layer MXFP4"):
        dialects.modelopt(mixed)


def test_vllm_online_has_experts_as_one(exported):
    _, export = exported(
        "qwen3-moe", lambda name: Setting.from_json("nvfp4") if ".experts." in name else None
    )
    targets = dialects.vllm_online(export)["targets"]
    assert targets == {f"model.layers.{b}.mlp.experts": "nvfp4_per_token" for b in range(2)}


def only(leaf, setting):
    return lambda name: Setting.from_json(setting) if name.endswith(leaf) else None


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (only("q_proj", "nvfp4"), "engines load them as one"),
        (only("o_proj", {"input": "nvfp4"}), "a weight in full precision, which no engine"),
        (only("o_proj", "mxfp6:e2m3"), "which no engine loads"),
        (only("o_proj", "nvfp4+hadamard32"), "for measuring alone"),
        (only("o_proj", {"weight": "nvfp4", "input": "mxfp8"}), "export knows both alike"),
        (only("none", "nvfp4"), "quantizes no linear"),
    ],
)
def test_what_no_engine_serves(folder_of, choose, said):
    source = open_source(str(folder_of("llama")))
    with pytest.raises(StudyError, match=said):
        plan_export(written_for(source, choose), source)


def test_inputs_without_a_scale(folder_of):
    source = open_source(str(folder_of("llama")))
    written = written_for(source, only("o_proj", "nvfp4"), input_amax={})
    with pytest.raises(StudyError, match=r"no input_amax of model\.layers\.0\.self_attn\.o_proj"):
        plan_export(written, source)


def test_widths_that_blocks_do_not_divide(folder_of):
    source = open_source(str(folder_of("mistral")))  # 176 is no multiple of 32
    with pytest.raises(StudyError, match="176 inputs, which blocks of 32 do not divide"):
        plan_export(written_for(source, only("down_proj", "mxfp4:even")), source)


@pytest.mark.parametrize("family", ["gpt-oss", "gpt2", "llama4"])
def test_weights_stored_in_ways_that_are_not_known(folder_of, family):
    source = open_source(str(folder_of(family)))
    choose = only("c_fc" if family == "gpt2" else "experts.down_proj", {"weight": "nvfp4"})
    if family != "gpt2":
        everything = {"weight": "nvfp4"}
        choose = lambda name: Setting.from_json(everything) if ".experts." in name else None  # noqa: E731
    with pytest.raises(ModelError, match="in a way that export does not know"):
        plan_export(written_for(source, choose), source)


def test_a_head_that_is_tied(folder_of):
    source = open_source(str(folder_of("smollm2")), head=True)
    with pytest.raises(StudyError, match="shares its weight with the embeddings"):
        plan_export(written_for(source, only("lm_head", {"weight": "nvfp4"})), source)


def test_notes_say_what_is_served_otherwise(folder_of):
    source = open_source(str(folder_of("llama")))
    written = written_for(source, lambda name: Setting.from_json("nvfp4:4over6"), scales="own")
    notes = plan_export(written, source).notes
    assert notes[0] == "inputs measured in nvfp4:4over6 are served in nvfp4 (14 sites)"
    assert "one for each linear" in notes[1]
    written = written_for(source, lambda name: Setting.from_json("nvfp4"))
    assert plan_export(written, source).notes == ()


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def recipe(folder_of, tmp_path):
    source = open_source(str(folder_of("llama")))
    written_for(source, no_mxfp4).write(tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml", str(folder_of("llama"))


def run(*args):
    return CliRunner().invoke(app, ["export", *map(str, args)])


def test_a_configuration_is_shown_or_written(recipe, tmp_path):
    path, model = recipe
    shown = run(path, "--to", "compressed-tensors", "--model", model)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["quantization_config"]["quant_method"] == "compressed-tensors"
    run(path, "--to", "modelopt", "--model", model, "-o", tmp_path / "config.json")
    file = json.loads((tmp_path / "hf_quant_config.json").read_text())
    inline = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert file["quantization"]["quantized_layers"] == inline["quantized_layers"]
    text = run(path, "--to", "llm-compressor", "--model", model).stdout
    assert "QuantizationModifier" in yaml.safe_load(text)["default_stage"]["default_modifiers"]


def test_a_checkpoint_is_written(recipe, tmp_path):
    path, model = recipe
    out = run(path, "--to", "modelopt", "--model", model, "--checkpoint", tmp_path / "packed")
    assert out.exit_code == 0, out.output
    assert "NVFP4 W4A4: 8 linears" in out.stderr
    assert (tmp_path / "packed/hf_quant_config.json").exists()
    assert (tmp_path / "packed").stat().st_mode & 0o755 == 0o755


def test_commands_that_cannot_be(recipe, folder_of, tmp_path):
    path, model = recipe
    for said, *args in [
        ("reads no packed checkpoint", path, "--to", "vllm-online", "--checkpoint", tmp_path / "x"),
        ("no per-layer NVFP4", path, "--to", "vllm-online"),
        ("exists; choose", path, "--to", "modelopt", "--checkpoint", tmp_path),
        ("cannot read the recipe", tmp_path / "no.yaml", "--to", "modelopt"),
    ]:
        found = run(*args, "--model", model)
        assert isinstance(found.exception, Fp4ScopeError), found.output
        assert said in str(found.exception)
    other = run(path, "--to", "modelopt", "--model", folder_of("gpt2"))
    assert "the recipe is of llama, and 14 sites" in str(other.exception)
