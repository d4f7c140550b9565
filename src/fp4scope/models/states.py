"""What one block hands the next, on some windows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Shaped
from torch import Tensor


@dataclass(frozen=True)
class State:
    """What one block hands the next, on some windows: axis 0 of every tensor has them.

    Attributes:
        hidden: The hidden state; it may have more than one stream.
        carried: What later blocks read beside it, by number (`Links`).
    """

    hidden: Shaped[Tensor, "windows tokens *hidden"]
    carried: Mapping[int, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """The same with every tensor mapped."""
        carried = {slot: function(x) for slot, x in self.carried.items()}
        return State(function(self.hidden), carried)

    def some(self, windows: slice) -> "State":
        """The same on some of its windows."""
        return self.map(lambda x: x[windows])

    def apart(self, count: int) -> "list[State]":
        """A batch of so many states, each on the same number of windows."""
        each = len(self.hidden) // count
        return [self.some(slice(i * each, (i + 1) * each)) for i in range(count)]


def together(states: Sequence[State], slots: Collection[int], copy: bool = True) -> State:
    """States one behind the other, with what they carry of this.

    Without `copy` hidden states that lie so already stay where they are.
    """
    carried = {slot: torch.cat([state.carried[slot] for state in states]) for slot in slots}
    hidden = [state.hidden for state in states]
    joined = None if copy else _adjacent(hidden)
    return State(torch.cat(hidden) if joined is None else joined, carried)


def _adjacent(parts: Sequence[Tensor]) -> Tensor | None:
    """Parts that follow each other in memory as one tensor, else None."""
    first, place = parts[0], parts[0].storage_offset()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.storage_offset() == place):
            return None
        place += part.numel()
    shape = sum(len(part) for part in parts), *first.shape[1:]
    # Not strides of the first: along an axis with one entry they may be any.
    strides = torch.empty(shape, device="meta").stride()
    return first.as_strided(shape, strides)
