"""One pass of the full-precision model: what enters its linears."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fp4scope.data import WindowSet
from fp4scope.errors import Fp4ScopeError, ModelError, NonFiniteError, OutputError
from fp4scope.ledger import ActivationRecord
from fp4scope.ledger.checks import first_problem
from fp4scope.ledger.schema import Inputs
from fp4scope.models import Layout, LoadedModel
from fp4scope.operands import (
    InputStatistics,
    Moments,
    nonfinite_cause,
    observe_inputs,
    observe_moments,
)
from fp4scope.stats import seen_table
from fp4scope.sweep import Listener, Progress, is_out_of_memory
from fp4scope.treatments import FEWEST_TOKENS

_NAMED = 4
"""Blocks and experts that a note names."""
_TOKENS_AT_ONCE = {"cuda": 1 << 13, "disk": 1 << 16}
"""Where a forward of one window is over before Python has started the next, or reads all blocks."""


def observe(
    loaded: LoadedModel, windows: WindowSet, tell: Listener, phase: str
) -> dict[str, InputStatistics]:
    """What enters every linear, over all windows: several in a forward on a GPU, else one."""
    kind = loaded.device.type
    if kind == "cuda" and loaded.offloaded is not None and loaded.offloaded.kind == "disk":
        kind = "disk"
    batch = max(1, _TOKENS_AT_ONCE.get(kind, 0) // windows.seq_len)
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
    forwards = forwards_of(loaded, windows, tell, phase, batch)
    return observe_inputs(loaded.model, loaded.layout.inputs, forwards)


def forwards_of(
    loaded: LoadedModel, windows: WindowSet, tell: Listener, phase: str, batch: int
) -> Iterator[None]:
    """A forward of so many windows at each step, which says how far it is."""
    total = len(windows)
    for done in range(0, total, batch):
        tell(Progress(phase, done, total, f"{done} of {total} windows"))
        together = windows.ids[done : done + batch]
        loaded.logits(together if batch > 1 else together[0], last=1)
        yield
    tell(Progress(phase, total, total, f"{total} windows"))


def observe_moments_of(
    loaded: LoadedModel, windows: WindowSet, linears: Collection[str], tell: Listener
) -> dict[str, Moments]:
    """Moments of what enters some linears, for treatments that are fitted to it."""
    if not linears:
        return {}
    forwards = forwards_of(loaded, windows, tell, "calibrating", 1)
    return observe_moments(loaded.model, linears, forwards)


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
            raise NonFiniteError(
                f"in the unquantized model {statistics.nonfinite} inputs of "
                f"{loaded.layout.described(name)} are NaN or Inf in {loaded.dtype}; "
                f"{nonfinite_cause(loaded.model)}"
            )
    shared, by_expert = amaxes(loaded.layout, observed)
    return {
        "amax": shared,
        "layers": [record.to_json() for record in layers],
        "by_expert": by_expert,
    }


def amaxes(
    layout: Layout, observed: Mapping[str, InputStatistics]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Amax of every linear's input, and of that of each expert where it holds some.

    All experts of a layer have one, the largest, as engines do. One that few tokens reached has it
    also where each has its own: what it was not shown may be larger.
    """
    shared = {site.name: observed[site.name].max for site in layout.sites.behind}
    alone = {site.name for site in layout.sites if not site.is_linear}
    by_expert: dict[str, list[float]] = {}
    for names in layout.layers.values():
        if names[0] in alone:
            shared |= {name: observed[name].max for name in names}  # keys and values apart
            continue
        largest = max(observed[name].max for name in names)
        shared |= dict.fromkeys(names, largest)
        for name in names:
            if len(names) > 1 or len(observed[name].experts) > 1:
                by_expert[name] = [
                    own if own > 0 and rows >= FEWEST_TOKENS else largest
                    for own, rows in observed[name].experts
                ]
    return shared, by_expert


def unseen_note(layers: Sequence[ActivationRecord]) -> str | None:
    """What is said of experts that few tokens of the calibration text reached."""
    seen = seen_table(layers)
    few = sorted((row for row in seen if row["few"]), key=lambda row: -row["few"])
    if not few:
        return None
    named = [f"{row['block']}.{row['experts']}: {_some(row['below'])}" for row in few[:_NAMED]]
    more = [f"{len(few) - _NAMED} more blocks"] if len(few) > _NAMED else []
    return (
        f"warning: {sum(row['few'] for row in few)} of {sum(seen['count'])} experts saw fewer than "
        f"{FEWEST_TOKENS} tokens of the calibration text ({'; '.join([*named, *more])}); they "
        "take the largest input of their layer; calibrate on more text (--calibration-windows)"
    )


def _some(numbers: str) -> str:
    """The first of several numbers, and how many more there are."""
    listed = numbers.split()
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


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
    if found["amax"].keys() != set(loaded.layout.inputs) or layers != known:
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
                tokens=seen if len(seen := [n for _, n in together.experts]) > 1 else None,
            )
        )
    return records
