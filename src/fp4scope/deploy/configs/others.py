"""Quark, AutoRound, and the JSON of vLLM's online rounding.

Sources: AMD Quark's exported `quantization_config`, AutoRound 0.16's, as vLLM 0.33 reads them
(`quark/utils.py`, `inc.py`, `config/quantization.py`).
"""

from collections.abc import Mapping
from typing import Any

from fp4scope.deploy.configs.rules import Config, Rule, Trouble, Way
from fp4scope.deploy.configs.values import mapping, texts
from fp4scope.deploy.engines import Form
from fp4scope.errors import nearest, shown

_ONLINE: Mapping[str, Form] = {
    "fp8_per_tensor": Form("fp8:tensor", "fp8:tensor"),
    "fp8_per_block": Form("fp8:block128", "fp8:block128"),
    "fp8_per_channel": Form("fp8", "fp8"),
    "mxfp8": Form("mxfp8", "mxfp8"),
    "mxfp4": Form("mxfp4", "mxfp4"),
    "nvfp4_per_token": Form("nvfp4", "nvfp4"),
    "int8_per_channel_weight_only": Form("int8"),
}


def read_online(data: Mapping[str, Any]) -> Config:
    """What the JSON of vLLM's online rounding says.

    Raises:
        StudyError: It is not of that form; says where.
    """
    troubles: list[Trouble] = []
    rules: list[Rule] = []
    for pattern, short in mapping(data.get("targets"), "targets").items():
        form = _ONLINE.get(str(short))
        if form is None:
            said = f"{shown(short)} is not known"
            troubles.append(Trouble(said, f"targets.{pattern}", nearest(str(short), _ONLINE)))
        rules.append(Rule(str(pattern), form, Way.GLOB, "targets"))
    ignored = texts(data.get("ignore") or [], "ignore")
    rules += [Rule(pattern, None, Way.GLOB, "ignore", True) for pattern in ignored]
    return Config("vllm-online", tuple(rules), None, True, tuple(troubles))


def read_quark(data: Mapping[str, Any]) -> Config:
    """What Quark's `quantization_config` says.

    Raises:
        StudyError: It is not of that form; says where.
    """
    excluded = texts(data.get("exclude") or [], "exclude")
    rules = [Rule(one, None, Way.GLOB, "exclude", True) for one in excluded]
    layers = mapping(data.get("layer_quant_config") or {}, "layer_quant_config")
    rules += [
        Rule(str(name), _quark_form(own, f"layer_quant_config.{name}"), Way.GLOB,
             "layer_quant_config")
        for name, own in layers.items()
    ]  # fmt: skip
    default = _quark_form(data.get("global_quant_config") or {}, "global_quant_config")
    return Config("quark", tuple(rules), default, True)


def _quark_form(own: Any, place: str) -> Form | None:  # noqa: ANN401
    held = mapping(own, place)
    weight, inputs = held.get("weight"), held.get("input_tensors")
    if weight is None:
        return None
    name = _quark_format(mapping(weight, f"{place}.weight"))
    return Form(name, inputs and _quark_format(mapping(inputs, f"{place}.input_tensors")))


def _quark_format(args: Mapping[str, Any]) -> str:
    kind, scheme, size = (args.get(key) for key in ("dtype", "qscheme", "group_size"))
    if kind == "fp4" and scheme == "per_group":
        return {32: "mxfp4", 16: "nvfp4"}.get(size or 0, f"fp4 in groups of {size}")
    if kind == "fp8_e4m3":
        return {"per_tensor": "fp8:tensor", "per_group": "mxfp8"}.get(str(scheme), "fp8")
    return f"{kind} {scheme}"


def read_auto_round(data: Mapping[str, Any]) -> Config:
    """What AutoRound's `quantization_config` says.

    Raises:
        StudyError: It is not of that form; says where.
    """
    extra = mapping(data.get("extra_config") or {}, "extra_config")
    rules = [
        Rule(str(name), _auto_round_form(data, mapping(own, f"extra_config.{name}")), Way.SEARCH,
             "extra_config")
        for name, own in extra.items()
    ]  # fmt: skip
    return Config("auto-round", tuple(rules), _auto_round_form(data, {}), True)


def _auto_round_form(whole: Mapping[str, Any], own: Mapping[str, Any]) -> Form | None:
    def said(key: str, default: Any = None) -> Any:  # noqa: ANN401
        return own.get(key, whole.get(key, default))

    bits, kind, size = said("bits", 16), str(said("data_type", "int")), said("group_size")
    if not isinstance(bits, int) or bits >= 16:
        return None
    name = _auto_round_format(kind, bits, size)
    inputs = said("act_bits", 16)
    quantized = isinstance(inputs, int) and inputs < 16
    return Form(
        name, _auto_round_format(str(said("act_data_type", kind)), inputs, said("act_group_size",
        size)) if quantized else None,
    )  # fmt: skip


def _auto_round_format(kind: str, bits: int, size: Any) -> str:  # noqa: ANN401
    if kind.startswith("mx"):
        return f"mxfp{bits}"
    if kind.startswith("nv"):
        return f"nvfp{bits}"
    if kind.startswith("fp") and bits == 8:
        return "fp8:tensor" if size == 0 else "fp8"
    return f"int{bits}" if kind.startswith("int") else f"{kind[:20]}{bits}"
