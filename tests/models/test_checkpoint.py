"""What a checkpoint declares, stores and leaves over: refused, dequantized or said."""

import json
import shutil
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp4scope.errors import ModelError
from fp4scope.models import load_model
from fp4scope.models.checkpoint import Stored, main_dtype, require_no_scales

MLP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def saved(tiny_model, tiny_tokenizer, tmp_path_factory):
    """A folder with a tiny Llama and its tokenizer. Read only."""
    folder = tmp_path_factory.mktemp("saved") / "llama"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(saved, tmp_path / "model")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors_of(folder):
    return {n: t.clone() for n, t in load_file(folder / "model.safetensors").items()}


def write(folder, tensors):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder, **options):
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), **{"device": "cpu"} | options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Code that a configuration asks for.


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("kernel", ["kernels-community/flash-attn2", "someone/own@main:attend"])
def test_kernels_of_a_hub_need_permission(key, kernel, folder):
    edit_config(folder, **{key: kernel})
    message = refusal(folder)
    assert kernel in message
    assert message.endswith("if you trust it, pass --trust-remote-code")


def test_experts_of_a_hub_need_permission(folder):
    edit_config(folder, experts_implementation="someone/own")
    assert "--trust-remote-code" in refusal(folder)


def test_with_permission_transformers_is_asked_for_the_kernel(folder):
    """It then says what it lacks; here, the package that would fetch it."""
    edit_config(folder, attn_implementation="kernels-community/flash-attn2")
    assert "kernels" in refusal(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    ("wanted", "used"),
    [("flash_attention_2", "sdpa"), ("flash_attention_3", "sdpa"), ("eager", "eager")],
)
def test_attention_that_may_come_from_a_hub_is_left_to_transformers(wanted, used, folder):
    edit_config(folder, attn_implementation=wanted)
    assert load_model(str(folder), device="cpu").config._attn_implementation == used


# Quantizations that are not declared.


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
@pytest.mark.parametrize("scale", [True, False])
def test_codes_without_a_declaration(dtype, scale, folder):
    tensors = tensors_of(folder)
    tensors[f"{MLP}.weight"] = tensors[f"{MLP}.weight"].mul(20).to(dtype)
    if scale:
        tensors[f"{MLP}.weight_scale"] = torch.ones(160)
    write(folder, tensors)
    message = refusal(folder)
    assert f"1 of its weights are codes, {MLP}.weight (" in message
    assert "give the original checkpoint" in message


@pytest.mark.parametrize(
    "leaf",
    [
        "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale", "input_scale",
        "weight_zero_point", "scales", "qzeros", "g_idx", "qweight", "weight_packed", "SCB",
        "weight.absmax",
    ],
)  # fmt: skip
def test_scales_that_nobody_reads(leaf, folder):
    tensors = tensors_of(folder)
    tensors[f"{MLP}.{leaf}"] = torch.ones(160, 4)
    write(folder, tensors)
    message = refusal(folder)
    assert (
        f"1 tensors that look like scales or packed weights and that nothing reads, {MLP}.{leaf}"
        in message
    )


def test_scales_of_fused_experts():
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    with pytest.raises(ModelError, match="gate_up_proj_scale first"):
        require_no_scales("m", [f"{experts}_scale"], {experts})


@pytest.mark.parametrize(
    "name",
    [
        "logit_scale",
        "vision.layer_scale",
        "vision.norm.scale",
        "model.layers.0.attn.in_proj_weight",
    ],
)
def test_other_tensors_are_counted_and_named(name, folder):
    write(folder, tensors_of(folder) | {name: torch.ones(4)})
    (warning,) = load_model(str(folder), device="cpu").warnings
    assert warning.startswith("1 tensors of the checkpoint are not part of the model")
    assert name in warning


def test_fewer_blocks_than_the_checkpoint_has(folder):
    edit_config(folder, num_hidden_layers=1)
    (warning,) = load_model(str(folder), device="cpu").warnings
    assert warning.endswith("1 whole blocks are among them, 1 first: config.json has only 1")
    assert warning.count("model.layers.1.") == 3  # not all nine


@pytest.mark.skipif(find_spec("peft") is not None, reason="with peft transformers loads adapters")
def test_an_adapter_beside_the_weights(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (warning,) = load_model(str(folder), device="cpu").warnings
    assert warning.startswith("the adapter beside the weights (adapter_config.json) is not applied")


def test_main_dtype():
    many, few = (8, 8), (2,)
    assert main_dtype({"a": Stored("BF16", many), "b": Stored("F32", few)}) == torch.bfloat16
    assert main_dtype({"a": Stored("F8_E4M3", many), "b": Stored("F32", few)}) == torch.float32
    assert main_dtype({}) is None


def test_converting_a_gguf_file_asks_no_hub_for_kernels(monkeypatch):
    """As where the package `kernels` is installed."""
    pytest.importorskip("transformers.integrations.gguf")
    from transformers.integrations.gguf import kernels

    from fp4scope.models.gguf import _without_kernels

    monkeypatch.setattr(kernels, "is_kernels_available", lambda: True)
    monkeypatch.setitem(sys.modules, "kernels", ModuleType("kernels"))  # nothing can be imported
    with pytest.raises(ImportError):
        kernels.kernelize_ggml_layers(None)
    with _without_kernels() as options:
        kernels.kernelize_ggml_layers(None)
        assert options["quantization_config"].dequantize
