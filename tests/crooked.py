"""Blueprints whose workers go wrong, for tests of workers in other processes: those import this."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fp4scope.conductor.workers import Blueprint
from fp4scope.errors import NonFiniteError


@dataclass(frozen=True)
class Crooked:
    """Each worker that is built takes the next of these faults, and the last ones have none."""

    blueprint: Blueprint
    folder: Path
    faults: tuple[str, ...]

    def __call__(self):
        fault = next((name for name in self.faults if self._take(name)), "")
        if fault == "other weights":
            return replace(self.blueprint, fingerprint="another")()
        worker = self.blueprint()
        if fault == "other logits":
            head = worker.loaded.model.get_output_embeddings().weight
            with torch.no_grad():
                head[:, 0] += 1e-3
        if fault == "hangs":
            worker.execute = lambda *_: time.sleep(1e6)
        if fault == "raises":
            worker.execute = _raise
        return worker

    def _take(self, name):
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _raise(*_):
    raise NonFiniteError("the input of nothing has NaN or Inf")


@dataclass(frozen=True)
class Noting:
    """Each worker that is built notes the inodes of what its blocks wait in."""

    blueprint: Blueprint
    folder: Path

    def __call__(self):
        worker = self.blueprint()
        host = worker.loaded.offloaded._host
        if worker.loaded.offloaded.kind == "disk":
            files = {extent.file for each in host._extents for extent in each if extent}
            inodes = {os.fstat(file).st_ino for file in files}
        else:
            places = {buffer.data_ptr() for buffer in host._buffers}
            inodes = {inode_at(place) for place in places}
        (self.folder / str(os.getpid())).write_text(" ".join(map(str, sorted(inodes))))
        return worker


def inode_at(place):
    """Of the file that is mapped to an address; 0 for a process's own memory."""
    with open("/proc/self/maps") as lines:
        for line in lines:
            addresses, _, _, _, inode, *_ = line.split()
            start, stop = (int(end, 16) for end in addresses.split("-"))
            if start <= place < stop:
                return int(inode)
    return None
