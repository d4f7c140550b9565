"""Weights that lie in files: where each one does, and how it is read from there.

Safetensors are mapped into memory, and a parameter that is stored as it is wanted is such a piece
of its file: nothing of it need be in memory before it is used. What has to be made instead (experts
in one tensor, another dtype, dequantized codes) goes to a scratch file, which has no name and ends
with the process. Files are read, not touched through the mapping: many readers at a time keep a
disk busy, and what is read stays in the host's page cache once, whoever reads it.
"""

import mmap
import os
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fp4scope.errors import OutputError, StudyError
from fp4scope.models.gguf import cache_folder
from fp4scope.models.shelf import Beside, Shelf

_MAPS = Path("/proc/self/maps")
_READERS = 8
_PIECE = 1 << 24
"""Bytes that a reader takes at a time."""
_SHORT = 64
"""Bytes by which a place in a file is tried."""


class Extent(NamedTuple):
    """A piece of a file: its descriptor, and where it begins and ends there, in bytes."""

    file: int
    start: int
    stop: int


class _Mapping(NamedTuple):
    """Addresses that show a file, from an offset in it."""

    start: int
    stop: int
    offset: int
    file: str | int


class Files:
    """Tensors in files, to be read from there.

    Args:
        folder: Where the scratch file is to be; by default fp4scope's cache.
        shelf: Of another process with the same model, whose scratch file is read, not written anew.

    Raises:
        StudyError: This system does not tell which file a piece of memory shows.
    """

    def __init__(self, folder: Path | None = None, shelf: Shelf | None = None) -> None:
        if not _MAPS.exists():
            raise StudyError(
                "offload is disk, which takes Linux; use --offload yes, which keeps the blocks in "
                "host memory"
            )
        self._folder = folder or cache_folder()
        self._opened: dict[str, int | None] = {}
        self._scratch: int | None = None
        self._descriptors: list[int] = []
        weakref.finalize(self, _close, self._descriptors)
        self._in_scratch: list[_Mapping] = []
        self._beside = Beside.opened(shelf)
        if (beside := self._beside) is not None:
            begin, size = beside.bytes.data_ptr(), len(beside.bytes)
            self._in_scratch.append(_Mapping(begin, begin + size, 0, beside.file))
        self._readers = ThreadPoolExecutor(_READERS)
        self.written = 0
        """Bytes of the scratch file."""

    def extents(self, tensors: Sequence[Tensor]) -> list[Extent | None]:
        """Where tensors lie, if a file has them whole and in their order."""
        # What we have mapped is in both; the last of those that begin alike is taken.
        both = [*_mappings(), *self._in_scratch]
        maps = sorted(both, key=lambda each: (each.start, isinstance(each.file, int)))
        starts = [each.start for each in maps]
        return [self._extent(tensor, maps, starts) for tensor in tensors]

    @property
    def shelf(self) -> Shelf | None:
        """Where others of this host find what was written; None if nothing was."""
        if self._scratch is None:
            return None
        own = [m for m in self._in_scratch if m.file == self._scratch]
        places = [(mapping.offset, mapping.stop - mapping.start) for mapping in own]
        return Shelf.of(self._scratch, places, shared=False)

    takes = True
    """It is to be given tensors as they are made."""

    def kept(self, tensor: Tensor) -> Tensor:
        """A tensor if a file has it as it is, else a copy in the scratch file.

        Raises:
            OutputError: The file cannot hold it.
        """
        return tensor if self.extents([tensor])[0] is not None else self.stored(tensor)

    def stored(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in the scratch file, of this process or of another's shelf.

        Raises:
            OutputError: The file cannot hold it.
        """
        data = tensor.detach().contiguous()
        if not data.nbytes:
            return data
        if self._beside is not None and (there := self._beside.like(data)) is not None:
            return there
        start, unit = self.written, mmap.ALLOCATIONGRANULARITY
        try:
            file = self._scratch_file()
            _write(file, start, data.reshape(-1).view(torch.uint8).numpy())
            mapped = mmap.mmap(file, data.nbytes, access=mmap.ACCESS_COPY, offset=start)
        except OSError as error:
            raise OutputError(
                f"{self._folder} cannot hold weights that no file has as they are wanted, "
                f"{(start + data.nbytes) / 1e9:.2f} GB so far ({error.strerror or error}); name a "
                "folder on a larger disk with FP4SCOPE_CACHE, or give a checkpoint in the dtype "
                "that is measured"
            ) from None
        self.written += -(-data.nbytes // unit) * unit
        found = torch.frombuffer(mapped, dtype=data.dtype).view(data.shape)
        place = found.data_ptr()
        self._in_scratch.append(_Mapping(place, place + data.nbytes, start, file))
        return found

    def read(self, wanted: Sequence[tuple[Extent, Tensor]]) -> None:
        """Read pieces of files, each into bytes on the host, by several threads.

        Raises:
            OutputError: One cannot be read.
        """
        pieces = [
            (extent.file, start, into[start - extent.start : stop - extent.start].numpy())
            for extent, into in wanted
            for start in range(extent.start, extent.stop, _PIECE)
            for stop in [min(start + _PIECE, extent.stop)]
        ]
        try:
            for _ in self._readers.map(lambda piece: _read(*piece), pieces):
                pass
        except OSError as error:
            raise OutputError(
                f"weights cannot be read any more ({error.strerror or error}); see that nothing "
                "changes the model's files, and run the same command again"
            ) from None

    def _extent(
        self, tensor: Tensor, maps: Sequence[_Mapping], starts: Sequence[int]
    ) -> Extent | None:
        begin, size = tensor.data_ptr(), tensor.nbytes
        place = bisect_right(starts, begin) - 1
        if place < 0 or not size or not tensor.is_contiguous():
            return None
        mapping = maps[place]
        if begin + size > mapping.stop or (file := self._descriptor(mapping.file)) is None:
            return None
        start = begin - mapping.start + mapping.offset
        shown = tensor.detach().reshape(-1).view(torch.uint8)[:_SHORT].numpy().tobytes()
        same = os.pread(file, len(shown), start) == shown
        return Extent(file, start, start + size) if same else None

    def _descriptor(self, file: str | int) -> int | None:
        if isinstance(file, int):
            return file
        if file not in self._opened:
            self._opened[file] = None
            if os.path.isfile(file):
                with suppress(OSError):  # one that is not ours to read
                    self._opened[file] = self._kept(os.open(file, os.O_RDONLY))
        return self._opened[file]

    def _scratch_file(self) -> int:
        if self._scratch is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            file, path = tempfile.mkstemp(dir=self._folder)
            self._scratch = self._kept(file)
            os.unlink(path)  # the space is given back however this process ends
        return self._scratch

    def _kept(self, file: int) -> int:
        self._descriptors.append(file)
        return file


def _mappings() -> Iterator[_Mapping]:
    for line in _MAPS.read_text(errors="surrogateescape").splitlines():
        addresses, _, offset, _, _, *path = line.split(maxsplit=5)
        if path and path[0].startswith("/"):
            start, stop = (int(end, 16) for end in addresses.split("-"))
            yield _Mapping(start, stop, int(offset, 16), path[0])


def _read(file: int, start: int, into: Any) -> None:  # noqa: ANN401
    left = memoryview(into)
    while left:
        count = os.preadv(file, [left], start)
        if not count:
            raise OSError(0, "a file has become shorter")
        left, start = left[count:], start + count


def _write(file: int, start: int, data: Any) -> None:  # noqa: ANN401
    left = memoryview(data)
    while left:
        count = os.pwrite(file, left, start)
        left, start = left[count:], start + count


def _close(descriptors: Sequence[int]) -> None:
    for file in descriptors:
        os.close(file)
