"""Quantization configurations that others have published, each read into one form."""

from collections.abc import Callable, Mapping
from typing import Any

from fp4scope.deploy.configs import compressed, modelopt, others, own
from fp4scope.deploy.configs.rules import (
    Config,
    Rule,
    Trouble,
    Way,
    is_head,
    is_router,
)
from fp4scope.errors import StudyError, nearest, shown

_READERS: Mapping[str, Callable[[Mapping[str, Any]], Config]] = {
    "compressed-tensors": compressed.read,
    "modelopt": modelopt.read,
    "modelopt_fp4": modelopt.read,
    "modelopt_mixed": modelopt.read,
    "quark": others.read_quark,
    "auto-round": others.read_auto_round,
    "intel/auto-round": others.read_auto_round,
}
_PLACES = ("quantization_config", "compression_config")


def read_config(data: Mapping[str, Any]) -> Config:
    """What a file says: a config.json, hf_quant_config.json, vLLM's JSON, or a recipe.

    Raises:
        StudyError: It is none of these; says what it is.
    """
    found = declared(data)
    if found is None:
        raise StudyError(
            "the file says nothing of a quantization that can be read; give a config.json with "
            f"quantization_config ({', '.join(_READERS)}), an hf_quant_config.json, the JSON of "
            "vLLM's online rounding, or a recipe of fp4scope"
        )
    return found


def is_published(data: object) -> bool:
    """Whether a file holds a configuration of another program, and no recipe of fp4scope."""
    if not isinstance(data, Mapping) or {"recipe", "base", "edits"} & data.keys():
        return False
    return bool({*_PLACES, "quantization", "quant_method", "targets"} & data.keys())


def declared(data: Mapping[str, Any]) -> Config | None:
    """The same; None where nothing is declared.

    Raises:
        StudyError: What is declared is not known.
    """
    if "recipe" in data or "base" in data or "edits" in data:
        return own.read(data)
    text = data.get("text_config")
    for held in (data, text if isinstance(text, Mapping) else {}):
        for place in _PLACES:
            if isinstance(inner := held.get(place), Mapping):
                return _by_method(inner)
    if "quant_method" in data or "quantization" in data:
        return _by_method(data)
    return others.read_online(data) if "targets" in data else None


def _by_method(data: Mapping[str, Any]) -> Config:
    producer = data.get("producer")
    maker = producer.get("name") if isinstance(producer, Mapping) else None
    method = data.get("quant_method") or maker
    if method is None and "config_groups" in data:
        method = "compressed-tensors"
    if (reader := _READERS.get(str(method))) is None:
        raise StudyError(f"quant_method: unknown {shown(method)}; {nearest(method, _READERS)}")
    return reader(data)


__all__ = [
    "Config",
    "Rule",
    "Trouble",
    "Way",
    "is_head",
    "is_published",
    "is_router",
    "read_config",
]
