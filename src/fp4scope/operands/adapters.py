"""Where a model multiplies an input by a weight, and how its operands are reached.

What is quantized are the two operands of a matrix product. Most products are modules of their own,
`nn.Linear`; GPT-2's `Conv1D` is one with its weight transposed. Others, such as the experts of a
block in one tensor, run inside a module that holds several. A `Product` hides this: its weight has
its outputs as rows and the axis along which it is summed last, wherever it lies in the model, and a
watcher sees the input and the output of every call of the product, whatever called it. Nothing
above knows modules, hooks or transpositions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fp4scope.errors import UnitError

Before = Callable[[str, Tensor], Tensor | None]
"""Name of a product and what enters it, to what enters in its place; None changes nothing."""
After = Callable[[str, Tensor, Tensor], Tensor | None]
"""Name, what entered and what leaves, to what leaves in its place; None changes nothing."""


class Product:
    """One matrix product of a model: x (*batch, cols) to x @ weight^T (*batch, rows).

    This one is an `nn.Linear`; adapters of other places differ from it.
    """

    _code = nn.Linear.forward

    def __init__(self, module: Any) -> None:  # noqa: ANN401
        self._module = module

    @property
    def parameter(self) -> nn.Parameter:
        """The object that holds the weight, in the model's own shape."""
        return self._module.weight

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

    def shaped(self, parameter: nn.Parameter) -> Shaped[Tensor, "rows cols"]:
        """What `parameter`, or one in its place, holds, summed over the last axis. No copy."""
        return parameter.detach()

    def as_parameter(self, weight: Shaped[Tensor, "rows cols"]) -> nn.Parameter:
        """A weight as an object that can stand in the place of `parameter`."""
        return nn.Parameter(weight, requires_grad=False)

    def put(self, parameter: nn.Parameter) -> Callable[[], None]:
        """Compute with this instead; what is returned puts back what was there, the same object."""
        parameters = self._module._parameters
        undo = partial(parameters.__setitem__, "weight", parameters["weight"])
        parameters["weight"] = parameter
        return undo

    def watch(self, name: str, before: Before | None, after: After | None) -> Callable[[], None]:
        """Call these around every call of the product, until what is returned is called.

        Of several that watch, the first sees what the model computes, the next what the first made
        of it. `after` is told what `before` would be told at the same place.
        """
        entered: list[Tensor] = []

        def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if after is not None:
                entered.append(args[0])
            found = None if before is None else before(name, args[0])
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
    def weight(self) -> Shaped[Tensor, "rows cols"]:
        """What `parameter` holds."""
        return self.shaped(self.parameter)

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.weight.shape[0]

    @property
    def cols(self) -> int:
        """Inputs: the axis along which blocks of a format run."""
        return self.weight.shape[1]


class _Conv1D(Product):
    """GPT-2's: the axis that is summed over comes first in its parameter."""

    _code = Conv1D.forward

    def shaped(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().T

    def as_parameter(self, weight: Tensor) -> nn.Parameter:
        return nn.Parameter(weight.T.contiguous(), requires_grad=False)


_ADAPTERS = {nn.Linear: Product, Conv1D: _Conv1D}


def products(module: nn.Module) -> Iterator[tuple[str, Product]]:
    """Every product inside a module, by its name there: what ignore lists take."""
    for name, inner in module.named_modules():
        found = _adapted(inner)
        if found is not None:
            yield name, found


def product_at(model: nn.Module, name: str) -> Product:
    """The product of this name.

    Raises:
        UnitError: There is none.
    """
    try:
        found = _adapted(model.get_submodule(name))
    except AttributeError:
        found = None
    if found is None:
        raise UnitError(f"the model has no linear called {name!r}")
    return found


def _adapted(module: nn.Module) -> Product | None:
    for kind, adapter in _ADAPTERS.items():
        if isinstance(module, kind) and hasattr(module, "weight"):
            return adapter(module)
    return None


@contextmanager
def watched(
    products: Mapping[str, Product], before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Call these around every call of these products, until the `with` block ends."""
    with ExitStack() as stack:
        for name, product in products.items():
            stack.callback(product.watch(name, before, after))
        yield
