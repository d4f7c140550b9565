"""The two matrix products of an attention function: queries by keys, probabilities by values.

Eager attention makes them with two calls of `torch.matmul`, and does between them whatever a family
does: scales, masks, caps, sinks. So these two calls are looked for while the family's own function
runs, and their operands are handed to whoever watches. Others attend in one kernel, which has no
probabilities to look at.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fp4scope.errors import ModelError

QK, PV = ("qk_queries", "qk_keys"), ("pv_probabilities", "pv_values")
_MATMULS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm)


class Multiplications(TorchFunctionMode):
    """Watch the products that are made until the `with` block ends.

    Args:
        watchers: By operand (`QK`, `PV`), whose last axis is the one that is summed over.
    """

    def __init__(self, watchers: Mapping[str, Sequence[Callable[[Tensor], Tensor]]]) -> None:
        super().__init__()
        self._watchers = watchers
        self._count = 0

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func in _MATMULS:
            self._count += 1
            if self._count <= 2 and len(args) == 2:
                left, right = (QK, PV)[self._count - 1]
                args = self._seen(left, args[0]), self._seen(right, args[1].mT).mT
        return func(*args, **kwargs or {})

    def _seen(self, operand: str, x: Tensor) -> Tensor:
        for watcher in self._watchers.get(operand, ()):
            x = watcher(x)
        return x

    def require_two(self, who: str) -> None:
        """Refuse an attention that makes others.

        Raises:
            ModelError: It does.
        """
        if self._count != 2:
            raise ModelError(
                f"{who} makes {self._count} matrix products as it attends, not two (queries by "
                "keys, probabilities by values), so they cannot be told; leave --attention out"
            )
