"""Where a model multiplies an input by a weight, and how its operands are reached.

What is quantized are the two operands of a matrix product. Most products are modules of their own,
`nn.Linear`; GPT-2's `Conv1D` is one with its weight transposed. The experts of a block lie in one
tensor, and their products run inside a module (`experts`). A `Product` hides this: its weight has
its outputs as rows and the axis along which it is summed last, wherever it lies in the model, and a
watcher sees the input and the output of every call of the product, whatever called it. Nothing
above knows modules, hooks or transpositions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Input(NamedTuple):
    """What enters a product in one call.

    Attributes:
        x: Of experts, the rows of the first, then those of the second, and so on.
        ends: Of experts: where the rows of each end.
    """

    x: Shaped[Tensor, "*batch cols"]
    ends: Int[Tensor, " experts"] | None = None

    @property
    def counts(self) -> Int[Tensor, " experts"]:
        """How many rows each expert has."""
        assert self.ends is not None
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def by_row(self, values: Shaped[Tensor, " experts"]) -> Shaped[Tensor, " rows"]:
        """A value of each expert for each of its rows."""
        return values.repeat_interleave(self.counts, output_size=len(self.x))

    def where(self, experts: Sequence[int], one: Tensor, other: Tensor) -> Tensor:
        """Rows of `one` for some experts, of `other` for the rest."""
        assert self.ends is not None
        chosen = torch.zeros(len(self.ends), dtype=torch.bool)
        chosen[list(experts)] = True
        return torch.where(self.by_row(chosen.to(self.x.device))[:, None], one, other)


Before = Callable[[str, Input], Tensor | None]
"""Name of a product and what enters it, to what enters in its place; None changes nothing."""
After = Callable[[str, Input, Tensor], Tensor | None]
"""Name, what entered and what leaves, to what leaves in its place; None changes nothing."""


class Operand(ABC):
    """A tensor that can be watched and replaced on its way into a product."""

    experts: int = 1
    """How many kinds of rows it has, each with what it meets."""

    @property
    @abstractmethod
    def cols(self) -> int:
        """Its last axis, along which blocks of a format run; 0 where that is the window's."""

    @abstractmethod
    def watch(self, name: str, before: Before | None, after: After | None) -> Callable[[], None]:
        """Call these around every use of it, until what is returned is called.

        Of several that watch, the first sees what the model computes, the next what the first made
        of it. `after` is told what `before` would be told at the same place.
        """


class Product(Operand):
    """One matrix product of a model: x (*batch, cols) to x @ weight^T (*batch, rows).

    This one is an `nn.Linear`; adapters of other places differ from it. A product of experts has a
    weight of each, (experts, rows, cols), and every row of x meets that of one.
    """

    _code = nn.Linear.forward

    def __init__(self, module: Any, key: str = "weight") -> None:  # noqa: ANN401
        self._module, self._key = module, key

    @property
    def identity(self) -> tuple[int, str]:
        """The same for two names of one product, where blocks share a module."""
        return id(self._module), self._key

    @property
    def parameter(self) -> nn.Parameter:
        """The object that holds the weight, in the model's own shape."""
        return getattr(self._module, self._key)

    @property
    def bias(self) -> Tensor | None:
        return self._module.bias

    @property
    def kind(self) -> type:
        """The class whose code runs it."""
        return type(self._module)

    @property
    def is_standard(self) -> bool:
        """Whether its code is known to do no more than the product and to add a bias."""
        return self.kind.forward is type(self)._code and "forward" not in vars(self._module)

    def __call__(self, x: Shaped[Tensor, "*batch cols"]) -> Tensor:
        """What the model's own code gives for this input."""
        return self._module(x)

    def run(self, entering: Input) -> Shaped[Tensor, "*batch rows"]:
        """The same where nobody watches."""
        return self._module.forward(entering.x)

    def shaped(self, parameter: nn.Parameter) -> Shaped[Tensor, "*experts rows cols"]:
        """What `parameter`, or one in its place, holds, summed over the last axis. No copy."""
        return parameter.detach()

    def as_parameter(self, weight: Shaped[Tensor, "*experts rows cols"]) -> nn.Parameter:
        """A weight as an object that can stand in the place of `parameter`."""
        return nn.Parameter(weight, requires_grad=False)

    def put(self, parameter: nn.Parameter) -> Callable[[], None]:
        """Compute with this instead; what is returned puts back what was there, the same object."""
        parameters = self._module._parameters
        undo = partial(parameters.__setitem__, self._key, parameters[self._key])
        parameters[self._key] = parameter
        return undo

    def watch(self, name: str, before: Before | None, after: After | None) -> Callable[[], None]:
        entered: list[Input] = []

        def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            entering = Input(args[0])
            if after is not None:
                entered.append(entering)
            found = None if before is None else before(name, entering)
            return None if found is None else (found, *args[1:])

        def leave(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
            assert after is not None
            return after(name, entered.pop(), output)

        undo = ExitStack()
        undo.callback(self._module.register_forward_pre_hook(enter).remove)
        if after is not None:
            undo.callback(self._module.register_forward_hook(leave).remove)
        return undo.close

    @property
    def weight(self) -> Shaped[Tensor, "*experts rows cols"]:
        """What `parameter` holds."""
        return self.shaped(self.parameter)

    def times(
        self, entering: Input, weight: Shaped[Tensor, "*experts rows cols"]
    ) -> Shaped[Tensor, "*batch rows"]:
        """The product alone, with any weight."""
        return entering.x @ weight.T

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.weight.shape[-2]

    @property
    def cols(self) -> int:
        """Inputs: the axis along which blocks of a format run."""
        return self.weight.shape[-1]


class _Conv1D(Product):
    """GPT-2's: the axis that is summed over comes first in its parameter."""

    _code = Conv1D.forward

    def shaped(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().T

    def as_parameter(self, weight: Tensor) -> nn.Parameter:
        return nn.Parameter(weight.T.contiguous(), requires_grad=False)


_ADAPTERS = {nn.Linear: Product, Conv1D: _Conv1D}


def of_module(module: nn.Module) -> Iterator[tuple[str, Product]]:
    """The product that a module is, under the name ""."""
    for kind, adapter in _ADAPTERS.items():
        if isinstance(module, kind) and hasattr(module, "weight"):
            yield "", adapter(module)
            return
