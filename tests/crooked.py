"""Blueprints whose workers go wrong, for tests of workers in other processes: those import this."""

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
