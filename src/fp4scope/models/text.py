"""The language model inside a multimodal one, told by structure.

It is what the tokens' embeddings and the head over the vocabulary belong to, never a tower for
images or sound because that is larger. No list of model names is needed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from fp4scope.errors import ModelError
from fp4scope.models.config import text_config
from fp4scope.operands import products


class Tower(NamedTuple):
    """A part outside the language model that has linears: it is left alone."""

    name: str
    linears: int


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The innermost model with a language model's head over the text configuration.

    Mostly the model itself. Some wrappers hold a whole causal language model instead, and cannot
    run without images or sound.
    """
    kind = _text_kind(model)
    found = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and _text_kind(module) is kind and _head(module)
    ]
    return found[-1] if found else model


def block_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list with the most linear weights in the language model, and its path.

    Raises:
        ModelError: There is none.
    """
    _, path = _located(model)
    if path is None:
        raise ModelError(
            f"{type(model).__name__} has no nn.ModuleList with linears in it, so no stack of blocks"
            " was found; fp4scope needs a causal language model made of transformer blocks"
        )
    stack = model.get_submodule(path)
    assert isinstance(stack, nn.ModuleList)
    return path, stack


def towers(model: PreTrainedModel) -> tuple[Tower, ...]:
    """The parts with linears outside the language model, by their paths."""
    inner = text_model(model)
    prefix = next(name for name, module in model.named_modules() if module is inner)
    holder, stack = _located(inner)
    if stack is None:
        return ()
    path = f"{prefix}.{holder}".strip(".")
    head, inside = _head(inner), model.get_submodule(path)
    found = [
        f"{path}.{name}".strip(".")
        for name in _foreign(inside)
        if not _within(f"{holder}.{name}".strip("."), stack)
    ]
    parts = path.split(".") if path else []
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        found += [
            f"{above}.{name}".strip(".")
            for name, child in model.get_submodule(above).named_children()
            if name != part and child is not head
        ]
    counted = ((name, len(list(products(model.get_submodule(name))))) for name in found)
    return tuple(Tower(name, count) for name, count in counted if count)


def listed_towers(found: Sequence[Tower]) -> str:
    """One line, such as `model.vision_tower (162 linears)`."""
    return ", ".join(f"{tower.name} ({tower.linears} linears)" for tower in found)


def _located(model: nn.Module) -> tuple[str, str | None]:
    """The innermost module around the embeddings that holds a stack, and that stack's path."""
    embeddings = _embeddings(model)
    path = next((name for name, m in model.named_modules() if m is embeddings), "")
    while path:
        path = path.rpartition(".")[0]
        holder = model.get_submodule(path)
        if (stack := _largest(holder, _foreign(holder))) is not None:
            return path, f"{path}.{stack}".strip(".")
    return "", _largest(model, ())


def _largest(holder: nn.Module, foreign: Sequence[str]) -> str | None:
    best, weight = None, 0
    for name, module in holder.named_modules():
        if isinstance(module, nn.ModuleList) and not any(_within(name, other) for other in foreign):
            size = sum(product.parameter.numel() for _, product in products(module))
            if size > weight:
                best, weight = name, size
    return best


def _foreign(holder: nn.Module) -> list[str]:
    """The outermost modules inside that have another configuration: towers of their own."""
    own = {type(getattr(holder, "config", None)), _text_kind(holder)}
    found: list[str] = []
    for name, module in holder.named_modules():
        config = getattr(module, "config", None)
        other = isinstance(config, PreTrainedConfig) and type(config) not in own
        if other and not any(_within(name, outer) for outer in found):
            found.append(name)
    return found


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _text_kind(model: nn.Module) -> type:
    return type(text_config(getattr(model, "config", None)))


def _embeddings(model: Any) -> nn.Module | None:  # noqa: ANN401
    try:
        return model.get_input_embeddings()
    except Exception:  # a model's own code, or no PreTrainedModel
        return None


def _head(model: Any) -> nn.Module | None:  # noqa: ANN401
    try:
        return model.get_output_embeddings()
    except Exception:  # as a model's own code may
        return None
