"""What one process keeps of a model for others of its host: a file, or memory that is like one.

A `Shelf` says where that is, and travels. Who loads the same model in another process looks there
for each tensor that it has made, and keeps the shelf's bytes instead if they are the same: a host
has them once. Nothing is believed of a shelf: what is not there, or differs, is kept as without
one.
"""

import mmap
import os
import stat
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_PROBE = 64
"""Bytes that are compared before all are."""


class Shelf(NamedTuple):
    """Where a process keeps tensors.

    Attributes:
        path: Of the open file, by the process that has it.
        identity: Its device, inode and bytes: a process of that number elsewhere has another.
        places: Where each tensor begins, and its bytes.
        shared: Whether it is memory, which a GPU copies from as it is mapped.
    """

    path: str
    identity: tuple[int, int, int]
    places: tuple[tuple[int, int], ...]
    shared: bool

    @classmethod
    def of(cls, file: int, places: Sequence[tuple[int, int]], *, shared: bool) -> "Shelf":
        """That of an open file of this process."""
        path = f"/proc/{os.getpid()}/fd/{file}"
        return cls(path, _identity(os.fstat(file)), tuple(places), shared)


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_dev, found.st_ino, found.st_size


class Beside:
    """A shelf of another process, mapped.

    Attributes:
        file: Its descriptor here.
        bytes: All of it.
    """

    def __init__(self, shelf: Shelf, file: int) -> None:
        self.file = file
        weakref.finalize(self, os.close, file)
        size = shelf.identity[-1]
        # What is written to a private mapping stays here; only a shared one is pinned as it is.
        how = mmap.MAP_SHARED if shelf.shared else mmap.MAP_PRIVATE
        mapped = mmap.mmap(file, size, flags=how, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self.bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self._places, self._next = shelf.places, 0

    @classmethod
    def opened(cls, shelf: Shelf | None) -> "Beside | None":
        """It, if it can be reached from here."""
        if shelf is None:
            return None
        try:
            found = os.stat(shelf.path)  # first: to open a pipe waits
            if not stat.S_ISREG(found.st_mode) or _identity(found) != shelf.identity:
                return None
            return cls(shelf, os.open(shelf.path, os.O_RDWR))
        except (OSError, ValueError):
            return None

    def like(self, tensor: Tensor) -> Tensor | None:
        """A tensor of the shelf with the same bytes, if it has one.

        Tensors are asked for about as the shelf got them, so the search begins behind the last.
        """
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        count = len(self._places)
        for step in range(count):
            number = (self._next + step) % count
            start, size = self._places[number]
            if size == len(data) and same(there := self.bytes[start : start + size], data):
                self._next = number + 1
                return there.view(tensor.dtype).view(tensor.shape)
        return None


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two pieces of memory of one size have the same bytes."""
    if one.data_ptr() == other.data_ptr():
        return True
    return torch.equal(one[:_PROBE], other[:_PROBE]) and torch.equal(one, other)
