"""Changing what enters the blocks of a model while its own forward runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from fp4scope.models import LoadedModel


@contextmanager
def entering(loaded: LoadedModel, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """The model with what enters every block changed, until the `with` block ends.

    Args:
        loaded: The model.
        change: A block's number and what enters it, as its forward has it, to what enters instead.
    """

    def move(index: int, _: nn.Module, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        moved = change(index, args[0] if args else kwargs["hidden_states"])
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

    blocks = loaded.model.get_submodule(loaded.layout.blocks_path).children()
    hooks = [
        block.register_forward_pre_hook(partial(move, index), with_kwargs=True)
        for index, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
