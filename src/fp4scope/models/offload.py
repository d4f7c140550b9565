"""Models larger than the card: blocks wait on the host and come to the device in turn.

The device has room for two blocks. When one is wanted its copy is waited for, and the next one's
begins on a stream of its own, so that moving block b + 1 overlaps with computing on block b. A pass
that goes through the blocks in order reads each exactly once, whatever runs the blocks: the model's
own forward, by hooks, or a sweep, which says which block it wants before it quantizes its
weights. They wait in pinned memory, since only from there a copy runs beside the computation; or in
files, from where a thread reads block b + 2 into pinned memory meanwhile.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fp4scope.models.ondisk import Files
from fp4scope.models.pinned import host_bytes
from fp4scope.models.pool import Pool, bind
from fp4scope.models.shelf import Shelf

_ALIGNMENT = 256


class Offloaded:
    """Blocks of a model on the host, at most two of them on the device.

    Args:
        blocks: On the host. Their parameters and buffers keep their identity; where their data lies
            changes.
        device: Where they are to run.
        keeper: Where they wait; by default in memory of this process.
        why: Why they wait there, for the user.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        keeper: Files | Pool | None = None,
        why: str = "",
    ) -> None:
        self._device = device
        self.why = why
        self._tensors = [[*block.parameters(), *block.buffers()] for block in blocks]
        self._keeper = keeper or Pool()
        self._host: _Host = (
            _OnDisk(self._tensors, device, self._keeper)
            if isinstance(self._keeper, Files)
            else _InMemory(self._tensors, device, self._keeper)
        )
        self._slots = [
            torch.empty(self._host.largest, dtype=torch.uint8, device=device) for _ in range(2)
        ]
        self._inside: list[int | None] = [None, None]
        """Which block each slot holds, or will when its copy is done."""
        self._bound: list[int | None] = [None, None]
        self._coming: list[Future[None] | None] = [None, None]
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1) if isinstance(self._keeper, Files) else None
        self._paused = False
        self.copies = 0
        """How many blocks were copied so far."""
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._before, index))

    @property
    def kind(self) -> str:
        """`disk` or `yes`, as it is asked for."""
        return "yes" if self._thread is None else "disk"

    @property
    def size_bytes(self) -> int:
        """Of all blocks: what a pass copies to the device."""
        return sum(self._host.sizes)

    @property
    def largest_bytes(self) -> int:
        """Of the largest block: the device holds two."""
        return self._host.largest

    @property
    def scratch_bytes(self) -> int:
        """Of these, what no file had as it is wanted."""
        return self._host.scratch_bytes

    @property
    def shelf(self) -> Shelf | None:
        """Where other processes of this host find the blocks."""
        return self._keeper.shelf

    @property
    def place(self) -> str:
        """Where blocks wait."""
        return "in host memory" if self._thread is None else "on disk"

    def bring(self, block: int) -> None:
        """Have a block on the device for what is launched from now on; begin to fetch the next.

        What was launched before may still run on the block that makes room: it is waited for, on
        the device.

        Raises:
            OutputError: It cannot be read.
        """
        if self._bound[slot := self._fetch(block)] == block:
            return
        if (coming := self._coming[slot]) is not None:
            coming.result()
            self._coming[slot] = None
        if self._copying is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._copying)
        self._bind(block, slot)
        count = len(self._tensors)
        self._fetch((block + 1) % count, keep=slot)
        self._soon(self._host.read, (block + 2) % count)

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
            self._host.bind(bound)
            self._bound[slot] = None
            if (other := self._bound[keep]) is not None:  # it may share weights with that
                self._bind(other, keep)
        after = None
        if self._copying is not None:
            after = torch.cuda.current_stream(self._device).record_event()
        self._coming[slot] = self._soon(self._fill, slot, block, after)
        self._inside[slot] = block
        self.copies += 1
        return slot

    def _soon(self, do: Callable[..., Any], *args: Any) -> Future[Any] | None:  # noqa: ANN401
        """What may wait for a disk is done by a thread, one thing after the other."""
        if self._thread is not None:
            return self._thread.submit(do, *args)
        do(*args)
        return None

    def _fill(self, slot: int, block: int, after: torch.cuda.Event | None) -> None:
        data = self._host.read(block)
        target = self._slots[slot][: len(data)]
        if self._copying is None:
            target.copy_(data)
            return
        with torch.cuda.stream(self._copying):
            if after is not None:
                self._copying.wait_event(after)
            target.copy_(data, non_blocking=True)
            self._host.copied[block] = self._copying.record_event()

    def _bind(self, block: int, slot: int) -> None:
        bind(_places(self._tensors[block]), self._slots[slot])
        self._bound[slot] = block


class _Host(ABC):
    """Where blocks wait.

    Attributes:
        sizes: Bytes of each block, packed.
        largest: Of the largest.
        scratch_bytes: In a file of our own.
        copied: By block, what tells that its last copy to the device is done.
    """

    def __init__(self, blocks: Sequence[Sequence[Tensor]]) -> None:
        self._blocks = blocks
        self.sizes = [max((p.stop for _, p in _places(tensors)), default=0) for tensors in blocks]
        self.largest = max(self.sizes)
        self.scratch_bytes = 0
        self.copied: dict[int, Any] = {}

    @abstractmethod
    def read(self, block: int) -> Tensor:
        """The bytes of its tensors one behind the other, to be copied from."""

    @abstractmethod
    def bind(self, block: int) -> None:
        """Give its tensors the values that they have here."""


class _InMemory(_Host):
    """Packed in buffers, pinned if the device is a GPU."""

    def __init__(
        self, blocks: Sequence[Sequence[Tensor]], device: torch.device, pool: Pool
    ) -> None:
        super().__init__(blocks)
        self._buffers = pool.buffers([list(_places(tensors)) for tensors in blocks], device)

    def read(self, block: int) -> Tensor:
        return self._buffers[block]

    def bind(self, block: int) -> None:
        bind(_places(self._blocks[block]), self._buffers[block])


class _OnDisk(_Host):
    """In files; two blocks at a time are read into buffers, pinned if the device is a GPU.

    Only `bind` is for other threads than the one that reads.
    """

    def __init__(
        self, blocks: Sequence[Sequence[Tensor]], device: torch.device, files: Files
    ) -> None:
        super().__init__(blocks)
        self._files = files
        every = list({id(t): t for tensors in blocks for t in tensors}.values())
        for tensor, extent in zip(every, files.extents(every), strict=True):
            if extent is None:
                tensor.data = files.stored(tensor)
        self.scratch_bytes = files.written
        self._mapped = [[t.data for t in tensors] for tensors in blocks]
        found = dict(zip(map(id, every), files.extents(every), strict=True))
        self._extents = [[found[id(t)] for t in tensors] for tensors in blocks]
        assert all(found[id(t)] or not t.nbytes for t in every)
        self._buffers = [host_bytes(self.largest, device) for _ in range(2)]
        self._holds: list[int | None] = [None, None]
        self._last = 0

    def read(self, block: int) -> Tensor:
        if block not in self._holds:
            buffer = 1 - self._last
            before, self._holds[buffer] = self._holds[buffer], None
            if before is not None and (copied := self.copied.pop(before, None)) is not None:
                copied.synchronize()
            into = self._buffers[buffer]
            places = [place for _, place in _places(self._blocks[block])]
            wanted = zip(self._extents[block], places, strict=True)
            self._files.read([(e, into[place]) for e, place in wanted if e is not None])
            self._holds[buffer] = block
        self._last = self._holds.index(block)
        return self._buffers[self._last][: self.sizes[block]]

    def bind(self, block: int) -> None:
        for tensor, mapped in zip(self._blocks[block], self._mapped[block], strict=True):
            tensor.data = mapped


def _places(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, slice]]:
    start = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        yield tensor, slice(start, start + size)
        start += -(-size // _ALIGNMENT) * _ALIGNMENT
