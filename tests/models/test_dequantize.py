"""Checkpoints that are quantized already: every value as its codes and scales say, or a refusal."""

import json
import shutil
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp4scope.errors import ModelError
from fp4scope.formats import FORMATS
from fp4scope.formats.oracle import block_scale, fake_quantize_block
from fp4scope.models import load_model
from fp4scope.models.declared import MXFP4 as MXFP4_PACKING
from fp4scope.models.declared import NVFP4 as NVFP4_PACKING

MLP = "model.layers.0.mlp.up_proj"
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


@pytest.fixture(scope="module")
def saved(tiny_model, tiny_tokenizer, tmp_path_factory):
    """`saved(family)`: a folder with a tiny model and its tokenizer. Read only."""
    folders = {}

    def folder(family="llama"):
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp("saved") / family
            tiny_model(family).save_pretrained(folders[family])
            tiny_tokenizer().save_pretrained(folders[family])
        return folders[family]

    return folder


def tensors_of(folder):
    return {n: t.clone() for n, t in load_file(folder / "model.safetensors").items()}


def copied(folder, target, tensors, **changes):
    """A copy with other tensors and another configuration."""
    shutil.copytree(folder, target)
    save_file({n: t.contiguous() for n, t in tensors.items()}, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def is_quantized(name):
    """All linears but the first block's: it stays as it is."""
    return "_proj.weight" in name and ".layers.0.self_attn" not in name


# Packers. Each gives what a checkpoint stores for a weight, by endings of its name, and its values.


def cut(weight, rows, cols):
    """The corners of blocks."""
    for top in range(0, weight.shape[0], rows):
        for left in range(0, weight.shape[1], cols):
            yield top // rows, left // cols, slice(top, top + rows), slice(left, left + cols)


def fp8(weight, rows, cols, ending="_scale_inv", scales=torch.float32):
    grid = (-(-weight.shape[0] // rows), -(-weight.shape[1] // cols))
    codes, scale = torch.empty_like(weight).to(torch.float8_e4m3fn), torch.empty(grid)
    values = torch.empty_like(weight)
    for i, j, *block in cut(weight, rows, cols):
        scale[i, j] = (weight[tuple(block)].abs().amax() / 448).to(scales)
        codes[tuple(block)] = (weight[tuple(block)] / scale[i, j]).to(torch.float8_e4m3fn)
        values[tuple(block)] = codes[tuple(block)].float() * scale[i, j]
    return {"": codes, ending: scale.to(scales)}, values


def nearest(weight):
    """Codes of E2M1 values near these, and the values."""
    codes = (weight.abs()[..., None] - torch.tensor(E2M1)).abs().argmin(-1)
    values = torch.tensor(E2M1)[codes].copysign(weight)
    return codes.to(torch.uint8) + 8 * torch.signbit(weight).to(torch.uint8), values


def nibbles(codes):
    """Packed in pairs, the even one in the low half."""
    return codes[..., ::2] | codes[..., 1::2] << 4


def nvfp4(weight, codes="", whole="_scale_2", divides=False):
    """As ModelOpt or compressed-tensors stores it."""
    stored = 2688 / weight.abs().amax() if divides else weight.abs().amax() / 2688
    blocks = weight.view(weight.shape[0], -1, 16)
    scale = blocks.abs().amax(-1) / 6
    scale = (scale * stored if divides else scale / stored).clamp(max=448).to(torch.float8_e4m3fn)
    step = scale.float() / stored if divides else scale.float() * stored
    found, elements = nearest(blocks / step[..., None])
    parts = {codes: nibbles(found.view(weight.shape)), "_scale": scale, whole: stored.view(1)}
    return parts, (elements * step[..., None]).view(weight.shape)


def mxfp4(weight, codes="_packed", ending="_scale"):
    blocks = weight.view(weight.shape[0], -1, 32)
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1))) - 2
    found, elements = nearest(blocks / torch.exp2(exponent)[..., None])
    parts = {codes: nibbles(found.view(weight.shape)), ending: (exponent + 127).to(torch.uint8)}
    return parts, (elements * torch.exp2(exponent)[..., None]).view(weight.shape)


def mxfp8(weight):
    blocks = weight.view(weight.shape[0], -1, 32)
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1))) - 8
    codes = (blocks / torch.exp2(exponent)[..., None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    values = codes.float() * torch.exp2(exponent)[..., None]
    parts = {"": codes.view(weight.shape), "_scale": (exponent + 127).to(torch.uint8)}
    return parts, values.view(weight.shape)


def int4(weight):
    """Eight to a word, offset by eight."""
    blocks = weight.view(weight.shape[0], -1, 32)
    scale = blocks.abs().amax(-1) / 7
    codes = (blocks / scale[..., None]).round().clamp(-8, 7).view(weight.shape) + 0.0
    words = torch.zeros(weight.shape[0], weight.shape[1] // 8, dtype=torch.int64)
    for place in range(8):
        words += (codes[:, place::8].long() + 8) << 4 * place
    parts = {
        "_packed": words.to(torch.int32),
        "_scale": scale,
        "_shape": torch.tensor(weight.shape),
    }
    return parts, (codes.view(blocks.shape) * scale[..., None]).view(weight.shape)


def int8(weight):
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    scale = (high - low) / 255
    zero = (-128 - low / scale).round()
    codes = (weight / scale + zero).round().clamp(-128, 127)
    parts = {"": codes.to(torch.int8), "_scale": scale, "_zero_point": zero.to(torch.int8)}
    return parts, (codes - zero + 0.0) * scale


def group(kind, **weights):
    return {
        "format": kind,
        "weights": {"num_bits": 8, "type": "float", "symmetric": True} | weights,
    }


def compressed(*groups):
    numbered = {f"group_{i}": {"targets": ["Linear"]} | each for i, each in enumerate(groups)}
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": numbered,
        "ignore": ["lm_head"],
    }


FOUR = {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}
WAYS = {
    "FP8 in blocks of 128x128": ({"quant_method": "fp8"}, lambda w: fp8(w, 128, 128)),
    "FP8 in blocks of 48x16": (
        {"quant_method": "fp8", "weight_block_size": [48, 16]},
        lambda w: fp8(w, 48, 16, scales=torch.bfloat16),
    ),
    "FP8 by tensor": (
        {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"},
        lambda w: fp8(w, *w.shape),
    ),
    "FP8 by channel": ({"quant_method": "fbgemm_fp8"}, lambda w: fp8(w, 1, w.shape[1], "_scale")),
    "NVFP4; ModelOpt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4),
    "FP8 by tensor; ModelOpt": (
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        lambda w: fp8(w, *w.shape, "_scale"),
    ),
    "NVFP4; compressed-tensors": (
        compressed(group("nvfp4-pack-quantized", **FOUR)),
        lambda w: nvfp4(w, "_packed", "_global_scale", divides=True),
    ),
    "MXFP4; compressed-tensors": (compressed(group("mxfp4-pack-quantized", **FOUR)), mxfp4),
    "MXFP8; compressed-tensors": (compressed(group("mxfp8-quantized")), mxfp8),
    "FP8 by channel; compressed-tensors": (
        compressed(group("float-quantized", strategy="channel")),
        lambda w: fp8(w, 1, w.shape[1], "_scale", torch.bfloat16),
    ),
    "FP8 in blocks of 128x128; compressed-tensors": (
        compressed(group("float-quantized", strategy="block", block_structure=[128, 128])),
        lambda w: fp8(w, 128, 128, "_scale"),
    ),
    "INT4 in groups of 32; compressed-tensors": (
        compressed(
            group("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32)
        ),
        int4,
    ),
    "INT8 by channel; compressed-tensors": (
        compressed(group("int-quantized", type="int", strategy="channel", symmetric=False)),
        int8,
    ),
}


def packed(tensors, pack, only=is_quantized):
    """A checkpoint's tensors, packed, and with their values in place."""
    stored, values = dict(tensors), dict(tensors)
    for name in filter(only, tensors):
        parts, values[name] = pack(stored.pop(name))
        stored |= {name + ending: tensor for ending, tensor in parts.items()}
    return stored, values


@pytest.mark.parametrize("fmt", ["nvfp4", "mxfp4:rceil"])
def test_what_the_oracle_quantizes(fmt):
    """Its codes and scales, packed, are its values again."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 64, generator=generator) ** 3
    blocks = weight.view(3, -1, FORMATS[fmt].block_size)
    amax = float(weight.abs().amax())
    expected = torch.tensor(
        [[fake_quantize_block(b.tolist(), FORMATS[fmt], amax) for b in row] for row in blocks]
    )
    exact = [
        [
            float(block_scale(Fraction(float(b.abs().amax())), FORMATS[fmt], Fraction(amax)))
            for b in r
        ]
        for r in blocks
    ]
    step = torch.tensor(exact)
    codes, _ = nearest(expected / step[..., None])
    parts = {"codes": nibbles(codes.view(3, 64))}
    if fmt == "nvfp4":
        packing, parts["tensor"] = NVFP4_PACKING, torch.tensor(amax) / 2688
        parts["scale"] = (step / parts["tensor"]).to(torch.float8_e4m3fn)
    else:
        packing, parts["scale"] = MXFP4_PACKING, (torch.log2(step) + 127).to(torch.uint8)
    assert torch.equal(packing.values(parts), expected.view(3, 64))


@pytest.mark.parametrize("way", WAYS)
def test_values_are_what_codes_and_scales_say(way, saved, tmp_path):
    declared, pack = WAYS[way]
    stored, values = packed(tensors_of(saved()), pack)
    folder = copied(saved(), tmp_path / "packed", stored, quantization_config=declared)
    loaded = load_model(str(folder), device="cpu")
    state = loaded.model.state_dict()
    assert [name for name in values if not torch.equal(state[name], values[name])] == []
    what, _, by = way.partition("; ")
    assert loaded.prior_quantization == f"{what} (10){'; ' if by else ''}{by}"
    assert loaded.warnings == ()
    plain = load_model(str(copied(saved(), tmp_path / "plain", values)), device="cpu")
    assert plain.fingerprint == loaded.fingerprint
    assert plain.prior_quantization is None


def test_one_rounding_to_the_models_dtype(saved, tmp_path):
    stored, values = packed(tensors_of(saved()), nvfp4)
    declared = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    folder = copied(saved(), tmp_path / "packed", stored, quantization_config=declared)
    state = load_model(str(folder), device="cpu", dtype="bfloat16").model.state_dict()
    assert torch.equal(state[f"{MLP}.weight"], values[f"{MLP}.weight"].bfloat16())


def test_formats_by_layer(saved, tmp_path):
    """As ModelOpt's own file says it beside a config.json that does not."""
    tensors = tensors_of(saved())
    stored, values = packed(tensors, nvfp4, lambda name: "mlp" in name and "weight" in name)
    stored, more = packed(
        stored, lambda w: fp8(w, *w.shape, "_scale"), lambda name: "self_attn" in name
    )
    layers = {"a": {"quant_algo": "NVFP4", "group_size": 16}, "b": {"quant_algo": "FP8"}}
    beside = {
        "producer": {"name": "modelopt", "version": "0.47"},
        "quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers},
    }
    folder = copied(saved(), tmp_path / "packed", stored)
    (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    loaded = load_model(str(folder), device="cpu")
    assert loaded.prior_quantization == "FP8 by tensor (8), NVFP4 (6); ModelOpt"
    state, expected = (
        loaded.model.state_dict(),
        more | {name: value for name, value in values.items() if "mlp" in name},
    )
    assert [n for n in state if not torch.equal(state[n], expected[n])] == []


@pytest.mark.parametrize("way", ["NVFP4; ModelOpt", "FP8 in blocks of 48x16"])
@pytest.mark.parametrize("family", ["qwen3-moe", "deepseek-v3"])
def test_experts_are_fused_after_they_are_dequantized(way, family, saved, tmp_path):
    declared, pack = WAYS[way]
    stored, values = packed(tensors_of(saved(family)), pack, lambda name: "experts." in name)
    assert any(name.endswith("experts.3.down_proj.weight") for name in stored)
    folders = [
        copied(saved(family), tmp_path / "packed", stored, quantization_config=declared),
        copied(saved(family), tmp_path / "plain", values),
    ]
    packed_, plain = (load_model(str(folder), device="cpu") for folder in folders)
    assert packed_.fingerprint == plain.fingerprint
    assert packed_.prior_quantization.startswith(way.split(";")[0])


def test_fused_experts(saved, tmp_path, tiny_model):
    """As transformers writes FP8 experts that it holds in one tensor."""
    weights = dict(tiny_model("qwen3-moe").state_dict())
    stored, values = dict(weights), dict(weights)
    for name in [n for n in weights if ".experts." in n]:
        pairs = [fp8(expert, 48, 16) for expert in stored.pop(name)]
        for ending in ("", "_scale_inv"):
            # Stacked as bytes: torch 2.6 cannot stack FP8.
            parts = [parts[ending] for parts, _ in pairs]
            whole = torch.stack([part.view(torch.uint8) for part in parts])
            stored[name + ending] = whole.view(parts[0].dtype)
        values[name] = torch.stack([found for _, found in pairs])
    declared = {"quant_method": "fp8", "weight_block_size": [48, 16]}
    folder = copied(saved("qwen3-moe"), tmp_path / "m", stored, quantization_config=declared)
    state = load_model(str(folder), device="cpu").model.state_dict()
    assert [name for name in values if not torch.equal(state[name], values[name])] == []


def test_gpt_oss(saved, tmp_path):
    """Blocks on an axis of their own, rows and columns exchanged."""
    tensors = tensors_of(saved("gpt-oss"))
    stored, values = dict(tensors), dict(tensors)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "experts.down_proj"))]:
        weight = stored.pop(name).transpose(1, 2)
        weight = weight[..., : weight.shape[-1] // 32 * 32]
        pairs = [mxfp4(expert, "_blocks", "_scales") for expert in weight]
        blocks, scales = (torch.stack([p[e] for p, _ in pairs]) for e in ("_blocks", "_scales"))
        stored[f"{name}_blocks"] = blocks.view(*scales.shape, 16)
        stored[f"{name}_scales"] = scales
        values[name] = torch.stack([found.T for _, found in pairs])
    declared = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    folders = [
        copied(saved("gpt-oss"), tmp_path / "packed", stored, quantization_config=declared),
        copied(saved("gpt-oss"), tmp_path / "plain", values),
    ]
    packed_, plain = (load_model(str(folder), device="cpu") for folder in folders)
    assert packed_.fingerprint == plain.fingerprint
    assert packed_.prior_quantization == "MXFP4 (4)"


@pytest.mark.parametrize("ending", ["weight_scale_inv", "scale", "qscale_weight"])
def test_other_names_of_a_scale(ending, saved, tmp_path):
    stored, values = packed(tensors_of(saved()), lambda w: fp8(w, 128, 128))
    renamed = {n.replace("weight_scale_inv", ending): t for n, t in stored.items()}
    declared = {"quant_method": "fp8"}
    folder = copied(saved(), tmp_path / "m", renamed, quantization_config=declared)
    state = load_model(str(folder), device="cpu").model.state_dict()
    assert [name for name in values if not torch.equal(state[name], values[name])] == []


def test_scales_of_inputs_and_cache_are_dropped_and_said(saved, tmp_path):
    stored, _ = packed(tensors_of(saved()), nvfp4)
    stored[f"{MLP}.input_scale"] = torch.ones(())
    stored["model.layers.0.self_attn.k_proj.k_scale"] = torch.ones(())
    stored["model.layers.0.self_attn.v_proj.v_scale"] = torch.ones(())
    declared = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    folder = copied(saved(), tmp_path / "m", stored, quantization_config=declared)
    loaded = load_model(str(folder), device="cpu")
    assert loaded.prior_quantization == (
        "NVFP4 (10); ModelOpt; 1 scales of inputs and 2 scales of the KV cache not used"
    )
    assert loaded.warnings == ()


def test_a_declaration_inside_the_text_configuration(tiny_tokenizer, tmp_path):
    from transformers import AutoModelForImageTextToText, LlavaConfig

    config = LlavaConfig(
        text_config={
            "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        },
        image_token_index=95,
    )  # fmt: skip
    first = tmp_path / "first"
    AutoModelForImageTextToText.from_config(config).save_pretrained(first)
    tiny_tokenizer().save_pretrained(first)
    stored, values = packed(tensors_of(first), int4, lambda n: "language" in n and "_proj" in n)
    declared, _ = WAYS["INT4 in groups of 32; compressed-tensors"]
    text = json.loads((first / "config.json").read_text())["text_config"]
    text["quantization_config"] = declared
    folders = [
        copied(first, tmp_path / "packed", stored, text_config=text),
        copied(first, tmp_path / "plain", values),
    ]
    packed_, plain = (load_model(str(folder), device="cpu") for folder in folders)
    assert packed_.fingerprint == plain.fingerprint
    assert packed_.prior_quantization == "INT4 in groups of 32 (7); compressed-tensors"


def test_the_library_that_writes_them_agrees(saved):
    """INT4, which it decodes in FP32; NVFP4, which it decodes in BF16."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    weight = tensors_of(saved())[f"{MLP}.weight"]
    for way, close in (("INT4 in groups of 32", 0), ("NVFP4", 2**-7)):
        declared, pack = WAYS[f"{way}; compressed-tensors"]
        parts, values = pack(weight)
        scheme = declared["config_groups"]["group_0"]
        compressor = BaseCompressor.get_value_from_registry(scheme["format"])
        found = compressor.decompress(
            {f"weight{ending}": part for ending, part in parts.items()},
            QuantizationScheme(targets=[], weights=scheme["weights"]),
        )["weight"]
        assert (found.float() - values).abs().max() <= close * values.abs().max()


# What is refused.

NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
UNKNOWN = {
    "modelopt NVFP4_AWQ": {"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"},
    "modelopt MIXED_PRECISION": {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"a": {"quant_algo": "NVFP4"}, "b": {"quant_algo": "mxfp4"}},
    },
    "compressed-tensors marlin-24": compressed(group("marlin-24")) | {"format": "marlin-24"},
    "compressed-tensors dense": compressed(group("dense")) | {"format": "dense"},
    "compressed-tensors float-quantized": compressed(group("float-quantized", strategy="channel"))
    | {"format": "float-quantized", "transform_config": {"config_groups": {"u": {}}}},
    "awq 4-bit": {"quant_method": "awq", "bits": 4},
    "gptq 8-bit": {"quant_method": "gptq", "bits": 8},
    "bitsandbytes 4-bit": {"load_in_4bit": True},
    "quark": {"quant_method": "quark"},
    "auto-round": {"quant_method": "auto-round"},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {}}},
    "bitnet": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
    "hqq": {"quant_method": "hqq"},
    "fp5": {"quant_method": "fp5"},
    "an unnamed way": {"group_size": 32},
}


def refusal(folder, **options):
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), **{"device": "cpu"} | options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("scheme", UNKNOWN)
def test_what_is_not_known_is_refused_before_weights_are_read(scheme, saved, tmp_path):
    folder = copied(saved(), tmp_path / "m", {}, quantization_config=UNKNOWN[scheme])
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == (
        f"{folder} is quantized already ({scheme}), so it is no full-precision reference: give the "
        "original checkpoint that it was made from, in BF16 as a rule"
    )


@pytest.mark.parametrize("key", ["compression_config", "quantization"])
def test_other_places_that_declare(key, saved, tmp_path):
    declared = {"quant_method": "awq", "bits": 4}
    folder = copied(saved(), tmp_path / "m", {}, **{key: declared})
    assert "is quantized already (awq 4-bit)" in refusal(folder)


def test_modelopts_own_file(saved, tmp_path):
    folder = copied(saved(), tmp_path / "m", {})
    declared = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4_SVD"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(declared))
    assert "is quantized already (modelopt NVFP4_SVD)" in refusal(folder)


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_declaration_declares_nothing(empty, saved, tmp_path):
    folder = copied(saved(), tmp_path / "m", tensors_of(saved()), quantization_config=empty)
    assert load_model(str(folder), device="cpu").prior_quantization is None


DAMAGE = {
    "no scale": (
        {"weight_scale": None},
        f"has {MLP}.weight (NVFP4) with no scale beside it",
    ),
    "no scale of the tensor": (
        {"weight_scale_2": None},
        f"has {MLP}.weight (NVFP4) with no scale of the whole tensor beside it",
    ),
    "no codes": ({"weight": None}, f"its {MLP}.weight_scale is F8_E4M3 of shape (160, 4)"),
    "values": ({"weight": torch.zeros(160, 64)}, f"nothing reads, {MLP}.weight_scale first"),
    "other codes": (
        {"weight": torch.zeros(160, 64, dtype=torch.float8_e4m3fn)},
        f"declares NVFP4, but its {MLP}.weight is F8_E4M3 of shape (160, 64)",
    ),
    "scales of other blocks": (
        {"weight_scale": torch.ones(160, 2, dtype=torch.uint8).view(torch.float8_e4m3fn)},
        f"has {MLP}.weight_scale as F8_E4M3 of shape (160, 2), but NVFP4 of {MLP}.weight (160, 32) "
        "takes (160, 4) in F8_E4M3",
    ),
    "scales in another dtype": ({"weight_scale": torch.ones(160, 4)}, "as F32 of shape (160, 4)"),
    "too many": (
        {"weight_zero_point": torch.zeros(160, 4)},
        f"with {MLP}.weight_zero_point beside",
    ),
    "scales of columns": (
        {"pre_quant_scale": torch.ones(64)},
        f"nothing reads, {MLP}.pre_quant_scale first",
    ),
    "twice": (
        {"weight_packed": torch.zeros(160, 32, dtype=torch.uint8)},
        f"has {MLP}.weight twice",
    ),
    "another width": (
        {
            "weight": torch.zeros(160, 64, dtype=torch.uint8),
            "weight_scale": torch.ones(160, 8, dtype=torch.uint8).view(torch.float8_e4m3fn),
        },
        f"1 of its parameters, {MLP}.weight first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_no_weights_without_their_scales(what, saved, tmp_path):
    changes, expected = DAMAGE[what]
    stored, _ = packed(tensors_of(saved()), nvfp4)
    for leaf, tensor in changes.items():
        stored[f"{MLP}.{leaf}"] = tensor
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    folder = copied(saved(), tmp_path / "m", kept, quantization_config=NVFP4)
    assert expected in refusal(folder)


def test_pickled_codes(saved, tmp_path):
    folder = copied(saved(), tmp_path / "m", {}, quantization_config=NVFP4)
    (folder / "model.safetensors").unlink()
    assert "has no safetensors files" in refusal(folder, allow_pickle=True)
