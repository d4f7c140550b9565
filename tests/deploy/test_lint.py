"""Each check finds the one thing that is wrong, and nothing where nothing is."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fp4scope.cli.lint import print_lint
from fp4scope.deploy.checkpoint import write_checkpoint
from fp4scope.deploy.configs import read_config
from fp4scope.deploy.linears import linears_of, model_linears, sites_of, stored_tensors
from fp4scope.deploy.lint import coverage, lint
from fp4scope.deploy.lint_scales import lint_scales
from fp4scope.errors import Fp4ScopeError, StudyError

_4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
_8 = {"num_bits": 8, "type": "float"}
QKV = [f"{n}_proj" for n in "qkv"]
DENSE = [*(f"self_attn.{n}" for n in [*QKV, "o_proj"]), "mlp.gate_proj", "mlp.up_proj"]
NVFP4 = {"format": "nvfp4-pack-quantized", "weights": _4, "input_activations": _4}
FP8 = {
    "format": "float-quantized",
    "weights": _8 | {"strategy": "channel"},
    "input_activations": _8 | {"strategy": "token", "dynamic": True},
}
_MX = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
MXFP4 = {"format": "mxfp4-pack-quantized", "weights": _MX, "input_activations": _MX}


def linears(*more, blocks=2, cols=64, leaves=DENSE):
    names = [f"model.layers.{b}.{leaf}" for b in range(blocks) for leaf in leaves]
    return sites_of({name: (32, cols) for name in (*names, *more, "lm_head")})


def compressed(*groups, ignore=("lm_head",), **more):
    own = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    named = {f"group_{i}": scheme | {"targets": list(t)} for i, (scheme, t) in enumerate(groups)}
    return read_config({"quantization_config": own | {"config_groups": named,
                        "ignore": list(ignore)} | more})  # fmt: skip


def mixed(layers, **more):
    named = {name: {"quant_algo": algo} for name, algo in layers.items()}
    own = {"quant_algo": "MIXED_PRECISION", "quantized_layers": named, "quant_method": "modelopt"}
    return read_config({"quantization_config": own | more})


def exact(sites, *endings):
    return [s.name for s in sites if s.name.endswith(endings)]


def checks(found):
    return [(finding.check, finding.error) for finding in found]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm", "any"])
def test_a_good_configuration_passes_clean(engine):
    sites = linears()
    attention = exact(sites, *QKV, "o_proj")
    config = compressed((NVFP4, exact(sites, "gate_proj", "up_proj")), (FP8, attention))
    assert lint(config, sites, engine) == []
    assert {row[1] for row in coverage(config, sites, engine)} == {"nvfp4", "fp8", "full precision"}


def test_patterns_that_match_nothing():
    sites = linears()
    config = compressed((NVFP4, [s.name for s in sites[:-1]] + ["model.layers.9.mlp.up_proj"]))
    (found,) = lint(config, sites, "vllm")
    assert (found.check, found.error) == ("matches-nothing", True)
    assert "did you mean" in found.advice


def test_targets_that_engines_resolve_differently():
    sites = linears()
    config = compressed((NVFP4, [r"re:model\..*$"]), (FP8, exact(sites, *QKV, "o_proj")))
    (found,) = [f for f in lint(config, sites) if f.check == "overlap"]
    assert found.error
    assert len(found.names) == 8


def test_linears_that_no_rule_names():
    sites = linears()
    config = compressed((NVFP4, [s.name for s in sites if "o_proj" not in s.name][:-1]))
    assert checks(lint(config, sites, "vllm")) == [("unnamed", False)]
    assert checks(lint(config, sites, "sglang")) == [("unnamed", True)]


def test_groups_that_are_split():
    sites = linears()
    config = compressed((NVFP4, exact(sites, "gate_proj", "up_proj", "q_proj", "o_proj")),
                        (FP8, exact(sites, "k_proj", "v_proj")))  # fmt: skip
    (found,) = lint(config, sites)
    assert checks([found]) == [("split-group", True)]
    assert len(found.names) == 6


def test_widths_that_are_no_whole_blocks():
    sites = linears(cols=40)
    config = compressed((NVFP4, [r"re:model\..*$"]))
    assert checks(lint(config, sites)) == [("indivisible", True)]


def test_formats_that_an_engine_does_not_load():
    sites = linears()
    config = compressed((MXFP4, [r"re:model\..*$"]))
    assert checks(lint(config, sites, "vllm")) == []
    assert checks(lint(config, sites, "sglang")) == [("not-loaded", True)]
    assert checks(lint(config, sites)) == [("not-loaded", False)] * 2


def test_mxfp4_of_modelopt_is_silently_unquantized_in_vllm():
    sites = linears()
    config = mixed({s.name: "mxfp4" for s in sites[:-1]})
    (found,) = lint(config, sites, "vllm")
    assert found.error
    assert "unquantized, without a word" in found.text


def test_classes_are_refused_by_tensorrt():
    sites = linears()
    config = compressed((NVFP4, ["Linear"]))
    assert checks(lint(config, sites, "vllm")) == []
    assert checks(lint(config, sites, "trtllm")) == [("class-target", True)]


def test_exceptions_that_are_parts_of_names():
    own = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "layers.1"]}
    config = read_config({"quantization_config": own})
    (found,) = lint(config, linears(blocks=12), "vllm")
    assert checks([found]) == [("part-of-name", True)]
    assert {name.split(".")[2] for name in found.names} == {"10", "11"}
    assert lint(config, linears(), "vllm") == []


def test_expressions_without_an_end():
    config = compressed((NVFP4, [r"re:model\..*_proj"]))
    assert checks(lint(config, linears(), "vllm")) == [("unanchored", False)]


def test_heads_and_routers():
    sites = linears("model.layers.0.mlp.gate")
    config = compressed((NVFP4, [r"re:.*$"]), ignore=())
    found = lint(config, sites, "vllm")
    assert checks(found) == [("head-or-router", True), ("head-or-router", False)]


def test_keys_that_are_refused():
    config = compressed((NVFP4 | {"weights": _4 | {"bits": 4}}, [r"re:model\..*$"]))
    assert checks(lint(config, linears(), "vllm")) == [("config", True)]


@pytest.fixture
def packed(exported, tmp_path):
    """A checkpoint of our own, and how to change its tensors."""
    source, export = exported("llama")
    folder = tmp_path / "packed"
    write_checkpoint(export, source, folder, "compressed-tensors")

    def change(edit):
        import torch
        from safetensors.torch import load_file
        from safetensors.torch import save_file as save

        (path,) = folder.glob("*.safetensors")
        tensors = load_file(path)
        edit(tensors, torch)
        save(tensors, path)

    return folder, change


def scales(folder):
    tensors = stored_tensors(folder)
    config = read_config(json.loads((folder / "config.json").read_text()))
    return checks(lint_scales(config, linears_of(tensors), tensors))


def test_our_own_checkpoint_passes_clean(packed, capsys):
    folder, _ = packed
    assert scales(folder) == []
    assert not print_lint(str(folder), None, "vllm", None)
    assert "0 errors" in capsys.readouterr().out


def test_scales_that_are_unequal_missing_or_inverted(packed):
    folder, change = packed
    role = "weight_global_scale"
    key = next(n.name for n in linears_of(stored_tensors(folder)) if
               f"{n.name}.{role}" in stored_tensors(folder) and n.name.endswith(
                   ("q_proj", "gate_proj")))  # fmt: skip
    change(lambda held, torch: held.update({f"{key}.{role}": held[f"{key}.{role}"] * 2}))
    assert scales(folder) == [("unequal-scale", True)]
    change(lambda held, torch: held.pop(f"{key}.{role}"))
    assert scales(folder) == [("missing-scale", True)]
    change(lambda held, torch: held.update({f"{key}.{role}": torch.tensor([1e-4])}))
    assert ("inverted-scale", True) in scales(folder)


def test_linears_of_a_configuration_are_those_of_its_weights(folder_of, tmp_path):
    for family in ("llama", "qwen3-moe"):
        folder = folder_of(family)
        (tmp_path / family).mkdir()
        (tmp_path / family / "config.json").write_bytes((folder / "config.json").read_bytes())
        stored, made = model_linears(str(folder)), model_linears(str(tmp_path / family))
        routers = {s.name for s in stored} - {s.name for s in made}
        assert all(name.endswith("mlp.gate") for name in routers)
        sizes = [{s.name: (s.rows, s.cols) for s in of if s.name not in routers}
                 for of in (stored, made)]  # fmt: skip
        assert sizes[0] == sizes[1]


def test_what_cannot_be_linted(tmp_path):
    with pytest.raises(StudyError, match="vllm"):
        lint(compressed(), linears(), "vlm")
    with pytest.raises(Fp4ScopeError, match="nothing of a quantization"):
        print_lint(str(tmp_path), None, "any", None)
    save_file({"a.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(Fp4ScopeError, match="safetensors"):
        stored_tensors(tmp_path)
