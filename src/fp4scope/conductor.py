"""The conductor: a study in, a diagnosis out."""

import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import fp4scope
from fp4scope.data import (
    WindowSet,
    calibration_text,
    calibration_windows,
    evaluation_text,
    evaluation_windows,
)
from fp4scope.errors import ModelError, NonFiniteError, OutputError, StudyError
from fp4scope.inject import Injector
from fp4scope.kernels import NUMERICS_VERSION
from fp4scope.models import LoadedModel, adopt, check_name, load_model, resolve_device
from fp4scope.observe import InputStatistics, observe_inputs
from fp4scope.records import ActivationRecord, Results
from fp4scope.report import Diagnosis, write_outputs
from fp4scope.study import Study
from fp4scope.sweep import Journal, PlannedVariant, check_folder, measure, plan

# What a study's options say about where things come from, not about what is measured.
_NOT_IDENTITY = {
    "version", "model", "revision", "text", "dataset", "calibration_text", "device", "dtype",
    "windows", "allow_partial", "trust_remote_code", "allow_pickle",
}  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """Where a run is. `done` and `total` count forwards of one window within `phase`.

    `note` is a line worth reading once; `diagnosis` what is known so far (while measuring).
    """

    phase: str
    done: int = 0
    total: int = 0
    note: str | None = None
    diagnosis: Diagnosis | None = None


Listener = Callable[[Progress], None]


def diagnose(
    model: Any,  # noqa: ANN401
    *,
    output_dir: str | Path | None = None,
    tokenizer: Any = None,  # noqa: ANN401
    progress: Listener | None = None,
    **options: Any,  # noqa: ANN401
) -> Diagnosis:
    """Measure what FP4 does to a causal language model.

    Args:
        model: Hub id, local folder, GGUF file, or a `transformers` model in memory.
        output_dir: Folder for the journal, tables, figures and report. A rerun of the same
            study goes on where it stopped. None writes nothing.
        tokenizer: For a model in memory: its tokenizer.
        progress: Called as the work goes on.
        options: Any field of `fp4scope.study.Study`: `formats`, `windows`, `seq_len`, `text`,
            `sweep`, `direction`, `operands`, `device`, `dtype` and so on.

    Returns:
        The results, with tables, figures and a report.

    Raises:
        Fp4ScopeError: Something about the request, the model or the text; nothing that was
            measured is lost.

    Example:
        >>> import fp4scope
        >>> d = fp4scope.diagnose("Qwen/Qwen2.5-0.5B", windows=16)  # doctest: +SKIP
        >>> d.components.to_pandas()  # doctest: +SKIP
    """
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise StudyError("tokenizer goes with a model in memory; a name brings its own")
        study = Study.build(model=str(model), **options)
        return run_study(study, output_dir=output_dir, progress=progress)
    if tokenizer is None:
        raise StudyError("a model in memory needs its tokenizer: diagnose(model, tokenizer=...)")
    if given := {"device", "dtype", "revision"} & options.keys():
        raise StudyError(
            f"{min(given)} is the model's own when it is in memory; move or convert the model"
        )
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    study = Study.build(model=name, **options)
    with _as_it_was(model):
        loaded = adopt(model, tokenizer, name=name, allow_partial=study.allow_partial)
        return run_study(study, output_dir=output_dir, progress=progress, loaded=loaded)


def run_study(
    study: Study,
    *,
    output_dir: str | Path | None = None,
    progress: Listener | None = None,
    loaded: LoadedModel | None = None,
) -> Diagnosis:
    """`diagnose` for a study that is built already."""
    tell = progress or (lambda event: None)
    if loaded is None:
        check_name(study.model)
        resolve_device(study.device)
    if output_dir is not None:
        return _run_in(study, _writable(Path(output_dir)), tell, loaded, keep=True)
    with tempfile.TemporaryDirectory(prefix="fp4scope-") as folder:
        diagnosis = _run_in(study, Path(folder), tell, loaded, keep=False)
    diagnosis.folder = None
    return diagnosis


@contextmanager
def _as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Give a user's model its training mode and gradients back."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, wanted in gradients:
            parameter.requires_grad_(wanted)


def activation_statistics(
    study: Study, windows: int, *, progress: Listener | None = None
) -> Diagnosis:
    """Only the activations: what enters each linear on the first windows of the study's text.

    Args:
        study: Its model and text; `windows` of it are ignored.
        windows: How many windows at most.
        progress: Called as the work goes on.

    Returns:
        A diagnosis with `activations` and nothing else. Inputs that are NaN or Inf are counted
        there (`results.activations`), not refused.
    """
    tell = progress or (lambda event: None)
    check_name(study.model)
    text = evaluation_text(study)
    loaded = _load(study, tell)
    _fit_length(study, loaded)
    chosen = evaluation_windows(study, text, loaded.tokenizer, loaded.config.model_type)
    chosen = replace(chosen, ids=chosen.ids[:windows])
    results = Results(
        study=study.model_dump(mode="json"),
        model=_describe_model(loaded),
        data=_describe_windows(chosen),
        protocol={},
        environment=_environment(loaded),
        activations=_activation_records(loaded, _observe(loaded, chosen, tell, "observing")),
    )
    return Diagnosis(results)


def _run_in(
    study: Study, folder: Path, tell: Listener, loaded: LoadedModel | None, *, keep: bool
) -> Diagnosis:
    started = time.monotonic()
    own = study.model_dump(mode="json", exclude=_NOT_IDENTITY)
    check_folder(folder, own)
    texts = evaluation_text(study), calibration_text(study)
    if loaded is None:
        loaded = _load(study, tell)
    fitted = _fit_length(study, loaded)
    windows = evaluation_windows(study, texts[0], loaded.tokenizer, loaded.config.model_type)
    calibration = calibration_windows(fitted, texts[1], loaded.tokenizer, windows)
    variants = plan(study, loaded.layout)
    for note in _protocol_notes(windows, calibration):
        tell(Progress("loading", note=note))

    identity = own | {
        "model": loaded.fingerprint,
        "dtype": loaded.dtype_name,
        "device": loaded.device.type,
        "windows": len(windows),
        "tokens": windows.sha256,
        "calibration": calibration.sha256,
        "numerics": NUMERICS_VERSION,
    }
    journal = Journal(folder / "journal.jsonl", identity)
    try:
        if journal.dropped:
            tell(Progress("loading", note="the journal's last line was torn; it is measured again"))
        if keep:
            _write_study(study, folder)
        if "inputs" not in journal.notes:
            journal.note(
                "inputs", _inputs_note(loaded, _observe(loaded, calibration, tell, "calibrating"))
            )
        inputs = journal.notes["inputs"]
        environment = _environment(loaded)
        results = Results(
            study=study.model_dump(mode="json"),
            model=_describe_model(loaded),
            data=_describe_windows(windows)
            | {
                "calibration": _describe_windows(calibration) | {"evaluated": calibration.evaluated}
            },
            protocol={
                "activation_scale": study.activation_scale,
                "identity": identity,
                "sessions": _sessions(journal, environment, tell),
            },
            environment=environment,
            observations=journal.observations,
            activations=[ActivationRecord(**cell) for cell in inputs["cells"]],
        )
        static = study.activation_scale == "calibrated"
        injector = Injector(loaded.model, inputs["amax"] if static else None)
        _measure(study, loaded, windows, variants, injector, journal, results, tell)
    finally:
        journal.close()
    results.environment["wall_s"] = time.monotonic() - started
    results.observations = {
        v.variant.key: journal.observations[v.variant.key].sorted() for v in variants
    }
    diagnosis = Diagnosis(results, folder)
    if keep:
        tell(Progress("writing"))
        write_outputs(diagnosis, folder)
    return diagnosis


def _load(study: Study, tell: Listener) -> LoadedModel:
    tell(Progress("loading"))
    loaded = load_model(
        study.model,
        revision=study.revision,
        device=study.device,
        dtype=study.dtype,
        trust_remote_code=study.trust_remote_code,
        allow_pickle=study.allow_pickle,
        allow_partial=study.allow_partial,
    )
    layout = loaded.layout
    tell(
        Progress(
            "loading",
            note=f"{loaded.name}: {layout.blocks} blocks, {len(layout.components)} components "
            f"({', '.join(layout.components)}); {layout.coverage:.1%} of the blocks' parameters "
            f"are quantized; {loaded.dtype_name} on {loaded.device}",
        )
    )
    for warning in loaded.warnings:
        tell(Progress("loading", note=f"warning: {warning}"))
    if layout.routers:
        tell(Progress("loading", note=f"not quantized, as routers: {', '.join(layout.routers)}"))
    if loaded.prior_quantization:
        tell(
            Progress(
                "loading",
                note=f"these weights were quantized before ({loaded.prior_quantization}): the "
                "full-precision reference is the dequantized file",
            )
        )
    return loaded


def _protocol_notes(windows: WindowSet, calibration: WindowSet) -> Iterator[str]:
    bos = ", BOS before each (not a target)" if windows.bos else ""
    yield (
        f"text: {windows.source}, {windows.tokens_in_text:,} tokens, "
        f"{len(windows)} windows of {windows.seq_len}{bos}"
    )
    reused = " - THE EVALUATED TEXT, there is no other" if calibration.evaluated else ""
    yield (
        f"calibration: {calibration.source}, "
        f"{len(calibration)} windows of {calibration.seq_len}{reused}"
    )


def _fit_length(study: Study, loaded: LoadedModel) -> Study:
    """The study, its calibration windows no longer than the model takes."""
    longest = loaded.max_seq_len
    if longest is None:
        return study
    if study.seq_len > longest:
        raise StudyError(
            f"seq_len is {study.seq_len}, but {loaded.name} takes at most {longest} tokens; "
            f"use --seq-len {longest} or less"
        )
    return study.model_copy(update={"calibration_seq_len": min(study.calibration_seq_len, longest)})


def _observe(
    loaded: LoadedModel, windows: WindowSet, tell: Listener, phase: str
) -> dict[str, InputStatistics]:
    total = len(windows)

    def forwards() -> Iterator[None]:
        for done in range(total):
            tell(Progress(phase, done, total))
            loaded.logits(windows.ids[done])
            yield
        tell(Progress(phase, total, total))

    return observe_inputs(loaded.model, loaded.layout.linears, forwards())


def _inputs_note(loaded: LoadedModel, observed: dict[str, InputStatistics]) -> dict[str, Any]:
    """What the journal keeps of the calibration pass."""
    cells = _activation_records(loaded, observed)
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


def _activation_records(
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


def _sessions(
    journal: Journal, environment: dict[str, Any], tell: Listener
) -> list[dict[str, Any]]:
    """The different environments that have written to this journal, this one the last.

    Quantized activations magnify rounding, so variants measured under different libraries or on
    different processors are not quite comparable: this is said, and kept in the results.
    """
    now = {name: environment[name] for name in ("torch", "transformers", "processor", "threads")}
    known = list(journal.notes.get("sessions", []))
    if now not in known:
        if known:
            tell(
                Progress(
                    "loading",
                    note=f"warning: this folder was begun with {known[-1]}, now {now}: "
                    "W4A4 results of both are compared with each other",
                )
            )
        known.append(now)
        journal.note("sessions", known)
    return known


def _measure(
    study: Study,
    loaded: LoadedModel,
    windows: WindowSet,
    variants: list[PlannedVariant],
    injector: Injector,
    journal: Journal,
    results: Results,
    tell: Listener,
) -> None:
    generator = torch.Generator().manual_seed(study.seed)
    order = torch.randperm(len(windows), generator=generator).tolist()
    total = len(variants) * len(windows)
    done = total - sum(len(journal.missing(v.variant, order)) for v in variants)
    if done:
        tell(Progress("measuring", done, total, note=f"{done} of {total} were measured before"))
    tell(Progress("measuring", done, total))

    def measured(_: PlannedVariant, count: int) -> None:
        nonlocal done
        done += count
        tell(Progress("measuring", done, total, diagnosis=Diagnosis(results)))

    measure(loaded, windows.ids, order, variants, injector, journal, measured)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}; choose another folder with -o"
        ) from None
    return folder


def _write_study(study: Study, folder: Path) -> None:
    path = folder / "study.yaml"
    partial = path.with_name(".partial-study.yaml")
    try:
        partial.write_text(study.to_yaml(), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {folder / 'study.yaml'}: {error.strerror}") from None


def _describe_model(loaded: LoadedModel) -> dict[str, Any]:
    layout = loaded.layout
    return {
        "name": loaded.name,
        "architecture": type(loaded.model).__name__,
        "fingerprint": loaded.fingerprint,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "blocks": layout.blocks,
        "components": list(layout.components),
        "coverage": layout.coverage,
        "not_quantized": [list(item) for item in layout.missed[:8]],
        "routers": list(layout.routers),
        "prior_quantization": loaded.prior_quantization,
        "dtype": loaded.dtype_name,
        "tokenizer": type(loaded.tokenizer).__name__,
        "tokenizer_sha256": loaded.tokenizer_sha256,
        "device": str(loaded.device),
        "attention": getattr(loaded.config, "_attn_implementation", None),
        "warnings": list(loaded.warnings),
    }


def _describe_windows(windows: WindowSet) -> dict[str, Any]:
    return {
        "source": windows.source,
        "text_sha256": windows.text_sha256,
        "tokens_in_text": windows.tokens_in_text,
        "windows": len(windows),
        "seq_len": windows.seq_len,
        "bos": windows.bos,
        "sha256": windows.sha256,
    }


def _environment(loaded: LoadedModel) -> dict[str, Any]:
    import numpy
    import transformers

    cuda = loaded.device.type == "cuda"
    return {
        "fp4scope": fp4scope.__version__,
        "numerics": NUMERICS_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name(loaded.device) if cuda else platform.processor(),
        "threads": torch.get_num_threads(),
        "command": sys.argv if "fp4scope" in Path(sys.argv[0]).name else None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
