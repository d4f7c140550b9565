"""What attention multiplies, reached where `transformers` calls an attention function.

Every attention of `transformers` ends in one call, attention(module, query, key, value, ...), of a
function that it looks up by name: eager, `sdpa` or another. So while someone watches, something
else stands in the place of that name, which hands what is watched to its watchers and then calls
the same function. Keys and values are there as a cache has them: behind norms and rotary
embeddings, before they are repeated for groups of queries. An attention with a latent (MLA) caches
the latent instead, which enters the linear that makes keys and values of it.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from fp4scope.operands.adapters import After, Before, Input, Operand, Product
from fp4scope.operands.adapters import of_module as linears
from fp4scope.operands.multiplied import PV, QK, Multiplications

KEYS, VALUES, LATENT = "key_cache", "value_cache", "latent_cache"
_TABLE, _EAGER = "ALL_ATTENTION_FUNCTIONS", "eager_attention_forward"


def attentions(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside one that call an attention function, by name."""
    for name, inner in module.named_modules():
        if _names_of(type(inner)) is not None:
            yield name, inner


def cached(module: nn.Module) -> tuple[str, ...]:
    """What an attention module writes to a cache: keys and values, or the latent of both."""
    if _names_of(type(module)) is None:
        return ()
    return (KEYS, VALUES) if _expander(module) is None else (LATENT,)


def shared_caches(model: nn.Module, forward: Callable[[], object]) -> Iterator[tuple[str, str]]:
    """Pairs of attention modules of which the second attends to what the first has cached."""
    seen: dict[int, tuple[str, Tensor]] = {}  # with the tensors, so that no address comes again
    pairs: dict[tuple[str, str], None] = {}

    def see(name: str, x: Tensor) -> Tensor:
        first, _ = seen.setdefault(x.data_ptr(), (name, x))
        if first != name:
            pairs[first, name] = None
        return x

    with ExitStack() as stack:
        for name, module in attentions(model):
            calls = _Calls.at(_names_of(type(module)) or {})
            stack.callback(calls.hold(module, KEYS, partial(see, name)))
        forward()
    yield from pairs


def operand_of(module: nn.Module, leaf: str) -> Operand | None:
    """The operand of this name in an attention module, if it has one."""
    if leaf in (*QK, *PV) and _names_of(type(module)) is not None:
        return _Called(module, leaf)
    if leaf not in cached(module):
        return None
    expander = _expander(module)
    return _Called(module, leaf) if expander is None else _Latent(expander)


class _Called(Operand):
    """A tensor that an attention function is called with, or makes and multiplies.

    Keys and values are (batch, heads, tokens, head_dim), those that are multiplied end in the axis
    that is summed over.
    """

    def __init__(self, module: Any, leaf: str) -> None:  # noqa: ANN401
        self._module, self._leaf = module, leaf

    @property
    def cols(self) -> int:
        return 0 if self._leaf in PV else getattr(self._module, "head_dim", 0) or 0

    def watch(self, name: str, before: Before | None, after: After | None) -> Callable[[], None]:
        assert after is None
        names = _names_of(type(self._module))
        assert names is not None
        return _Calls.at(names).hold(self._module, self._leaf, partial(_seen, name, before))


class _Latent(Operand):
    """The latent that keys and values are made of: what enters a linear, (batch, tokens, rank)."""

    def __init__(self, expander: Product) -> None:
        self._expander = expander

    @property
    def cols(self) -> int:
        return self._expander.cols

    def watch(self, name: str, before: Before | None, after: After | None) -> Callable[[], None]:
        return self._expander.watch(name, before, after)


def _seen(name: str, before: Before | None, x: Tensor) -> Tensor:
    found = None if before is None else before(name, Input(x))
    return x if found is None else found


class _Calls:
    """Stands in the place of a Python module's table of attention functions, while someone watches.

    Of others' modules it calls the same functions with the same arguments.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._own = {name: names[name] for name in (_TABLE, _EAGER) if name in names}
        self._watchers: dict[nn.Module, dict[str, list[Callable[[Tensor], Tensor]]]] = {}

    @classmethod
    def at(cls, names: dict[str, Any]) -> "_Calls":
        """What stands there, or is to."""
        current = names[_TABLE]
        return current if isinstance(current, cls) else cls(names)

    def hold(
        self, module: nn.Module, leaf: str, watcher: Callable[[Tensor], Tensor]
    ) -> Callable[[], None]:
        """Watch a tensor of every call of a module, until what is returned is called."""
        if not self._watchers:
            self._names[_TABLE] = self
            if not hasattr(self._own[_TABLE], "get_interface"):  # older ones look up eager by name
                self._names[_EAGER] = self._watched(self._own[_EAGER])
        own = self._watchers.setdefault(module, {})
        own.setdefault(leaf, []).append(watcher)

        def release() -> None:
            own[leaf].remove(watcher)
            if not own[leaf]:
                del own[leaf]
            if not own:
                del self._watchers[module]
            if not self._watchers:
                self._names.update(self._own)

        return release

    def get_interface(self, name: str, default: Any) -> Any:  # noqa: ANN401
        return self._watched(self._own[_TABLE].get_interface(name, default))

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        return self._watched(self._own[_TABLE][name])

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._own[_TABLE], name)

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            *args: Any,  # noqa: ANN401
            **kwargs: Any,  # noqa: ANN401
        ) -> Any:  # noqa: ANN401
            own = self._watchers.get(module, {})
            for watcher in own.get(KEYS, ()):
                key = watcher(key)
            for watcher in own.get(VALUES, ()):
                value = watcher(value)
            if own.keys().isdisjoint((*QK, *PV)):
                return function(module, query, key, value, *args, **kwargs)
            with Multiplications(own) as made:
                found = function(module, query, key, value, *args, **kwargs)
            made.require_two(type(module).__name__)
            return found

        return call


def _expander(module: nn.Module) -> Product | None:
    """The linear that makes keys and values of a latent, where an attention has one."""
    rank = getattr(module, "kv_lora_rank", None)
    for inner in module.children() if isinstance(rank, int) else ():
        for _, product in linears(inner):
            if product.cols == rank:
                return product
    return None


@cache
def _names_of(kind: type[nn.Module]) -> dict[str, Any] | None:
    """Where a class's forward looks up attention functions; None of one that does not."""
    code = inspect.unwrap(kind.forward)
    names = getattr(code, "__globals__", {})
    calls = _TABLE in getattr(getattr(code, "__code__", None), "co_names", ())
    return names if calls and _TABLE in names else None
