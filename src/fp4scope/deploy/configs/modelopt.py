"""ModelOpt: `quantization_config` in config.json, and hf_quant_config.json.

Source: ModelOpt 0.47; TensorRT-LLM's `modelopt_config.py`, which documents both shapes.
"""

from collections.abc import Mapping
from typing import Any

from fp4scope.deploy.configs.rules import Config, Rule, Trouble, Way
from fp4scope.deploy.configs.values import mapping, texts
from fp4scope.deploy.engines import Form
from fp4scope.errors import nearest, shown

ALGORITHMS: Mapping[str, Form] = {
    "NVFP4": Form("nvfp4", "nvfp4"),
    "W4A16_NVFP4": Form("nvfp4"),
    "MXFP8": Form("mxfp8", "mxfp8"),
    "FP8": Form("fp8:tensor", "fp8:tensor"),
    "FP8_PER_CHANNEL_PER_TOKEN": Form("fp8", "fp8"),
    "FP8_PB_WO": Form("fp8:block128"),
    "MXFP4": Form("mxfp4", "mxfp4"),
}
"""MXFP4 is among them since ModelOpt writes it; no engine knows it."""


def read(data: Mapping[str, Any]) -> Config:
    """What either file of ModelOpt says.

    Raises:
        StudyError: It is not of that form; says where.
    """
    inner = data.get("quantization")
    own = inner if isinstance(inner, Mapping) else data
    troubles: list[Trouble] = []
    excluded = texts(own.get("exclude_modules") or own.get("ignore") or [], "exclude_modules")
    rules = [Rule(one, None, Way.PART, "exclude_modules", True) for one in excluded]
    algorithm = own.get("quant_algo")
    if algorithm != "MIXED_PRECISION":
        default = None if algorithm is None else _form(algorithm, "quant_algo", troubles)
        if isinstance(inner, Mapping) and algorithm == "NVFP4":
            troubles += _legacy(own)
        return Config("modelopt", tuple(rules), default, True, tuple(troubles))
    layers = mapping(own.get("quantized_layers"), "quantized_layers")
    for name, layer in layers.items():
        place = f"quantized_layers.{name}"
        form = _form(mapping(layer, place).get("quant_algo"), place, troubles)
        rules.append(Rule(str(name), form, Way.EXPERTS, "quantized_layers"))
    return Config("modelopt", tuple(rules), None, True, tuple(troubles))


def _form(algorithm: Any, place: str, troubles: list[Trouble]) -> Form | None:  # noqa: ANN401
    found = ALGORITHMS.get(str(algorithm).upper())
    if found is None:
        troubles.append(
            Trouble(
                f"the algorithm {shown(algorithm)} is not known; vLLM leaves such a layer "
                "unquantized without a word",
                place,
                nearest(str(algorithm).upper(), ALGORITHMS),
            )
        )
    return found


def _legacy(own: Mapping[str, Any]) -> list[Trouble]:
    needed = ("group_size", "kv_cache_quant_algo", "exclude_modules")
    return [
        Trouble(f"the key {key} is missing, which vLLM demands", "quantization", f"add {key}")
        for key in needed
        if key not in own
    ]
