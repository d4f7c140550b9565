"""The products of a model: found by their names, and watched."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

from fp4scope.errors import UnitError
from fp4scope.operands import adapters, attention, experts
from fp4scope.operands.adapters import After, Before, Operand, Product
from fp4scope.recipes import expert_of


def products(module: nn.Module) -> Iterator[tuple[str, Product]]:
    """Every product inside a module, by its name there: what ignore lists take."""
    for name, inner in module.named_modules():
        for leaf, product in _of(inner).items():
            yield f"{name}.{leaf}".strip("."), product


def product_at(model: nn.Module, name: str) -> Product:
    """The product of this name.

    Raises:
        UnitError: There is none.
    """
    holder, _, leaf = name.rpartition(".")
    for path, key in ((name, ""), (holder, leaf)):
        try:
            found = _of(model.get_submodule(path)).get(key)
        except AttributeError:
            continue
        if found is not None:
            return found
    raise UnitError(f"the model has no linear called {name!r}")


def operand_at(model: nn.Module, name: str) -> Operand:
    """What is watched under this name: a product's input, or what attention multiplies.

    Raises:
        UnitError: There is none.
    """
    holder, _, leaf = name.rpartition(".")
    try:
        found = attention.operand_of(model.get_submodule(holder), leaf)
    except AttributeError:
        found = None
    return product_at(model, name) if found is None else found


def place_of(model: nn.Module, site: str) -> tuple[str, int | None]:
    """The product that a site is; where it is one of the experts in it, also its number.

    Raises:
        UnitError: There is none.
    """
    if (alone := expert_of(site)) is not None:
        try:
            model.get_submodule(site.rpartition(".")[0])
        except AttributeError:
            name, expert = alone
            if 1 < product_at(model, name).experts > expert:
                return alone
    operand_at(model, site)
    return site, None


def _of(module: nn.Module) -> dict[str, Product]:
    return {**dict(adapters.of_module(module)), **dict(experts.of_module(module))}


@contextmanager
def watched(
    products: Mapping[str, Operand], before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Call these around every call of these products, or use of what attention multiplies."""
    with ExitStack() as stack:
        for name, product in products.items():
            stack.callback(product.watch(name, before, after))
        yield
