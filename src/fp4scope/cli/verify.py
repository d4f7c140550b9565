"""`fp4scope verify`: whether an engine serves what was predicted, and whose fault it is if not."""

import json
from collections.abc import Mapping
from math import isinf, log10
from pathlib import Path
from typing import Any

import torch

from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import console, in_grid, say, show
from fp4scope.conductor.triage import Checked, Found, open_checkpoint, run_triage, windows_of_text
from fp4scope.deploy.held import SUSPICIOUS
from fp4scope.deploy.served import Served, ask_server
from fp4scope.deploy.triage import QUANTIZATION, SERVING, Triage
from fp4scope.deploy.verify import Verdict
from fp4scope.errors import DataError, StudyError
from fp4scope.files import replace_file, require_writable
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.stats.inference.intervals import Estimate
from fp4scope.stats.inference.matching import FEWEST_WINDOWS
from fp4scope.study import Study
from fp4scope.sweep import Progress
from fp4scope.table import Interval

PREFILL = (
    "Log-probabilities of prompts prove what runs at prefill. Kernels that decode one token at a "
    "time may be others, and are not seen here."
)
_MNAT = 1e3
_SAYS = {"beyond": "off", "within": "as predicted", "open": "cannot tell"}


def print_verdict(
    checkpoint: Path,
    served: Path | None,
    server: str | None,
    options: Mapping[str, Any],
    *,
    model: str | None = None,
    reference: Path | None = None,
    ids_out: Path | None = None,
    save: Path | None = None,
    out: Path | None = None,
    quiet: bool = False,
) -> bool:
    """Verify, and print what was found.

    Args:
        checkpoint: The folder, as `export` or another program leaves it.
        served: What an engine served.
        server: Address of one that is asked.
        options: Of the study: the text, windows, device and dtype.
        model: Where the original is, if not where the recipe says.
        reference: The original as the same engine serves it.
        ids_out: Where the windows are written, and nothing else is done.
        save: Where what a server gave is written.
        out: Where the verdict is written.
        quiet: Whether no progress is shown.

    Returns:
        Whether nothing is off.
    """
    given = sum(one is not None for one in (served, server, ids_out))
    if given > 1 or (not given and model is None):
        raise StudyError(
            "give what was served (--served FILE), a server (--server URL), or a file for the "
            "windows that are to be served (--ids FILE); with --original MODEL the checkpoint "
            "alone is verified too"
        )
    for path in filter(None, (ids_out, save, out)):
        require_writable(path)
    study = Study.build(**{"model": str(checkpoint), **options})
    if ids_out is not None:
        write_windows(study, str(checkpoint), ids_out)
        return True
    with Screen(quiet) as progress:
        found, full = what_was_served(study, str(checkpoint), served, server, reference, progress)
        if save is not None and found is not None:
            found.write(save)
        checked = open_checkpoint(checkpoint, model)
        ids = windows_of_text(study, str(checkpoint)) if found is None else found.ids
        told = run_triage(study, checked, torch.as_tensor(ids), found, full, progress)
    _print(told, checked, found)
    if out is not None:
        content = _data(told, checked, found)
        replace_file(out, json.dumps(content, allow_nan=False).encode(), "choose another file")
    return _is_right(told, checked)


def write_windows(study: Study, tokenizer_of: str, path: Path) -> None:
    """Write the windows of token ids that are to be served."""
    windows = windows_of_text(study, tokenizer_of).tolist()
    replace_file(path, json.dumps(windows).encode(), "choose another file")
    console().print(f"Written: {path}", soft_wrap=True)


def what_was_served(
    study: Study,
    tokenizer_of: str,
    served: Path | None,
    server: str | None,
    reference: Path | None,
    tell: Screen,
) -> tuple[Served | None, Served | None]:
    """What an engine gave, and what it gave with the original; None where it was not asked.

    Raises:
        DataError: Too few windows, or two files of different ones.
    """
    found = Served.read(served) if served is not None else None
    full = None if reference is None else Served.read(reference)
    if server is not None:
        ids = windows_of_text(study, tokenizer_of).tolist()
        total = len(ids)
        found = ask_server(
            server,
            ids,
            ran=lambda done: tell(Progress("asking", done, total, f"{done} of {total} windows")),
        )
    if found is not None and len(found.ids) < FEWEST_WINDOWS:
        raise DataError(
            f"{len(found.ids)} windows were served; the verdict takes {FEWEST_WINDOWS} or more"
        )
    if full is not None and (
        found is None or full.ids.shape != found.ids.shape or (full.ids != found.ids).any()
    ):
        raise DataError("the reference was served on other windows; serve both on one file of ids")
    return found, full


def _is_right(told: Found, checked: Checked) -> bool:
    served = told.verdict is None or told.verdict.as_predicted
    return served and checked.is_whole and not told.triage.faults


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
        said = f"checkpoint: {len(wrong)} of {total} packed weights are not rounded to nearest"
        lines.append((f"{said}, {_energy(first, wrong)}", wrong[first] <= SUSPICIOUS))
    else:
        said = f"checkpoint: all {total} packed weights are what the recipe makes of the original"
        lines.append((said, True))
    if checked.plain:
        said = f"{len(checked.plain)} tensors in full precision are not the original's"
        lines.append((f"{said}, {checked.plain[0]} first", not checked.own))
    if checked.own and checked.scales:
        site, ratio = next(iter(checked.scales.items()))
        said = f"{len(checked.scales)} of {len(checked.stored)} input scales are not the recipe's"
        lines.append((f"{said}, {site} first ({ratio:.3g} times it)", False))
    if told.far:
        site, ratio = next(iter(told.far.items()))
        said = f"{len(told.far)} input scales are far from what enters here"
        lines.append((f"{said}, {site} first ({ratio:.3g} times its largest)", False))
    elif checked.stored:
        lines.append((f"all {len(checked.stored)} input scales are near what enters here", True))
    return lines


def _energy(name: str, wrong: Mapping[str, float]) -> str:
    ratio = wrong[name]
    if isinf(ratio):
        return f"{name} first, which is absent or of another shape"
    return f"{name} first (its error has {10 * log10(max(ratio, 1e-30)):+.1f} dB more)"


def _steps(found: Triage) -> Section:
    """What each step adds."""
    columns = [
        naming("Step"),
        Column("Adds, millinats", "Adds, mnat"),
        Column("Verdict", "Verdict"),
    ]
    rows = [[Cell(QUANTIZATION), _change(found.quantization), Cell("what the format costs")]]
    rows += [
        [Cell(name), _change(step.change), Cell(_SAYS[step.state])]
        for name, step in found.steps.items()
    ]
    rows.append([Cell("all of it"), _change(found.damage), Cell()])
    if found.rerun is not None:
        rows.append([Cell("a second run"), _change(found.rerun), Cell("noise of rounding")])
    return Section("Where the damage comes from", columns, rows)


def _change(found: Estimate) -> Cell:
    return _cell(Interval(found.mean, found.low, found.high).times(_MNAT), "+.1f")


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
            _cell(Interval(less.mean, less.low, less.high).times(_MNAT), "+.1f"),
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
    content: dict[str, Any] = {
        "version": 1,
        "as_predicted": _is_right(told, checked),
        "wrong_weights": list(checked.weights) if checked.own else [],
        "far_input_scales": told.far,
        "triage": told.triage.to_json(),
    }
    if verdict is None or served is None:
        return content | {"engine": None, "verdict": None, "candidates": []}
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
        "candidates": rows,
    }
