"""Remedies of the most costly units, measured on windows that did not choose these units.

The first half of the windows, by number, chooses them; the other half measures. What is measured
is kept in a log of its own beside that of the study, and goes on where it was stopped.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fp4scope.conductor.calibrate import observe_moments_of
from fp4scope.conductor.prepare import Prepared, say
from fp4scope.design import Design, keys_of, remedied
from fp4scope.errors import StudyError
from fp4scope.ledger import Ledger, Log, Results
from fp4scope.operands import Injector
from fp4scope.stats import MIN_WINDOWS, costly_units
from fp4scope.study import Study
from fp4scope.sweep import Listener, SelfCheck, Worker, memory_for, schedule

_LOG = "remedies.jsonl"


def measuring(windows: int) -> range:
    """Numbers of the windows that measure, among all: the second half."""
    return range(windows // 2, windows)


def require_windows(study: Study, windows: int) -> None:
    """Refuse too few windows to choose on some and measure on others.

    Raises:
        StudyError: There are too few.
    """
    if study.question.remedies and windows < 2 * MIN_WINDOWS:
        raise StudyError(
            f"remedies is {study.question.remedies}, but half of {windows} windows is too few for "
            f"intervals; give {2 * MIN_WINDOWS} or more with --windows, or a longer text, or a "
            "smaller --seq-len"
        )


def measure_remedies(
    study: Study,
    prepared: Prepared,
    results: Results,
    folder: Path,
    injector: Injector,
    checked: Callable[[], SelfCheck],
    tell: Listener,
) -> tuple[Design, Ledger]:
    """Choose units by what the study found, and measure what helps them.

    Args:
        study: It.
        prepared: Its model and windows.
        results: What it found.
        folder: Where the log is.
        injector: Of the same model.
        checked: Runs the self-check, where anything is left to measure.
        tell: Hears of it.

    Raises:
        Fp4ScopeError: As for the study itself.
    """
    ours = measuring(len(prepared.windows))
    levels = [level.value for level in study.question.causes.levels]
    units = costly_units(results, levels, study.question.remedies, range(ours.start))
    design = remedied(study, prepared.loaded.layout.sites, units)
    log = Log(
        folder / _LOG,
        prepared.identity | {"part": "remedies"},
        counted=study.numerics.replicas,
    )
    try:
        _measure(study, prepared, design, ours, log, injector, checked, tell)
        return design, log.ledger.settled(keys_of(design.runs))
    finally:
        log.close()


def _measure(
    study: Study,
    prepared: Prepared,
    design: Design,
    windows: range,
    log: Log,
    injector: Injector,
    checked: Callable[[], SelfCheck],
    tell: Listener,
) -> None:
    """Measure what the log lacks."""
    if len(log.done(keys_of(design.runs))) >= len(windows) or not design.causes:
        return
    say(tell, f"remedies: {len(design.causes)} to try, windows {windows.start} to {windows[-1]}")
    loaded, ids = prepared.loaded, prepared.windows.ids
    calibration = prepared.calibration
    if calibration.evaluated:  # what is fitted must not see the windows that judge it
        calibration = replace(prepared.windows, ids=ids[: windows.start])
    injector.fit(observe_moments_of(loaded, calibration, _fitted(design), tell))
    check = checked()
    memory = memory_for(check, loaded, design.runs, ids.shape[1], study.run.memory)
    worker = Worker(loaded, ids, injector, study.numerics.seed, check)
    sweep = schedule(worker, memory, log, check, windows=windows)
    say(tell, *sweep.notes)
    sweep.run(lambda event: tell(replace(event, phase="remedies")))


def _fitted(design: Design) -> list[str]:
    """Linears that some remedy treats in a way that is fitted to their inputs."""
    found: set[str] = set()
    for contrast in design.causes:
        sites = contrast.unit.sites if contrast.unit else frozenset[str]()
        found |= {name for name in sites if (own := contrast.own.at(name)) and own.is_fitted}
    return sorted(found)
