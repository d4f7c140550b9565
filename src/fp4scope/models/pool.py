"""Host memory in which blocks wait: of this process, or once for several of its host."""

import mmap
import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fp4scope.models.pinned import host_bytes, pinned
from fp4scope.models.shelf import Beside, Shelf, same

Places = Sequence[tuple[Tensor, slice]]
"""The tensors of a block, and where each lies in its buffer."""

_NAME = "fp4scope"


def can_share() -> bool:
    """Whether this system has memory that is like a file, which other processes open.

    It is tried: sandboxes refuse what the system would have.
    """
    if not hasattr(os, "memfd_create"):
        return False
    try:
        file = os.memfd_create(_NAME)
    except OSError:
        return False
    try:
        os.close(os.open(f"/proc/self/fd/{file}", os.O_RDWR))
    except OSError:
        return False
    finally:
        os.close(file)
    return True


class Pool:
    """Buffers, each with the tensors of a block.

    Args:
        shared: Whether others of this host are to map them too, where that can be.
        shelf: Of another process with the same model.
    """

    def __init__(self, *, shared: bool = False, shelf: Shelf | None = None) -> None:
        self._shared = shared and can_share()
        self._beside = Beside.opened(shelf)
        self.shelf: Shelf | None = None
        """Where others find the buffers; None if they do not."""

    @property
    def takes(self) -> bool:
        """Whether it is to be given tensors as they are made."""
        return self._beside is not None

    def kept(self, tensor: Tensor) -> Tensor:
        """A tensor, or what another process has of the same bytes."""
        found = None if self._beside is None else self._beside.like(tensor)
        return tensor if found is None else found

    def buffers(self, blocks: Sequence[Places], device: torch.device) -> list[Tensor]:
        """One for each block, with its tensors, pinned if the device is a GPU.

        As each is filled, its tensors show it, so that what they had is given back.
        """
        page = mmap.ALLOCATIONGRANULARITY
        sizes = [max((place.stop for _, place in places), default=0) for places in blocks]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // page) * page)
        own = self._mapped(starts[-1]) if self._shared and starts[-1] else None
        memory = None if own is None else own[1]
        there = None if self._beside is None else self._beside.bytes
        if there is not None and len(there) != starts[-1]:
            there = None
        found = []
        for places, start, size in zip(blocks, starts, sizes, strict=False):
            buffer = None if there is None else _known(there[start : start + size], places, device)
            if buffer is None and memory is not None:
                buffer = memory[start : start + size]
                _fill(buffer, places)
                if not pinned(buffer, device):
                    memory = buffer = None  # such memory cannot be pinned here
            if buffer is None:
                _fill(buffer := host_bytes(size, device), places)
            bind(places, buffer)
            found.append(buffer)
        if own is not None and memory is not None:
            within = zip(starts, blocks, strict=False)
            places = [(start + p.start, p.stop - p.start) for start, b in within for _, p in b]
            self.shelf = Shelf.of(own[0].file, places, shared=True)
        return found

    def _mapped(self, size: int) -> tuple[Beside, Tensor] | None:
        """Memory of that size that others can map, or nothing where a limit forbids it."""
        file = os.memfd_create(_NAME)
        try:
            os.truncate(file, size)
        except OSError:
            os.close(file)
            return None
        try:
            self._own = Beside(Shelf.of(file, (), shared=True), file)
        except OSError:  # it has closed the file
            return None
        return self._own, self._own.bytes


def bind(places: Iterable[tuple[Tensor, slice]], buffer: Tensor) -> None:
    """Have tensors show a buffer, each at its place."""
    for tensor, place in places:
        tensor.data = buffer[place].view(tensor.dtype).view(tensor.shape)


def _known(buffer: Tensor, places: Places, device: torch.device) -> Tensor | None:
    """A buffer of another process, if it has these tensors and can be pinned."""
    data = ((buffer[p], t.detach().reshape(-1).view(torch.uint8)) for t, p in places)
    return buffer if all(same(*pair) for pair in data) and pinned(buffer, device) else None


def _fill(buffer: Tensor, places: Places) -> None:
    for tensor, place in places:
        buffer[place].view(tensor.dtype).view(tensor.shape).copy_(tensor)
