"""compressed-tensors: groups of targets with formats, and a list of what is ignored.

Source: `QuantizationConfig`, `QuantizationScheme`, `QuantizationArgs` of compressed-tensors 0.20.
The latter two forbid keys that they do not know.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fp4scope.deploy.configs.rules import Config, Rule, Trouble, Way
from fp4scope.deploy.configs.values import mapping, texts
from fp4scope.deploy.engines import Form
from fp4scope.errors import StudyError, nearest, shown

_ARGUMENTS = frozenset({
    "num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic",
    "actorder", "scale_dtype", "zp_dtype", "observer", "observer_kwargs",
})  # fmt: skip
_SCHEME = frozenset({"targets", "weights", "input_activations", "output_activations", "format"})
_FP8 = "fp8"
PRESETS: Mapping[str, Form] = {
    "NVFP4": Form("nvfp4", "nvfp4"), "NVFP4A16": Form("nvfp4"),
    "MXFP4": Form("mxfp4", "mxfp4"), "MXFP4A16": Form("mxfp4"), "MXFP4XFP8": Form("mxfp4", _FP8),
    "MXFP8": Form("mxfp8", "mxfp8"), "FP8_DYNAMIC": Form(_FP8, _FP8),
    "FP8": Form("fp8:tensor", "fp8:tensor"), "FP8_BLOCK": Form("fp8:block128", "fp8:block128"),
    "W4A16": Form("int4"), "W8A16": Form("int8"), "W8A8": Form("int8", "int8"),
}  # fmt: skip
_FORMATS: Mapping[str, frozenset[str]] = {
    "nvfp4-pack-quantized": frozenset({"nvfp4"}),
    "mxfp4-pack-quantized": frozenset({"mxfp4"}),
    "mxfp8-quantized": frozenset({"mxfp8"}),
    "float-quantized": frozenset({_FP8, "fp8:tensor", "fp8:block128"}),
    "naive-quantized": frozenset({_FP8, "fp8:tensor", "fp8:block128", "int8"}),
    "int-quantized": frozenset({"int8"}),
    "pack-quantized": frozenset({"int4", "int8"}),
}


def read(data: Mapping[str, Any]) -> Config:
    """What a `quantization_config` of compressed-tensors says.

    Raises:
        StudyError: It has no groups that can be read; says where.
    """
    groups = mapping(data.get("config_groups"), "config_groups")
    whole = data.get("format")
    rules: list[Rule] = []
    troubles: list[Trouble] = []
    for name, group in groups.items():
        place = f"config_groups.{name}"
        form, targets = _group(name, group, place)
        rules += [Rule(target, form, Way.TARGET, f"{place}.targets") for target in targets]
        if isinstance(group, Mapping):
            troubles += _troubles(group, whole, form, place)
    ignored = texts(data.get("ignore") or [], "ignore")
    rules += [Rule(pattern, None, Way.TARGET, "ignore", True) for pattern in ignored]
    return Config("compressed-tensors", tuple(rules), troubles=tuple(troubles))


def _group(name: str, group: Any, place: str) -> tuple[Form | None, list[str]]:  # noqa: ANN401
    if isinstance(group, list):
        if name not in PRESETS:
            raise StudyError(f"{place}: unknown preset {shown(name)}; {nearest(name, PRESETS)}")
        return PRESETS[name], texts(group, place)
    scheme = mapping(group, place)
    targets = texts(scheme.get("targets") or [], f"{place}.targets")
    weights, inputs = scheme.get("weights"), scheme.get("input_activations")
    if weights is None:
        return None, targets
    weight = _format(mapping(weights, f"{place}.weights"))
    own = None if inputs is None else _format(mapping(inputs, f"{place}.input_activations"))
    return Form(weight, own), targets


def _format(args: Mapping[str, Any]) -> str:
    """The name of the format of an operand; one of our own making where there is none."""
    bits, kind = args.get("num_bits", 8), args.get("type", "int")
    strategy, size = args.get("strategy"), args.get("group_size")
    if kind == "int":
        return f"int{bits}"
    known = {
        (4, "tensor_group", 16): "nvfp4",
        (4, "group", 32): "mxfp4",
        (8, "group", 32): "mxfp8",
        (8, "group", 128): "fp8:block128",
        (8, "channel", None): _FP8,
        (8, "token", None): _FP8,
        (8, "tensor", None): "fp8:tensor",
    }
    if bits == 8 and strategy == "block":
        rows, cols = [*(args.get("block_structure") or ()), 0, 0][:2]
        return "fp8:block128" if rows == cols == 128 else f"fp8:block{rows}x{cols}"
    if not isinstance(strategy, str | None) or not isinstance(size, int | None):
        raise StudyError(f"strategy {shown(strategy)} of group_size {shown(size)} is not known")
    return known.get((bits, str(strategy), size or None), f"float{bits} by {strategy}")


def _troubles(
    group: Mapping[str, Any],
    whole: Any,  # noqa: ANN401
    form: Form | None,
    place: str,
) -> Iterator[Trouble]:
    for key in sorted(map(str, group.keys() - _SCHEME)):
        yield _unknown(key, _SCHEME, place)
    for operand in ("weights", "input_activations", "output_activations"):
        held = group.get(operand)
        for key in sorted(map(str, held.keys() - _ARGUMENTS)) if isinstance(held, Mapping) else ():
            yield _unknown(key, _ARGUMENTS, f"{place}.{operand}")
    own = group.get("format") or whole
    if group.get("format") == "mixed-precision":
        yield Trouble("a group has the format mixed-precision", place, "only the whole may have it")
    elif own == "mixed-precision":
        yield Trouble(
            "a group has no format, and the whole is mixed-precision", place,
            f"give the group its own: {', '.join(_FORMATS)}",
        )  # fmt: skip
    elif form is not None and isinstance(own, str) and own in _FORMATS:
        if form.weight not in _FORMATS[own]:
            yield Trouble(
                f"the format {own} holds no {form.weight} weights", place,
                f"use {next((f for f, held in _FORMATS.items() if form.weight in held), 'another')}"
                " or change the weights",
            )  # fmt: skip
    elif form is not None:
        yield Trouble(f"the format {shown(own)} is not known", place, nearest(str(own), _FORMATS))


def _unknown(key: str, known: frozenset[str], place: str) -> Trouble:
    return Trouble(
        f"the key {shown(key)} is not known, and compressed-tensors refuses it",
        place,
        f"leave it out; {nearest(key, sorted(known))}",
    )
