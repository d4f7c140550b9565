"""A model with smoothing folded into its norms, as a folder that takes the model's place."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fp4scope.conductor.calibrate import forwards_of
from fp4scope.conductor.prepare import load, windows_of
from fp4scope.errors import ModelError
from fp4scope.files import new_folder, require_new
from fp4scope.models import LoadedModel, open_source, resolve_device
from fp4scope.models.library import silent
from fp4scope.operands.folding import Fold, fold_all, folds_of, largest_by_channel
from fp4scope.study import Study
from fp4scope.sweep import Listener

_PROBE = 64
"""Tokens whose logits may not change."""


@dataclass(frozen=True)
class Smoothed:
    """What was folded, and where.

    Attributes:
        folder: Of the new model.
        folds: Norms and what reads them.
        kept: Kinds of norms that were left alone, since the function would have changed.
        largest: The largest factor.
    """

    folder: Path
    folds: tuple[Fold, ...]
    kept: tuple[str, ...]
    largest: float


def smooth(study: Study, folder: Path, tell: Listener) -> Smoothed:
    """Fold smoothing into a model's norms, and write it.

    Args:
        study: Model, the text whose inputs count, and its windows.
        folder: For the new model; it must not be there.
        tell: Hears how far it is.

    Raises:
        ModelError: The model cannot be held or saved whole, or no norm takes factors.
        OutputError: The folder is there, or cannot be written.
        DataError: Tokens that the model does not have.
        Fp4ScopeError: Something else about the model or the text.
    """
    require_new(folder)
    resolve_device(study.numerics.device)
    loaded = load(study, tell)
    _require_whole(loaded)
    _, windows = windows_of(study.data, loaded)
    loaded.require_known(windows.ids, windows.source)
    probe = windows.ids[0][:_PROBE]
    folds = folds_of(loaded.model, loaded.layout.linears, lambda: loaded.logits(probe))
    forwards = forwards_of(loaded, windows, tell, "calibrating", 1)
    largest = largest_by_channel(loaded.model, [fold.norm for fold in folds], forwards)
    done = fold_all(loaded.model, folds, largest, lambda: loaded.logits(probe))
    if not done:
        kinds = ", ".join(sorted({fold.kind for fold in folds})) or "none that a linear reads"
        raise ModelError(
            f"no norm of {loaded.name} takes factors without changing what the model computes "
            f"(norms: {kinds}); measure the model as it is"
        )
    kept = Counter(fold.kind for fold in folds if fold not in done)
    _write(loaded, study, folder)
    most = max(float(factor.max()) for factor in done.values())
    return Smoothed(folder, tuple(done), tuple(kept), most)


def _require_whole(loaded: LoadedModel) -> None:
    if loaded.offloaded is not None:
        raise ModelError(
            f"{loaded.name} does not fit in the memory of {loaded.device}, and its weights are "
            "changed there; give --device cpu, or a device with more"
        )
    if loaded.towers or getattr(loaded.model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{loaded.name} is quantized already or has more than a language model, which is not "
            "written here; give the original language model"
        )


def _write(loaded: LoadedModel, study: Study, folder: Path) -> None:
    source = open_source(study.model.name, study.model.revision)
    kept = _exactly(loaded.model.state_dict(), source.dtype or loaded.dtype)
    with new_folder(folder) as partial, silent():
        nn.Module.to(loaded.model, torch.device("cpu"), kept)
        loaded.model.save_pretrained(partial)
        loaded.tokenizer.save_pretrained(partial)


def _exactly(weights: Mapping[str, torch.Tensor], wanted: torch.dtype) -> torch.dtype:
    """The dtype of the checkpoint, if it holds all weights as they are; else their own."""
    floating = [w for w in weights.values() if w.is_floating_point()]
    if all(torch.equal(w.to(wanted).to(w.dtype), w) for w in floating):
        return wanted
    return floating[0].dtype
