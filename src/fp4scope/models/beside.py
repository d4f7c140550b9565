"""What can be quantized beside the linears of the blocks, on request: where a model has it."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import nn

from fp4scope.errors import ModelError, UnitError
from fp4scope.models.config import config_value, text_config
from fp4scope.operands import PV, QK, Operand, attentions, cached, operand_at, product_at
from fp4scope.study import More


class Beside(NamedTuple):
    """One of them; `block` is None behind all blocks."""

    name: str
    block: int | None
    projection: str
    operand: Operand


def beside(
    model: nn.Module, path: str, stack: nn.ModuleList, more: Collection[More]
) -> list[Beside]:
    """All of these that a model has, blocks in order.

    Args:
        model: The model.
        path: Of its blocks.
        stack: The blocks.
        more: What is asked for.

    Raises:
        ModelError: Something that is asked for is not there, or cannot be reached.
    """
    found = [
        attended
        for index, block in enumerate(stack)
        for attended in _attended(block, f"{path}.{index}", index, more)
    ]
    _require_attention(model, found, more)
    if More.LM_HEAD in more:
        found.append(_head(model, path))
    return found


def _head(model: nn.Module, blocks: str) -> Beside:
    """What makes logits of the last states: a product like others."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = [name for name, module in model.named_modules() if module is head]
    if not names or names[0].startswith(f"{blocks}."):
        raise ModelError(
            f"{type(model).__name__} names no module as its head, so it cannot be quantized; leave "
            "--lm-head out"
        )
    try:
        return Beside(names[0], None, More.LM_HEAD.value, product_at(model, names[0]))
    except UnitError:
        raise ModelError(
            f"the head of {type(model).__name__}, {names[0]}, is a {type(head).__name__} and no "
            "linear, so it cannot be quantized; leave --lm-head out"
        ) from None


def _attended(block: nn.Module, path: str, index: int, more: Collection[More]) -> Iterator[Beside]:
    """What the attentions of a block write to a cache, and what they multiply."""
    for name, module in attentions(block):
        leaves: dict[str, str] = {}
        if More.KV_CACHE in more:
            leaves |= dict.fromkeys(cached(module), str(More.KV_CACHE.value))
        if More.ATTENTION in more:
            leaves |= dict.fromkeys(QK, f"{More.ATTENTION.value}.qk")
            leaves |= dict.fromkeys(PV, f"{More.ATTENTION.value}.pv")
        for leaf, projection in leaves.items():
            own = f"{name}.{leaf}"
            yield Beside(f"{path}.{own}", index, projection, operand_at(block, own))


def _require_attention(model: nn.Module, found: Collection[Beside], more: Collection[More]) -> None:
    """Refuse to quantize what attention multiplies where none of it can be reached."""
    option = "--kv-cache" if More.KV_CACHE in more else "--attention"
    if {More.KV_CACHE, More.ATTENTION}.intersection(more) and not found:
        raise ModelError(
            f"no block of {type(model).__name__} attends through the attention functions of "
            f"transformers, so what it multiplies cannot be reached; leave {option} out"
        )
    kind = config_value(text_config(getattr(model, "config", None)), "_attn_implementation")
    if More.ATTENTION in more and kind != "eager":
        raise ModelError(
            f"{type(model).__name__} attends by {kind}, one kernel without probabilities to "
            "quantize; load it with attn_implementation='eager', or leave --attention out"
        )
