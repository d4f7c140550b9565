"""What blocks are called with and return, and calls on several windows as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from fp4scope.errors import ModelError
from fp4scope.models.links import Axes, mapped

HIDDEN = "hidden_states"
"""What blocks call a hidden state that they are given by name."""


@dataclass(frozen=True)
class BlockInputs:
    """What a model hands its blocks on some windows.

    `embedded` is what enters block 0. `calls[b]` are the other arguments of block b, in which a
    tensor that is not the same for all windows is a `PerWindow`, and one that an earlier block
    leaves is `Carried`.
    """

    embedded: Shaped[Tensor, "windows tokens *hidden"]
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]

    @property
    def size_bytes(self) -> int:
        """Of the different tensors that are kept."""
        found: dict[int, int] = {}

        def add(leaf: Any) -> None:  # noqa: ANN401
            for tensor in leaf.tensors if isinstance(leaf, PerWindow) else (leaf,):
                if isinstance(tensor, Tensor):
                    found[tensor.data_ptr()] = tensor.numel() * tensor.element_size()

        mapped(add, [self.embedded, *self.calls])
        return sum(found.values())


@dataclass(frozen=True)
class PerWindow:
    """A tensor that every window has its own of."""

    tensors: tuple[Tensor, ...]


def first_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Where a hidden state is, if a block is called with one."""
    return kwargs.get(HIDDEN, args[0] if args else None)


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any], tokens: int) -> tuple[Tensor, Axes]:
    """The hidden state that a block is called with, and its axes."""
    hidden = first_of(args, kwargs)
    axes = Axes.of_stream(hidden, tokens) if isinstance(hidden, Tensor) else None
    if axes is None:
        raise ModelError(
            "the blocks of this model take no hidden state of a window's tokens as their first "
            f"argument or as {HIDDEN}, so it cannot be measured block by block"
        )
    return hidden, axes


def state_of(output: Any) -> Tensor:  # noqa: ANN401
    """The hidden state in what a block returns."""
    state = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(state, Tensor):
        raise ModelError(
            f"the blocks of this model return a {type(output).__name__} instead of a hidden state, "
            "or a tuple that begins with one, so it cannot be measured block by block"
        )
    return state


def without_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The other arguments of a block, None in place of the hidden state."""
    if HIDDEN in kwargs:
        return args, {**kwargs, HIDDEN: None}
    return (None, *args[1:]), kwargs


def merged_calls(calls: Sequence[Any], merged: dict[tuple[int, ...], Any]) -> Any:  # noqa: ANN401
    """The same call on several windows as one. Blocks share tensors: `merged` has those seen."""
    first = calls[0]
    if isinstance(first, tuple | list):
        return tuple(merged_calls(parts, merged) for parts in zip(*calls, strict=True))
    if isinstance(first, dict):
        return {key: merged_calls([call[key] for call in calls], merged) for key in first}
    if isinstance(first, Tensor):
        key = tuple(map(id, calls))
        if key not in merged:
            same = all(call is first or torch.equal(call, first) for call in calls[1:])
            merged[key] = first if same else PerWindow(tuple(calls))
        return merged[key]
    if hasattr(first, "get_seq_length"):  # a cache made in spite of use_cache=False
        return None
    return first


def for_batch(leaf: Any, windows: Sequence[int]) -> Any:  # noqa: ANN401
    """An argument from `merged_calls` for a batch of these windows."""
    if isinstance(leaf, PerWindow):
        return torch.cat([leaf.tensors[w] for w in windows])
    # Axis 0 of what has more than one is the batch; a bare vector (cache positions) has none.
    if isinstance(leaf, Tensor) and leaf.ndim > 1 and leaf.shape[0] == 1:
        return leaf.expand(len(windows), *leaf.shape[1:])
    return leaf
