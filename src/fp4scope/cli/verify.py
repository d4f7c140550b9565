"""`fp4scope verify`: whether an engine serves what was predicted, and whose fault it is if not."""

import json
from collections.abc import Mapping
from math import isinf, log10
from pathlib import Path
from typing import Any

import torch

from fp4scope.cli.asked import Asked, write_windows
from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import console, in_grid, say, show
from fp4scope.conductor.triage import Checked, Found, open_checkpoint, run_triage, windows_of_text
from fp4scope.deploy.bar import Verdict as Outcome
from fp4scope.deploy.held import SUSPICIOUS
from fp4scope.deploy.served import Served
from fp4scope.deploy.triage import QUANTIZATION, SERVING, Triage
from fp4scope.deploy.verify import Verdict
from fp4scope.errors import StudyError
from fp4scope.files import named, replace_file
from fp4scope.names import visible
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.stats.inference.intervals import Estimate
from fp4scope.study import Study
from fp4scope.table import Interval

PREFILL = (
    "Log-probabilities of prompts prove what runs at prefill. Kernels that decode one token at a "
    "time may be others, and are not seen here."
)
MNAT = 1e3
_SAYS = {"beyond": "off", "within": "as predicted", "open": "cannot tell"}


def print_verdict(
    checkpoint: Path,
    model: str | None,
    asked: Asked,
    options: Mapping[str, Any],
    *,
    out: Path | None = None,
    quiet: bool = False,
) -> Outcome:
    """Verify, and print what was found.

    Args:
        checkpoint: The folder, as `export` or another program leaves it.
        model: Where the original is, if not where the recipe says.
        asked: What was served, or how to ask for it.
        options: Of the study: the text, windows, device and dtype.
        out: Where the verdict is written.
        quiet: Whether no progress is shown.

    Returns:
        Met where nothing is off, missed where something is, and undecided where a step cannot be
        told.
    """
    asked.require(out)
    # What has no owner in front of it is no name of the hub.
    if not checkpoint.exists() and len(checkpoint.parts) != 2:
        raise StudyError(f"{named(checkpoint)} is not there; give the folder of a checkpoint")
    if not asked.anything and model is None:
        raise StudyError(
            "give what was served (--served FILE), a server (--server URL), or a file for the "
            "windows that are to be served (--ids FILE); with --original MODEL the checkpoint "
            "alone is verified too"
        )
    study = Study.build(**{"model": str(checkpoint), **options})
    if asked.ids_out is not None:
        write_windows(study, str(checkpoint), asked.ids_out)
        return Outcome.MET
    with Screen(quiet) as progress:
        found, full = asked.had(study, str(checkpoint), progress)
        checked = open_checkpoint(checkpoint, model)
        ids = windows_of_text(study, str(checkpoint)) if found is None else found.ids
        told = run_triage(study, checked, torch.as_tensor(ids), found, full, progress)
    _print(told, checked, found)
    if out is not None:
        content = _data(told, checked, found)
        replace_file(out, json.dumps(content, allow_nan=False).encode(), "choose another file")
    return _outcome(told, checked)


def _outcome(told: Found, checked: Checked) -> Outcome:
    found, verdict = told.triage, told.verdict
    is_open = verdict is not None and verdict.is_open
    other = verdict is not None and not verdict.as_predicted and not is_open
    cheaper = SERVING in found.steps and found.steps[SERVING].state == "beyond"
    if other or cheaper or found.faults or not checked.is_whole:
        return Outcome.MISSED
    return Outcome.UNDECIDED if is_open or found.still_open else Outcome.MET


def _print(told: Found, checked: Checked, served: Served | None) -> None:
    screen = console()
    for line, is_right in _stored(told, checked):
        say(screen, line, style=None if is_right else "bold")
    screen.print()
    show(screen, in_grid(_steps(told.triage)))
    screen.print()
    if told.verdict is not None and served is not None:
        windows, tokens = served.logprobs.shape
        say(screen, f"served by {served.engine}: {windows} windows of {tokens} targets")
        screen.print()
        show(screen, in_grid(_section(told.verdict)))
        screen.print()
    for said in told.triage.sentences():
        say(screen, said, style="bold")
    if told.verdict is not None:
        say(screen, _served(told.triage, told.verdict), style="bold")
        say(screen, PREFILL, style="dim")


def _served(found: Triage, verdict: Verdict) -> str:
    """Which way of running it is served, unless none that was tried costs what that does."""
    if SERVING in found.faults and verdict.as_predicted:
        return (
            f"{SERVING} is off in a way that is none of these; {verdict.candidates[0].name} is the "
            "closest. Look at the engine's log, at its kernels, and at single layers"
        )
    return verdict.sentence()


def _stored(told: Found, checked: Checked) -> list[tuple[str, bool]]:
    """What the checkpoint stores, in lines, and whether it is right."""
    total = len(checked.export.packed)
    wrong = checked.weights
    lines: list[tuple[str, bool]] = []
    if checked.own and wrong:
        first = next(iter(wrong))
        said = f"{len(wrong)} of {total} packed weights are not what the recipe makes of the "
        lines.append((f"checkpoint is off: {said}original, {_energy(first, wrong)}", False))
    elif wrong:
        first = next(iter(wrong))
        said = f"checkpoint: {len(wrong)} of {total} packed weights are rounded otherwise than to"
        lines.append(
            (
                f"{said} nearest under the format's usual scales, {_energy(first, wrong)}",
                wrong[first] <= SUSPICIOUS,
            )
        )
    else:
        said = f"checkpoint: all {total} packed weights are what the recipe makes of the original"
        lines.append((said, True))
    if checked.plain:
        said = f"{len(checked.plain)} tensors in full precision are not the original's"
        lines.append((f"{said}, {checked.plain[0]} first", not checked.own))
    if checked.settings:
        name, (one, other) = next(iter(checked.settings.items()))
        more = f", and so on, {len(checked.settings)} in all" if len(checked.settings) > 1 else ""
        said = f"its configuration is not the original's: {visible(name)} is {_short(other)}, "
        lines.append((f"{said}and {_short(one)} there{more}", False))
    if checked.own and checked.scales:
        site, ratio = next(iter(checked.scales.items()))
        wanted = len(checked.stored.keys() | checked.unscaled)
        said = f"{len(checked.scales)} of {wanted} input scales are not the recipe's"
        how = f"{ratio:.3g} times it" if ratio else "absent"
        lines.append((f"{said}, {site} first ({how})", False))
    if told.far:
        site, ratio = next(iter(told.far.items()))
        said = f"{len(told.far)} input scales are far from what enters here"
        lines.append((f"{said}, {site} first ({ratio:.3g} times its largest)", False))
    elif checked.stored:
        lines.append((f"all {len(checked.stored)} input scales are near what enters here", True))
    return lines


def _short(value: object) -> str:
    return visible(str(value))[:60]


def _energy(name: str, wrong: Mapping[str, float]) -> str:
    ratio = wrong[name]
    if isinf(ratio):
        return f"{name} first, which is absent, of another shape, or needs no rounding"
    return f"{name} first (its error has {10 * log10(max(ratio, 1e-30)):+.1f} dB more)"


def _steps(found: Triage) -> Section:
    """What each step adds."""
    columns = [
        naming("Step"),
        Column("Adds, millinats", "Adds, mnat"),
        Column("Verdict", "Verdict"),
    ]
    rows = [[Cell(QUANTIZATION), estimate_cell(found.quantization), Cell("what the format costs")]]
    rows += [
        [
            Cell(name),
            estimate_cell(step.change),
            Cell("proven" if step.proven else _SAYS[step.state]),
        ]
        for name, step in found.steps.items()
    ]
    rows.append([Cell("all of it"), estimate_cell(found.damage), Cell()])
    if found.rerun is not None:
        rows.append([Cell("a second run"), estimate_cell(found.rerun), Cell("noise of rounding")])
    return Section("Where the damage comes from", columns, rows)


def estimate_cell(found: Estimate) -> Cell:
    """Nats per token as millinats, with the interval."""
    return _cell(Interval(found.mean, found.low, found.high).times(MNAT), "+.1f")


def _section(verdict: Verdict) -> Section:
    """Each candidate, the best first."""
    columns = [
        naming("Candidate"),
        Column("Correlation", "Correlation"),
        Column("Served less predicted, millinats", "Off by, mnat"),
        Column("May be it", "May be it"),
        Column("Slope", "Slope"),
    ]
    found = zip(verdict.candidates, verdict.matches, verdict.less_predicted, strict=True)
    rows = [
        [
            Cell(candidate.name),
            _cell(match.correlation, ".3f"),
            _cell(Interval(less.mean, less.low, less.high).times(MNAT), "+.1f"),
            Cell("yes" if match.same else "no"),
            _cell(match.slope, ".3f"),
        ]
        for candidate, match, less in sorted(
            found, key=lambda each: (not each[1].near, each[1].behind.value or 0)
        )
    ]
    return Section("What is served, token by token", columns, rows)


def _cell(interval: Interval, how: str) -> Cell:
    value, low, high = interval
    shown = "" if value is None else format(value, how)
    aside = "" if low is None or high is None else f"[{low:{how}}, {high:{how}}]"
    return Cell(shown, aside, value)


def _data(told: Found, checked: Checked, served: Served | None) -> dict[str, Any]:
    verdict = told.verdict
    outcome = _outcome(told, checked)
    content: dict[str, Any] = {
        "version": 1,
        "as_predicted": outcome is Outcome.MET,
        "outcome": outcome.value,
        "checkpoint_proven": checked.is_proven,
        "wrong_weights": list(checked.weights) if checked.own else [],
        "far_input_scales": told.far,
        "triage": told.triage.to_json(),
    }
    if verdict is None or served is None:
        return content | {"engine": None, "verdict": None, "candidates": []}
    sharp = verdict.sharpness if verdict.has_temperature else None
    rows = [
        {
            "candidate": candidate.name,
            "cause": candidate.cause,
            "same": match.same,
            "near": match.near,
            **match.correlation.columns("correlation"),
            **match.slope.columns("slope"),
            **match.behind.columns("behind"),
            **less.columns("served_less_predicted_nats"),
        }
        for candidate, match, less in zip(
            verdict.candidates, verdict.matches, verdict.less_predicted, strict=True
        )
    ]
    return content | {
        "engine": served.engine,
        "verdict": _served(told.triage, verdict),
        "temperature": None if sharp is None else sharp.temperature,
        "candidates": rows,
    }
