"""Models larger than the card: blocks wait in host memory and come to the device in turn.

The device has room for two blocks. When one is wanted its copy is waited for, and the next one's
begins on a stream of its own, so that moving block b + 1 overlaps with computing on block b. A pass
that goes through the blocks in order reads each exactly once, whatever runs the blocks: the model's
own forward, by hooks, or a sweep, which says which block it wants before it quantizes its
weights. Host memory is pinned: only from there a copy runs beside the computation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

_ALIGNMENT = 256


class Offloaded:
    """Blocks of a model in host memory, at most two of them on the device.

    Args:
        blocks: On the host. Their parameters and buffers keep their identity; where their data lies
            changes.
        device: Where they are to run.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._tensors = [[*block.parameters(), *block.buffers()] for block in blocks]
        self._host = [_packed(tensors, device) for tensors in self._tensors]
        size = max(len(buffer) for buffer in self._host)
        self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._inside: list[int | None] = [None, None]
        """Which block each slot holds, or will when its copy is done."""
        self._bound: list[int | None] = [None, None]
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._paused = False
        self.copies = 0
        """How many blocks were copied so far."""
        for index, block in enumerate(blocks):
            self._bind(index, self._host[index])
            block.register_forward_pre_hook(partial(self._before, index))

    def bring(self, block: int) -> None:
        """Have a block on the device for what is launched from now on; begin to fetch the next.

        What was launched before may still run on the block that makes room: it is waited for, on
        the device.
        """
        if self._bound[slot := self._fetch(block)] == block:
            return
        if self._copying is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._copying)
        self._bind(block, self._slots[slot])
        self._bound[slot] = block
        self._fetch((block + 1) % len(self._host), keep=slot)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is fetched for blocks that are called, until the `with` block ends."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _before(self, block: int, *_: object) -> None:
        if not self._paused:
            self.bring(block)

    def _fetch(self, block: int, keep: int = 1) -> int:
        """The slot that holds a block or is being filled with it; not the one to keep."""
        if block in self._inside:
            return self._inside.index(block)
        slot = 1 - keep
        if (bound := self._bound[slot]) is not None:
            self._bind(bound, self._host[bound])
            self._bound[slot] = None
            if (other := self._bound[keep]) is not None:  # it may share weights with that
                self._bind(other, self._slots[keep])
        target = self._slots[slot][: len(self._host[block])]
        if self._copying is None:
            target.copy_(self._host[block])
        else:
            self._copying.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._copying):
                target.copy_(self._host[block], non_blocking=True)
        self._inside[slot] = block
        self.copies += 1
        return slot

    def _bind(self, block: int, buffer: Tensor) -> None:
        for tensor, place in _places(self._tensors[block]):
            tensor.data = buffer[place].view(tensor.dtype).view(tensor.shape)


def _packed(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The bytes of some tensors one behind the other, in pinned memory if the device is a GPU."""
    places = list(_places(tensors))
    size = places[-1][1].stop if places else 0
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, place in places:
        buffer[place].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return buffer


def _places(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, slice]]:
    start = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        yield tensor, slice(start, start + size)
        start += -(-size // _ALIGNMENT) * _ALIGNMENT
