"""One pass of the full-precision model: what enters its linears."""

from collections.abc import Iterator
from typing import Any

from fp4scope.conductor.progress import Listener, Progress
from fp4scope.data import WindowSet
from fp4scope.errors import ModelError, NonFiniteError
from fp4scope.models import LoadedModel
from fp4scope.observe import InputStatistics, observe_inputs
from fp4scope.records import ActivationRecord


def observe(
    loaded: LoadedModel, windows: WindowSet, tell: Listener, phase: str
) -> dict[str, InputStatistics]:
    total = len(windows)

    def forwards() -> Iterator[None]:
        for done in range(total):
            tell(Progress(phase, done, total, f"{done} of {total} windows"))
            loaded.logits(windows.ids[done], last=1)
            yield
        tell(Progress(phase, total, total, f"{total} windows"))

    return observe_inputs(loaded.model, loaded.layout.linears, forwards())


def inputs_note(loaded: LoadedModel, observed: dict[str, InputStatistics]) -> dict[str, Any]:
    """What the journal keeps of the calibration pass."""
    cells = activation_records(loaded, observed)
    for record in cells:
        if not record.elements and not record.nonfinite:
            raise ModelError(
                f"{record.component} of block {record.block} never ran as a module while the model "
                "did, so its input cannot be quantized; the model computes it in another way"
            )
    for name, statistics in observed.items():
        if statistics.nonfinite:
            cell = loaded.layout.cell_of[name]
            raise NonFiniteError(
                f"in the unquantized model {statistics.nonfinite} inputs of {name} (block "
                f"{cell.block}, component {cell.component}) are NaN or Inf in {loaded.dtype}; use "
                "a dtype with more range (--dtype bfloat16 or float32)"
            )
    return {
        "amax": {name: statistics.max for name, statistics in observed.items()},
        "cells": [vars(record) for record in cells],
    }


def activation_records(
    loaded: LoadedModel, observed: dict[str, InputStatistics]
) -> list[ActivationRecord]:
    """Input statistics by cell, its linears (experts) taken together."""
    records = []
    for cell, names in loaded.layout.cells.items():
        together = sum((observed[n] for n in names[1:]), start=observed[names[0]])
        records.append(
            ActivationRecord(
                block=cell.block,
                component=cell.component,
                max=together.max,
                p999=together.quantile(0.999),
                ratio=together.ratio,
                elements=together.elements,
                nonfinite=together.nonfinite,
            )
        )
    return records
