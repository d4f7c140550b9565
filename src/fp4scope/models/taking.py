"""Weights of blocks that are taken as they are made, so that memory need not hold all at once."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from fp4scope.models.fusion import replaced

_SMALL = 1 << 16
"""Bytes of a tensor that need not leave memory while others are loaded."""


@contextmanager
def taking(keep: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What `transformers` makes of a checkpoint's blocks is kept elsewhere, until the `with` ends.

    Args:
        keep: Is given a parameter, and gives what stands in its place.
    """
    from transformers import core_model_loading as loading

    place: Any = getattr(loading, "set_param_for_module", None)

    def placed(model: Any, name: str, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        # Blocks have numbers; what is around them goes to the device.
        in_block = any(part.isdigit() for part in name.split("."))
        large = isinstance(value, Tensor) and not value.is_cuda and value.nbytes > _SMALL
        if in_block and large:
            value = keep(value.detach())
        return place(model, name, value, *args, **kwargs)

    with ExitStack() as stack:
        if place is not None:
            stack.enter_context(replaced(loading.__dict__, "set_param_for_module", placed))
        stack.enter_context(_one_at_a_time())
        yield


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """`transformers` reads a tensor when it needs it, not all as soon as it can."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
