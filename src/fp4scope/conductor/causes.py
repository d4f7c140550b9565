"""What quantizing does inside: the errors of operands and outputs, in the full-precision model."""

import json
from collections.abc import Sequence
from math import log2
from statistics import fmean
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fp4scope.conductor.prepare import Prepared
from fp4scope.design.probes import variants
from fp4scope.errors import OutputError
from fp4scope.formats import BlockFormat
from fp4scope.ledger import Log
from fp4scope.ledger.checks import first_problem
from fp4scope.ledger.schema import ErrorRecord, Errors, LocalError
from fp4scope.models import Layer, LoadedModel
from fp4scope.operands import Injector, Input, watched
from fp4scope.operands.errors import OperandError, relative_error
from fp4scope.study import Causes, Study
from fp4scope.sweep import Listener, Progress
from fp4scope.treatments import Setting, Treatment

MOST_WINDOWS = 8
"""Of the evaluated text, its first: errors differ little between windows."""
_NAMED = 4
"""Outlier channels that are named."""
WEIGHTS, INPUTS = "weights", "inputs"
_E8M0 = (2.0**-127, 2.0**127)


def local_errors(
    prepared: Prepared, study: Study, injector: Injector, log: Log, tell: Listener
) -> None:
    """Note the errors of every layer, unless they are there or nobody asked.

    Raises:
        NonFiniteError: An input is not finite.
        OutputError: The log cannot be written.
    """
    if study.question.causes is Causes.NONE or "errors" in log.notes:
        return
    settings = [setting for setting in study.swept if variants(setting)]
    seen = _Seen(prepared.loaded, settings, injector)
    seen.weights()
    ids = prepared.windows.ids[:MOST_WINDOWS]
    with torch.no_grad(), watched(seen.products, after=seen.listen):
        for done, row in enumerate(ids):
            tell(Progress("calibrating", done, len(ids), f"errors of {done} of {len(ids)} windows"))
            prepared.loaded.logits(row, last=1)
            injector.check()
    injector.forget()
    log.note("errors", {"operands": seen.operands(), "outputs": seen.outputs()})


_ERRORS = TypeAdapter(Errors)


def noted_errors(log: Log) -> tuple[list[ErrorRecord], list[LocalError]]:
    """What the log has of these.

    Raises:
        OutputError: It is damaged.
    """
    if "errors" not in log.notes:
        return [], []
    try:
        found = _ERRORS.validate_json(json.dumps(log.notes["errors"]))
    except ValidationError as error:
        problem = first_problem(error.errors(include_url=False))
        raise OutputError(
            f"{log.path} is damaged: its note 'errors' has {problem}; move it away to start again"
        ) from None
    return found["operands"], found["outputs"]


class _Seen:
    """Collects the errors of every linear of a layer, over the windows that run."""

    def __init__(
        self, loaded: LoadedModel, settings: Sequence[Setting], injector: Injector
    ) -> None:
        self._injector = injector
        linear = {site.product for site in loaded.layout.sites if site.is_linear}
        self._layers = {n: layer for n, layer in loaded.layout.layer_of.items() if n in linear}
        self.products = {name: loaded.products[name] for name in self._layers}
        alone = [variants(one)[name] for one in settings for name in ("weights", "inputs")]
        self._settings = list(dict.fromkeys([*settings, *alone]))
        self._errors: dict[tuple[Layer, str, Treatment], OperandError] = {}
        self._local: dict[tuple[Layer, Setting], list[float]] = {}

    def weights(self) -> None:
        """Take the weights in, experts one by one."""
        treatments = dict.fromkeys(s.weight for s in self._settings if s.weight is not None)
        for name, layer in self._layers.items():
            weight = self._injector.product(name).weight
            for treatment in treatments:
                error = self._errors.setdefault((layer, WEIGHTS, treatment), OperandError())
                for matrix in weight if weight.ndim > 2 else weight[None]:
                    error.add(matrix, treatment.format, None)

    def listen(self, name: str, entering: Input, output: Tensor) -> None:
        """Take in what enters and leaves a linear."""
        layer = self._layers[name]
        for treatment in dict.fromkeys(s.input for s in self._settings if s.input is not None):
            error = self._errors.setdefault((layer, INPUTS, treatment), OperandError())
            amax = self._injector.tensor_amax(name, treatment, entering)
            error.add(entering.x, treatment.format.for_input, amax)
        for setting in self._settings:
            found = relative_error(self._injector.moved(name, setting, entering), output)
            if found is not None:
                self._local.setdefault((layer, setting), []).append(found)
        self._injector.forget()

    def operands(self) -> list[dict[str, Any]]:
        """A record for each layer, operand and format."""
        return [
            _named(layer) | {"operand": operand} | _record(error, treatment.format)
            for (layer, operand, treatment), error in self._errors.items()
        ]

    def outputs(self) -> list[dict[str, Any]]:
        """A record for each layer and setting."""
        return [
            _named(layer)
            | {"format": setting.format, "precision": setting.precision, "error": fmean(found)}
            for (layer, setting), found in self._local.items()
        ]


def _named(layer: Layer) -> dict[str, Any]:
    return {"block": layer.block, "projection": layer.projection}


def _record(error: OperandError, fmt: BlockFormat) -> dict[str, Any]:
    exact = error.share("exact", "error")
    clipping, flushing = error.share("clipping", "error"), error.share("flushing", "error")
    rounding = None if clipping is None or flushing is None else 1 - clipping - flushing
    return {
        "format": fmt.name,
        "error": error.share("error", "energy"),
        "rounding": rounding,
        "clipping": clipping,
        "flushing": flushing,
        "scale": None if exact is None else 1 - exact,
        "clipped": error.share("clipped", "elements"),
        "flushed": error.share("flushed", "elements"),
        "kurtosis": error.kurtosis,
        "block_ratio": error.share("block_ratios", "blocks"),
        "top": error.share("top", "energy"),
        "outliers": error.always[:_NAMED],
        "outlier_count": len(error.always),
        "outliers_stable": error.stable,
        **_headroom(error.scales, fmt),
    }


def _headroom(scales: tuple[float, float], fmt: BlockFormat) -> dict[str, float]:
    """Powers of two between the scales that are used and both ends of E8M0."""
    if fmt.scale != "E8M0" or not scales[1]:
        return {}
    return {
        "headroom_above": log2(_E8M0[1] / scales[1]),
        "headroom_below": log2(scales[0] / _E8M0[0]),
    }
