"""An export as the configuration of each program that reads it.

Every linear stands in exactly one place by its full name: programs disagree on which of two
patterns wins, and on what a pattern without an end means.

Sources: compressed-tensors 0.20 (`QuantizationConfig`, `QuantizationArgs`); ModelOpt 0.47's
hf_quant_config.json and TensorRT-LLM's reader of it; vLLM 0.33's online quantization;
llm-compressor 0.14's `QuantizationModifier`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fp4scope.deploy.plan import Export, Packed
from fp4scope.deploy.schemes import Kind, Scheme
from fp4scope.errors import StudyError
from fp4scope.recipes import expert_of

_CT_FORMATS: Mapping[Kind, str] = {
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp8": "mxfp8-quantized",
    "fp8": "float-quantized",
}
_BLOCKS: Mapping[Kind, dict[str, Any]] = {
    "nvfp4": {
        "strategy": "tensor_group",
        "group_size": 16,
        "scale_dtype": "torch.float8_e4m3fn",
    },
    "mxfp4": {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    "mxfp8": {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    "fp8": {"strategy": "channel"},
}


def compressed_tensors(export: Export) -> dict[str, Any]:
    """`quantization_config` as compressed-tensors writes it."""
    groups = {
        f"group_{number}": _group(scheme, [each.module for each in members])
        for number, (scheme, members) in enumerate(export.schemes.items())
    }
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": list(export.plain),
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    bits = 4 if scheme.kind in ("nvfp4", "mxfp4") else 8
    common = {"num_bits": bits, "type": "float", "symmetric": True}
    blocks = _BLOCKS[scheme.kind]
    inputs: dict[str, Any] | None = None
    if scheme.inputs:
        dynamic = "local" if scheme.kind == "nvfp4" else True
        own = {"strategy": "token"} if scheme.kind == "fp8" else blocks
        inputs = common | {"dynamic": dynamic} | own
    return {
        "targets": targets,
        "format": _CT_FORMATS[scheme.kind],
        "weights": common | {"dynamic": False} | blocks,
        "input_activations": inputs,
    }


def llm_compressor(export: Export) -> dict[str, Any]:
    """A recipe that llm-compressor runs itself: it calibrates and rounds in its own way."""
    groups = compressed_tensors(export)["config_groups"]
    modifier = {"config_groups": groups, "ignore": list(export.plain)}
    return {"default_stage": {"default_modifiers": {"QuantizationModifier": modifier}}}


_ALGORITHMS: Mapping[tuple[Kind, bool], dict[str, Any]] = {
    ("nvfp4", True): {"quant_algo": "NVFP4", "group_size": 16},
    ("nvfp4", False): {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    ("mxfp8", True): {"quant_algo": "MXFP8", "group_size": 32},
    ("fp8", True): {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
}


def modelopt(export: Export) -> dict[str, Any]:
    """`quantization_config` as ModelOpt writes it into config.json.

    Raises:
        StudyError: It has no name for a scheme of the recipe.
    """
    _require(export, lambda each: (each.scheme.kind, each.scheme.inputs) in _ALGORITHMS, "ModelOpt")
    layers = {
        each.module: dict(_ALGORITHMS[each.scheme.kind, each.scheme.inputs])
        for each in export.packed
    }
    # vLLM leaves out every linear that has a name of this list inside its own.
    ignored = [name for name in export.plain if not any(name in layer for layer in layers)]
    return {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": layers,
        "ignore": ignored,
        "kv_cache_scheme": None,
        "producer": {"name": "modelopt", "version": "0.47.0"},
    }


def modelopt_file(export: Export) -> dict[str, Any]:
    """The same as ModelOpt's hf_quant_config.json has it."""
    inline = modelopt(export)
    return {
        "producer": inline["producer"],
        "quantization": {
            "quant_algo": inline["quant_algo"],
            "kv_cache_quant_algo": None,
            "exclude_modules": inline["ignore"],
            "quantized_layers": inline["quantized_layers"],
        },
    }


_ONLINE: Mapping[Kind, str] = {"mxfp4": "mxfp4", "mxfp8": "mxfp8", "fp8": "fp8_per_channel"}
_ONLINE_EXPERTS = {**_ONLINE, "nvfp4": "nvfp4_per_token"}


def vllm_online(export: Export) -> dict[str, Any]:
    """What `vllm serve --quantization online --quantization-config` takes.

    vLLM rounds the weights of the original checkpoint while it loads them, in its own way. All
    experts of a block are one layer to it.

    Raises:
        StudyError: It cannot round some layers so.
    """

    def named(each: Packed) -> tuple[str, str | None]:
        expert = expert_of(each.module)
        layer = each.module if expert is None else expert[0].rpartition(".")[0]
        known = _ONLINE if expert is None else _ONLINE_EXPERTS
        return layer, known.get(each.scheme.kind) if each.scheme.inputs else None

    _require(export, lambda each: named(each)[1] is not None, "vLLM's online rounding")
    return {"targets": dict(map(named, export.packed)), "ignore": list(export.plain)}


def _require(export: Export, has: Callable[[Packed], bool], program: str) -> None:
    lacking = [each for each in export.packed if not has(each)]
    if lacking:
        schemes = " or ".join(dict.fromkeys(each.scheme.label for each in lacking))
        named = ", ".join(each.module for each in lacking[:3])
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise StudyError(
            f"{program} has no per-layer {schemes}, which {named}{more} have; export to "
            "compressed-tensors, or choose another format for these layers"
        )
