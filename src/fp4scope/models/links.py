"""What blocks hand each other beside the hidden state, found by what is the same object.

A block may leave more than a hidden state: the keys and values that later blocks share, the tokens
that an indexer chose, what a router keeps. It is one more item of what the block returns, and an
argument of a later one; or it lies in a mapping that all blocks are handed. While a model runs its
own forward once, such a tensor is known by its identity. From then on it is *carried*: it belongs
to the state that goes from block to block, so that every state of a sweep has its own.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

from fp4scope.errors import ModelError

Path = tuple[Any, ...]
"""Keys that lead to a leaf: positions in tuples and lists, keys of mappings."""
OUTPUT, CALL = "output", "call"
_KEYWORDS = (1,)
"""Where a call (positional, by keyword) has the latter: a mapping that is no argument."""


class Axes(NamedTuple):
    """Where a tensor has its windows; their tokens, if it has any, are the axis behind.

    Attributes:
        windows: The axis of the windows.
        flat: Whether that is the axis of the tokens too: those of all windows, one behind the
            other.
    """

    windows: int
    flat: bool = False

    @classmethod
    def of_stream(cls, x: Tensor, tokens: int) -> "Axes | None":
        """Of the hidden state of one window of so many tokens; None where there is none."""
        pairs = zip(x.shape, x.shape[1:], strict=False)
        found = next((i for i, pair in enumerate(pairs) if pair == (1, tokens)), None)
        return None if found is None else cls(found)

    @classmethod
    def of_carried(cls, x: Tensor, tokens: int) -> "Axes | None":
        """Of anything else that belongs to one window: the first axis that can have windows."""
        if 1 in x.shape:
            return cls(x.shape.index(1))
        return cls(0, flat=True) if x.ndim and x.shape[0] == tokens else None

    def first(self, x: Tensor, windows: int) -> Tensor:
        """With the axis of so many windows in front, and that of the tokens behind it."""
        if self.flat:
            return x.unflatten(0, (windows, -1))
        return self._moved(x, self._pair(x), (0, 1))

    def back(self, x: Tensor) -> Tensor:
        """As the block has it."""
        return x.flatten(0, 1) if self.flat else self._moved(x, (0, 1), self._pair(x))

    def _pair(self, x: Tensor) -> tuple[int, ...]:
        return (self.windows, self.windows + 1)[: x.ndim - self.windows]

    def _moved(self, x: Tensor, source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
        if not self.windows:
            return x
        both = min(len(source), len(target))
        # Contiguous, since products may round strided tensors in another order.
        return x.movedim(source[:both], target[:both]).contiguous()


@dataclass(frozen=True)
class Carried:
    """Stands in a call where a carried tensor goes: its number."""

    slot: int


@dataclass(frozen=True)
class Shared:
    """Stands in a call where a mapping goes that blocks write into: every call has a fresh one.

    Attributes:
        empty: Of its kind, with nothing in it.
        entries: What the block finds in it, `Carried` where a tensor goes.
    """

    empty: MutableMapping[Any, Any]
    entries: Mapping[Any, Any]

    def fresh(self, function: Callable[[Any], Any]) -> MutableMapping[Any, Any]:
        """One with the entries, their leaves mapped."""
        found = copy(self.empty)
        for key, value in self.entries.items():
            found[key] = mapped(function, value)
        return found


@dataclass(frozen=True)
class Links:
    """What each block reads and leaves beside the hidden state.

    Attributes:
        stream: Axes of the hidden state.
        axes: Of every carried tensor.
        places: By block, what stands where in its call.
        reads: By block, the carried tensors that it looks at.
        writes: By block, those that it leaves, and where: in what it returns or was handed.
        alive: By block, those that a later block reads.
        bytes_per_token: Of a state as it enters each block, and behind the last.
    """

    stream: Axes
    axes: tuple[Axes, ...]
    places: tuple[Mapping[Path, Any], ...]
    reads: tuple[tuple[int, ...], ...]
    writes: tuple[Mapping[int, Path], ...]
    alive: tuple[frozenset[int], ...]
    bytes_per_token: tuple[float, ...]


class Tracer(TorchFunctionMode):
    """Looks on while the blocks of a model run once, each in its turn.

    It keeps no tensor alive that no later block is handed.

    Args:
        tokens: In the window.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self._stream: tuple[Axes, int] | None = None
        self._given = _Known()
        self._made = _Known()
        self._used: set[int] = set()
        self._mappings: list[dict[Path, MutableMapping[Any, Any]]] = []
        self._before: dict[Path, dict[Any, list[Any]]] = {}
        self._shared: set[int] = set()
        self._reads: list[dict[Path, Tensor]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        self._used.update(id(leaf) for _, leaf in leaves((args, kwargs)))
        return func(*args, **kwargs)

    def enter(self, hidden: Tensor, call: Any) -> None:  # noqa: ANN401
        """A block is called; `call` are its arguments without the hidden state."""
        if self._stream is None:
            axes = Axes.of_stream(hidden, self._tokens)
            assert axes is not None
            self._stream = axes, hidden.numel() * hidden.element_size()
        found = dict(leaves(call))
        tensors = {path: leaf for path, leaf in found.items() if isinstance(leaf, Tensor)}
        self._reads.append({path: x for path, x in tensors.items() if x in self._made})
        for path, x in tensors.items():
            if path not in self._reads[-1]:
                self._given.add(x, (CALL, *path))
        handed = {path: leaf for path, leaf in found.items() if isinstance(leaf, MutableMapping)}
        handed.pop(_KEYWORDS, None)
        self._mappings.append(handed)
        self._before = {path: _entries(m) for path, m in self._mappings[-1].items()}
        self._used.clear()

    def leave(self, output: Any) -> None:  # noqa: ANN401
        """It returned this."""
        block = len(self._reads) - 1
        used = {self._entry(path) for path, x in self._reads[-1].items() if id(x) in self._used}
        self._reads[-1] = {p: x for p, x in self._reads[-1].items() if self._entry(p) in used}
        left = [((OUTPUT, *path), leaf) for path, leaf in leaves(output)]
        for path, mapping in self._mappings[-1].items():
            before = self._before[path]
            for key, after in _entries(mapping).items():
                if not _same(before.get(key), after):
                    self._shared.add(id(mapping))
                    entry = leaves(mapping[key], inside=False)
                    left += [((CALL, *path, key, *inner), leaf) for inner, leaf in entry]
        for path, leaf in left:
            if isinstance(leaf, Tensor) and leaf not in self._given and leaf not in self._made:
                self._made.add(leaf, path, block)

    def _entry(self, path: Path) -> Path:
        """What is looked at as a whole: an entry of a mapping, or a tensor by itself."""
        inside = [p for p in self._mappings[-1] if path[: len(p)] == p]
        return path[: len(max(inside, key=len)) + 1] if inside else path

    def links(self) -> Links:
        """What was found.

        Raises:
            ModelError: A tensor that a later block reads cannot be told apart by windows.
        """
        assert self._stream is not None
        blocks = len(self._reads)
        tensors = {id(x): x for reads in self._reads for x in reads.values()}
        slots = {key: slot for slot, key in enumerate(tensors)}
        writes: list[dict[int, Path]] = [{} for _ in range(blocks)]
        made_in: list[int] = []
        for slot, x in enumerate(tensors.values()):
            path, block = self._made[x]
            writes[block][slot] = path
            made_in.append(block)
        reads = [tuple(dict.fromkeys(slots[id(x)] for x in r.values())) for r in self._reads]
        last = {slot: block for block, found in enumerate(reads) for slot in found}
        alive = [
            frozenset(slot for slot, made in enumerate(made_in) if made <= block < last[slot])
            for block in range(blocks)
        ]
        stream, size = self._stream
        sizes = [x.numel() * x.element_size() for x in tensors.values()]
        total = [size, *(size + sum(sizes[slot] for slot in found) for found in alive)]
        return Links(
            stream=stream,
            axes=tuple(map(self._axes, tensors.values())),
            places=tuple(self._places(block, slots) for block in range(blocks)),
            reads=tuple(reads),
            writes=tuple(writes),
            alive=tuple(alive),
            bytes_per_token=tuple(each / self._tokens for each in total),
        )

    def _axes(self, x: Tensor) -> Axes:
        axes = Axes.of_carried(x, self._tokens)
        if axes is None:
            raise ModelError(
                f"a block hands later ones a tensor of shape {tuple(x.shape)} in which windows of "
                f"{self._tokens} tokens cannot be told apart"
            )
        return axes

    def _places(self, block: int, slots: Mapping[int, int]) -> dict[Path, Any]:
        """What stands where in a block's call."""
        shared = {p: m for p, m in self._mappings[block].items() if id(m) in self._shared}
        places: dict[Path, Any] = {}
        entries: dict[Path, dict[Path, Any]] = {path: {} for path in shared}
        for path, x in self._reads[block].items():
            carried = Carried(slots[id(x)])
            inside = next((p for p in shared if path[: len(p)] == p), None)
            if inside is None:
                places[path] = carried
            else:
                entries[inside][path[len(inside) :]] = carried
        for path, mapping in shared.items():
            empty = copy(mapping)
            empty.clear()
            keys = {inner[0] for inner in entries[path]}
            found = {key: placed(mapping[key], _inside(entries[path], key)) for key in keys}
            places[path] = Shared(empty, found)
        return places


class _Known:
    """Tensors by their identity, as long as someone else keeps them."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Tensor], Path, int]] = {}

    def add(self, x: Tensor, path: Path, block: int = 0) -> None:
        self._found[id(x)] = weakref.ref(x), path, block

    def __contains__(self, x: Tensor) -> bool:
        found = self._found.get(id(x))
        return found is not None and found[0]() is x

    def __getitem__(self, x: Tensor) -> tuple[Path, int]:
        return self._found[id(x)][1:]


def leaves(value: Any, path: Path = (), *, inside: bool = True) -> Iterator[tuple[Path, Any]]:  # noqa: ANN401
    """What is in nested tuples and lists, and mappings themselves and `inside`, with where."""
    if isinstance(value, tuple | list):
        for place, part in enumerate(value):
            yield from leaves(part, (*path, place), inside=inside)
        return
    yield path, value
    if inside and isinstance(value, MutableMapping):
        for key, part in [*value.items()]:
            yield from leaves(part, (*path, key))


def mapped(function: Callable[[Any], Any], value: Any) -> Any:  # noqa: ANN401
    """The same structure with every leaf mapped; lists become tuples."""
    if isinstance(value, tuple | list):
        return tuple(mapped(function, part) for part in value)
    if isinstance(value, dict):
        return {key: mapped(function, part) for key, part in value.items()}
    return function(value)


def placed(value: Any, places: Mapping[Path, Any]) -> Any:  # noqa: ANN401
    """A structure with other things at some paths."""
    if () in places:
        return places[()]
    if not places or not isinstance(value, tuple | list | dict):
        return value
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    found = {key: placed(part, _inside(places, key)) for key, part in parts}
    return found if isinstance(value, dict) else tuple(found.values())


def at(path: Path, value: Any) -> Any:  # noqa: ANN401
    """What lies there."""
    for key in path:
        value = value[key]
    return value


def _entries(mapping: MutableMapping[Any, Any]) -> dict[Any, list[Any]]:
    return {key: [x for _, x in leaves(value, inside=False)] for key, value in mapping.items()}


def _same(one: list[Any] | None, other: list[Any]) -> bool:
    """Whether they hold the same objects."""
    return one is not None and [*map(id, one)] == [*map(id, other)]


def _inside(places: Mapping[Path, Any], key: Any) -> dict[Path, Any]:  # noqa: ANN401
    return {tuple(rest): leaf for (first, *rest), leaf in places.items() if first == key}
