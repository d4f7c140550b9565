"""The conductor: a study in, a diagnosis out."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from fp4scope.conductor.calibrate import (
    activation_records,
    inputs_note,
    observe,
    require_inputs,
    unseen_note,
)
from fp4scope.conductor.causes import local_errors, noted_errors
from fp4scope.conductor.estimate import estimate
from fp4scope.conductor.prepare import (
    Prepared,
    fitted,
    load,
    prepare,
    say,
    without_silent,
)
from fp4scope.conductor.provenance import (
    also_quantized,
    describe_model,
    describe_windows,
    environment_of,
    sessions,
)
from fp4scope.conductor.remedies import measure_remedies, require_windows
from fp4scope.conductor.workers import budget_of, crew_of, device_of
from fp4scope.data import WindowSet, evaluation_text, evaluation_windows
from fp4scope.deploy.bar import parse_bar
from fp4scope.design import keys_of
from fp4scope.diagnosis import Diagnosis
from fp4scope.errors import StudyError
from fp4scope.files import replace_file, text_bytes
from fp4scope.ledger import ActivationRecord, Key, Log, Results, check_folder
from fp4scope.models import LoadedModel, adopt, require_model, resolve_device
from fp4scope.operands import Injector
from fp4scope.preflight import check
from fp4scope.report import write_outputs
from fp4scope.study import Goal, Method, Study, TimeGoal, flatten
from fp4scope.sweep import (
    Listener,
    Memory,
    Progress,
    Scheduler,
    SelfCheck,
    Stopping,
    Worker,
    memory_for,
    schedule,
    self_check,
)


def diagnose(
    model: Any,  # noqa: ANN401
    *,
    output_dir: str | Path | None = None,
    tokenizer: Any = None,  # noqa: ANN401
    progress: Listener | None = None,
    accept: str | Sequence[str] = (),
    **options: Any,  # noqa: ANN401
) -> Diagnosis:
    """Measure what FP4 does to a causal language model.

    Args:
        model: Hub id, local folder, GGUF file, or a `transformers` model in memory.
        output_dir: Folder for the journal, tables, figures and report. A rerun of the same
            study goes on where it stopped. None writes nothing.
        tokenizer: For a model in memory: its tokenizer.
        progress: Called as the work goes on.
        accept: Bars that reports hold whole models against, such as `ppl<2%`.
        options: Any field of `fp4scope.study.Study`: `formats`, `windows`, `seq_len`, `text`,
            `sweep`, `direction`, `operands`, `method`, `device`, `dtype` and so on.

    Returns:
        The results, with tables, figures and a report.

    Raises:
        Fp4ScopeError: Something about the request, the model or the text; nothing that was
            measured is lost.

    Example:
        >>> import fp4scope
        >>> d = fp4scope.diagnose("Qwen/Qwen2.5-0.5B", windows=16)  # doctest: +SKIP
        >>> d.projections.to_pandas()  # doctest: +SKIP
    """
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise StudyError("tokenizer goes with a model in memory; a name brings its own")
        study = Study.build(model=str(model), **options)
        return run_study(study, output_dir=output_dir, progress=progress, accept=accept)
    if tokenizer is None:
        raise StudyError("a model in memory needs its tokenizer: diagnose(model, tokenizer=...)")
    if given := {"device", "dtype", "revision"} & flatten(options).keys():
        raise StudyError(
            f"{min(given)} is the model's own when it is in memory; move or convert the model"
        )
    require_model(model, tokenizer)
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    study = Study.build(model=name, **options)
    if not study.run.workers.is_here:
        raise StudyError(
            f"workers is {study.run.workers}, and others cannot load a model in memory; save it, "
            "and give its folder"
        )
    with _as_it_was(model):
        loaded = adopt(
            model,
            tokenizer,
            name=name,
            allow_partial=study.run.allow_partial,
            exclude=study.model.exclude,
            single=study.single_experts,
            more=study.more_sites,
        )
        return run_study(
            study, output_dir=output_dir, progress=progress, loaded=loaded, accept=accept
        )


def measure(model: Any, recipes: Any, **options: Any) -> Diagnosis:  # noqa: ANN401
    """Measure recipes as wholes: what each costs a model over itself in full precision.

    Args:
        model: As for `diagnose`.
        recipes: `Recipe`s or paths of recipe files by name, or paths alone.
        options: As for `diagnose`; no unit is swept unless `sweep` asks for it.

    Returns:
        A diagnosis whose table `given` has a row for each recipe: differences in nats per token
        with 95% intervals, bits, bytes.

    Raises:
        Fp4ScopeError: Something about the recipes, the model or the text.

    Example:
        >>> import fp4scope
        >>> fp4scope.measure("Qwen/Qwen2.5-0.5B", ["mine.yaml"]).given  # doctest: +SKIP
    """
    options.setdefault("sweep", ())
    return diagnose(model, recipes=recipes, **options)


def run_study(
    study: Study,
    *,
    output_dir: str | Path | None = None,
    progress: Listener | None = None,
    loaded: LoadedModel | None = None,
    calibration: WindowSet | None = None,
    accept: str | Sequence[str] = (),
) -> Diagnosis:
    """`diagnose` for a study that is built already; it may bring windows to calibrate on."""
    tell = progress or (lambda event: None)
    bars = [parse_bar(text).text for text in ([accept] if isinstance(accept, str) else accept)]
    check(study, output_dir, in_memory=loaded is not None)
    if loaded is None:
        device_of(study)
    if output_dir is not None:
        return _run_in(study, Path(output_dir), tell, loaded, calibration, bars, keep=True)
    with tempfile.TemporaryDirectory(prefix="fp4scope-") as folder:
        return _run_in(study, Path(folder), tell, loaded, calibration, bars, keep=False)


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


def activation_statistics(study: Study, *, progress: Listener | None = None) -> Diagnosis:
    """Only the activations: what enters each linear on the first windows of the study's text.

    Args:
        study: Its model and text; a text may have fewer windows than it asks for.
        progress: Called as the work goes on.

    Returns:
        A diagnosis with `activations` and nothing else. Inputs that are NaN or Inf are counted
        there (`results.activations`), not refused.
    """
    tell = progress or (lambda event: None)
    check(study)
    resolve_device(study.numerics.device)
    text = evaluation_text(study.data)
    loaded = load(study, tell)
    whole = fitted(study.data, loaded).model_copy(update={"windows": None})
    chosen = evaluation_windows(whole, text, loaded.tokenizer, loaded.config.model_type)
    chosen = replace(chosen, ids=chosen.ids[: study.data.windows])
    loaded.require_known(chosen.ids, chosen.source)
    loaded = without_silent(study, loaded, chosen.ids[0])
    results = Results(
        study=study.model_dump(mode="json"),
        model=describe_model(loaded),
        data=describe_windows(chosen),
        protocol={},
        environment=environment_of(loaded),
        activations=activation_records(loaded, observe(loaded, chosen, tell, "observing")),
    )
    return Diagnosis(results)


def _run_in(
    study: Study,
    folder: Path,
    tell: Listener,
    loaded: LoadedModel | None,
    calibration: WindowSet | None,
    bars: Sequence[str],
    *,
    keep: bool,
) -> Diagnosis:
    started = time.monotonic()
    check_folder(folder, study.identity)
    prepared = prepare(study, tell, loaded, calibration)
    loaded, windows = prepared.loaded, prepared.windows
    require_windows(study, len(windows))
    log = Log(
        folder / "journal.jsonl",
        prepared.identity,
        counted=study.numerics.replicas,
        started=started,
    )
    try:
        if log.dropped:
            say(tell, "the journal's last line was torn; it is measured again")
        if keep:
            _write_study(study, folder)
        goal = _goal(study)
        stopping = Stopping(goal, prepared.runs, prepared.design.contrasts, started=started)
        if not isinstance(goal, TimeGoal):
            stopping.look(log)
        wanted = len(log.done(keys_of(stopping.remaining))) < len(windows) and not stopping.reached
        check = _checked(prepared, log, tell) if wanted else None
        memory = None
        if check is not None:
            runs, budget = stopping.remaining, budget_of(study, loaded)
            memory = memory_for(check, loaded, runs, windows.seq_len, budget)
            # Before the calibration: perhaps no batch makes the sweep small enough.
            memory.shape(len(windows))
        inputs = calibrated(prepared, log, tell)
        environment = environment_of(loaded)
        sessions(log, environment, tell)
        found = _Findings(study, prepared, log, stopping, environment, inputs, bars)
        injector = prepared.injector(inputs["amax"], inputs.get("by_expert"))
        local_errors(prepared, study, injector, log, tell)
        if prepared.estimated:
            estimate(prepared, injector, log, tell)
        if check is not None and memory is not None:
            _measure(found, injector, memory, check, tell)
        log.require_in_place()
        results = found.results(_complete(prepared, log, stopping.reached, tell))
        if study.question.remedies:

            def checked() -> SelfCheck:
                return check or _checked(prepared, log, tell)

            tried, gave = measure_remedies(
                study, prepared, results, folder, injector, checked, tell
            )
            results = replace(results, remedies=tried.causes, remedied=gave)
    finally:
        log.close()
    diagnosis = Diagnosis(results, folder if keep else None)
    if keep:
        tell(Progress("writing"))
        write_outputs(diagnosis, folder)
    return diagnosis


@dataclass(frozen=True)
class _Findings:
    """All that results are made of."""

    study: Study
    prepared: Prepared
    log: Log
    stopping: Stopping
    environment: dict[str, Any]
    inputs: dict[str, Any]
    accept: Sequence[str]

    def results(self, wanted: Iterable[Key]) -> Results:
        """Results as the log is now.

        Args:
            wanted: Which rows of it they have.
        """
        prepared, notes = self.prepared, self.log.notes
        calibration = describe_windows(prepared.calibration)
        errors, local = noted_errors(self.log)
        return Results(
            study=self.study.model_dump(mode="json"),
            model=describe_model(prepared.loaded),
            data=describe_windows(prepared.windows)
            | {"calibration": calibration | {"evaluated": prepared.calibration.evaluated}},
            protocol={
                "activation_scale": self.study.numerics.activation_scale.value,
                "identity": prepared.identity,
                "also_quantized": also_quantized(
                    prepared.loaded.layout.sites, prepared.design.contrasts
                ),
                "sessions": notes["sessions"],
                "shapes": self.log.shapes,
                "stopping": self.stopping.to_json(self.log, len(prepared.windows)),
                "self_check": notes.get("self_check"),
                "notes": notes.get("notes", []),
            }
            | ({"accept": list(self.accept)} if self.accept else {}),
            environment=self.environment | {"wall_s": self.log.wall_s},
            sites=prepared.loaded.layout.sites,
            contrasts=prepared.design.contrasts,
            ledger=self.log.ledger.settled(wanted),
            given={c.unit.name: c.own for c in prepared.design.given if c.unit is not None},
            causes=prepared.design.causes,
            errors=errors,
            local=local,
            activations=[ActivationRecord(**layer) for layer in self.inputs["layers"]],
        )


def _checked(prepared: Prepared, log: Log, tell: Listener) -> SelfCheck:
    """The self-check, before anything that takes long."""
    tell(Progress("loading", note=None, detail="comparing the blocks with the model's own forward"))
    check = self_check(prepared.loaded, prepared.windows.ids)
    # Of a model that overflows it is no number: the measurement names where that begins.
    if "self_check" not in log.notes and isfinite(check.difference):
        log.note("self_check", asdict(check))
    return check


def calibrated(prepared: Prepared, log: Log, tell: Listener) -> dict[str, Any]:
    """Amax and statistics of every linear's input, from the log or a pass of the model.

    Raises:
        OutputError: What the log has is not of this model's linears.
    """
    if "inputs" in log.notes:
        require_inputs(log.notes["inputs"], prepared.loaded, log.path)
    else:
        observed = observe(prepared.loaded, prepared.calibration, tell, "calibrating")
        log.note("inputs", inputs_note(prepared.loaded, observed))
        if note := unseen_note(activation_records(prepared.loaded, observed)):
            tell(Progress("calibrating", note=note))
    return log.notes["inputs"]


def _complete(prepared: Prepared, log: Log, stopped: bool, tell: Listener) -> list[Key]:
    """The rows that go into the results: of every window, or of all that the goal wants.

    It does not matter which session they come from. What another method has left unfinished stays
    in the log.
    """
    total, design = len(prepared.windows), prepared.design
    estimates = [(contrast.own, 0, "gradient") for contrast in design.contrasts if contrast.unit]
    known = {run.recipe for run in design.runs}
    mixed = any(recipe not in known for recipe in log.ledger)
    ways = {"exact": keys_of(design.runs), "gradient": estimates}
    ways |= {"designed": keys_of(design.designed)} if mixed else {}
    wanted = dict.fromkeys(keys_of(prepared.runs))
    for method, keys in ways.items():
        windows = len(log.done(keys)) if keys else 0
        if windows == total:
            wanted |= dict.fromkeys(keys)
        elif windows and not (stopped and wanted.keys() >= set(keys)):
            say(
                tell,
                f"{windows} of {total} windows with --method {method} are kept, but not in these "
                "results; the same command with it goes on",
            )
    return list(wanted)


def _goal(study: Study) -> Goal | None:
    """When to stop, if it is about what this run measures: only of a time have mixtures a say."""
    goal, methods = study.question.stop_when, study.run.method
    timed = isinstance(goal, TimeGoal) and Method.DESIGNED in methods
    return goal if timed or Method.EXACT in methods else None


def _measure(
    found: _Findings, injector: Injector, memory: Memory, check: SelfCheck, tell: Listener
) -> None:
    prepared, log, windows = found.prepared, found.log, found.prepared.windows
    worker = Worker(prepared.loaded, windows.ids, injector, found.study.numerics.seed, check)
    with crew_of(found.study, prepared, worker, injector, check, tell) as crew:
        sweep = schedule(worker, memory, log, check, found.stopping, crew=crew)
        say(tell, *sweep.notes)
        _run(found, sweep, tell)


def _run(found: _Findings, sweep: Scheduler, tell: Listener) -> None:
    prepared, log = found.prepared, found.log
    windows = prepared.windows
    keys = keys_of(prepared.runs)
    if before := log.done(keys):
        say(tell, f"{len(before)} of {len(windows)} windows were measured before")

    @lru_cache(maxsize=1)  # made once a task, and only for listeners that look at it
    def so_far(windows: int) -> Diagnosis:
        return Diagnosis(found.results(keys))

    def measured(event: Progress) -> None:
        tell(replace(event, so_far=partial(so_far, event.windows) if event.windows else None))

    try:
        sweep.run(measured)
    finally:
        if sweep.notes:
            log.note("notes", list(dict.fromkeys([*log.notes.get("notes", []), *sweep.notes])))


def _write_study(study: Study, folder: Path) -> None:
    text = text_bytes(study.to_yaml())
    replace_file(folder / "study.yaml", text, "choose another folder with -o")
