"""`fp4scope lint` for machines: its exit code, and JSON."""

import json

import pytest

ARGS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
GROUP = {"format": "nvfp4-pack-quantized", "weights": ARGS, "input_activations": ARGS}


@pytest.mark.parametrize(
    ("targets", "code"),
    [(["Linear"], 0), (["model.layers.0.mlp.gate_proj"], 1), ("config", 2)],
)
def test_exit_codes(fp4scope, model_folder, tmp_path, targets, code):
    """No error; a fused group that is split; no configuration."""
    own = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    own |= {"config_groups": {"group_0": GROUP | {"targets": targets}}, "ignore": ["lm_head"]}
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"model_type": "llama"} if code == 2 else {"compression_config": own})
    )
    found, _, complaint = fp4scope("lint", path, model_folder, "--engine", "vllm", "--json", "out")
    assert found == code
    assert (tmp_path / "out").exists() == (code < 2)
    assert ("nothing of a quantization" in " ".join(complaint.split())) == (code == 2)
