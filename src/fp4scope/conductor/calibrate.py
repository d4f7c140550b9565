"""One pass of the full-precision model: what enters its linears."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fp4scope.data import WindowSet
from fp4scope.errors import Fp4ScopeError, ModelError, NonFiniteError, OutputError
from fp4scope.ledger import ActivationRecord
from fp4scope.ledger.checks import first_problem
from fp4scope.ledger.schema import Inputs
from fp4scope.models import LoadedModel
from fp4scope.operands import InputStatistics, nonfinite_cause, observe_inputs
from fp4scope.sweep import Listener, Progress, is_out_of_memory

_TOKENS_AT_ONCE = {"cuda": 1 << 13}
"""Where a forward of one window is over before Python has started the next."""


def observe(
    loaded: LoadedModel, windows: WindowSet, tell: Listener, phase: str
) -> dict[str, InputStatistics]:
    """What enters every linear, over all windows: several in a forward on a GPU, else one."""
    batch = max(1, _TOKENS_AT_ONCE.get(loaded.device.type, 0) // windows.seq_len)
    while True:
        try:
            return _observe(loaded, windows, tell, phase, batch)
        except (RuntimeError, IndexError, ValueError) as error:
            if batch == 1 or isinstance(error, Fp4ScopeError):
                raise
            # From the start, since part of a batch has been counted. A model that takes no batches
            # gets none.
            batch = batch // 2 if is_out_of_memory(error) else 1


def _observe(
    loaded: LoadedModel, windows: WindowSet, tell: Listener, phase: str, batch: int
) -> dict[str, InputStatistics]:
    total = len(windows)

    def forwards() -> Iterator[None]:
        for done in range(0, total, batch):
            tell(Progress(phase, done, total, f"{done} of {total} windows"))
            together = windows.ids[done : done + batch]
            loaded.logits(together if batch > 1 else together[0], last=1)
            yield
        tell(Progress(phase, total, total, f"{total} windows"))

    return observe_inputs(loaded.model, loaded.layout.linears, forwards())


def inputs_note(loaded: LoadedModel, observed: dict[str, InputStatistics]) -> dict[str, Any]:
    """What the journal keeps of the calibration pass."""
    layers = activation_records(loaded, observed)
    for record in layers:
        if not record.elements and not record.nonfinite:
            raise ModelError(
                f"{record.projection} of block {record.block} ran on the first window of the text, "
                "but on none of the calibration text, so nothing is known of its input; calibrate "
                "on longer windows (--calibration-seq-len) or on more text, or leave it in full "
                f"precision (--exclude {record.projection})"
            )
    for name, statistics in observed.items():
        if statistics.nonfinite:
            layer = loaded.layout.layer_of[name]
            raise NonFiniteError(
                f"in the unquantized model {statistics.nonfinite} inputs of {name} (block "
                f"{layer.block}, projection {layer.projection}) are NaN or Inf in {loaded.dtype}; "
                f"{nonfinite_cause(loaded.model)}"
            )
    return {
        "amax": {name: statistics.max for name, statistics in observed.items()},
        "layers": [vars(record) for record in layers],
    }


_INPUTS = TypeAdapter(Inputs)


def require_inputs(note: Any, loaded: LoadedModel, path: Path) -> None:  # noqa: ANN401
    """Refuse a note of the calibration that is not one of this model.

    Raises:
        OutputError: It is not.
    """
    advice = f"{path} is damaged: its note 'inputs' is not the calibration of this model"
    try:
        found = _INPUTS.validate_json(json.dumps(note))
    except ValidationError as error:
        problem = first_problem(error.errors(include_url=False))
        raise OutputError(f"{advice} ({problem}); move it away to start again") from None
    layers = [(layer.block, layer.projection) for layer in found["layers"]]
    known = [(layer.block, layer.projection) for layer in loaded.layout.layers]
    if found["amax"].keys() != set(loaded.layout.linears) or layers != known:
        raise OutputError(f"{advice} (its linears are others); move it away to start again")


def activation_records(
    loaded: LoadedModel, observed: dict[str, InputStatistics]
) -> list[ActivationRecord]:
    """Input statistics by layer, its linears (experts) taken together."""
    records = []
    for layer, names in loaded.layout.layers.items():
        together = sum((observed[n] for n in names[1:]), start=observed[names[0]])
        records.append(
            ActivationRecord(
                block=layer.block,
                projection=layer.projection,
                max=together.max,
                p999=together.quantile(0.999),
                ratio=together.ratio,
                elements=together.elements,
                nonfinite=together.nonfinite,
            )
        )
    return records
