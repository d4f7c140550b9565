"""`fp4scope verify`: whether an engine serves what was predicted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import console, in_grid, say, show
from fp4scope.data import evaluation_text, evaluation_windows
from fp4scope.deploy.checkpoint import RECIPE
from fp4scope.deploy.plan import Export, plan_export
from fp4scope.deploy.served import Served, ask_server
from fp4scope.deploy.verify import (
    Verdict,
    candidates_of,
    judge,
    losses_of,
    losses_under,
    wrong_weights,
)
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.errors import DataError, StudyError
from fp4scope.files import replace_file, require_writable
from fp4scope.models import LoadedModel, Source, load_model, open_source
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.stats.inference.matching import FEWEST_WINDOWS
from fp4scope.study import Study
from fp4scope.sweep import Progress
from fp4scope.table import Interval

PREFILL = (
    "Log-probabilities of prompts prove what runs at prefill. Kernels that decode one token at a "
    "time may be others, and are not seen here."
)
_MNAT = 1e3


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
        checkpoint: The folder, as `export` leaves it.
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
        Whether all is as predicted.
    """
    if sum(given is not None for given in (served, server, ids_out)) != 1:
        raise StudyError(
            "give what was served (--served FILE), a server (--server URL), or a file for the "
            "windows that are to be served (--ids FILE)"
        )
    for path in filter(None, (ids_out, save, out)):
        require_writable(path)
    if not (checkpoint / RECIPE).is_file():
        raise StudyError(
            f"{checkpoint} has no {RECIPE}, so nothing is predicted of it; give a folder that "
            "`fp4scope export --checkpoint` has written"
        )
    written = WrittenRecipe.read(checkpoint / RECIPE)
    study = Study.build(**{"model": str(checkpoint), **options})
    screen = console()
    if ids_out is not None:
        windows = _windows(study, str(checkpoint)).tolist()
        replace_file(ids_out, json.dumps(windows).encode(), "choose another file")
        screen.print(f"Written: {ids_out}", soft_wrap=True)
        return True
    found = Served.read(served) if served is not None else None
    full = None if reference is None else Served.read(reference)
    if found is None:
        found = ask_server(server or "", _windows(study, str(checkpoint)).tolist())
        if save is not None:
            found.write(save)
    if len(found.ids) < FEWEST_WINDOWS:
        raise DataError(
            f"{len(found.ids)} windows were served; the verdict takes {FEWEST_WINDOWS} or more"
        )
    if full is not None and (full.ids.shape != found.ids.shape or (full.ids != found.ids).any()):
        raise DataError("the reference was served on other windows; serve both on one file of ids")
    source = _opened(written, model or written.model.name, written.model.revision, model is None)
    packed = open_source(str(checkpoint), named=written.recipe.edited, head=_has_head(written))
    export = plan_export(written, source)
    wrong = wrong_weights(export, source, packed)
    with Screen(quiet) as progress:
        verdict = _measured(study, export, source, packed, found, full, progress)
    _print(verdict, wrong, export, found)
    if out is not None:
        content = _data(verdict, wrong, found)
        replace_file(out, json.dumps(content, allow_nan=False).encode(), "choose another file")
    return verdict.as_predicted and not wrong


def _has_head(written: WrittenRecipe) -> bool:
    return any(name.rpartition(".")[2] == "lm_head" for name in written.recipe.edited)


def _opened(written: WrittenRecipe, model: str, revision: str | None, own: bool) -> Source:
    named = written.recipe.edited
    return open_source(model, revision if own else None, named=named, head=_has_head(written))


def _windows(study: Study, checkpoint: str) -> torch.Tensor:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    kind = AutoConfig.from_pretrained(checkpoint).model_type
    return evaluation_windows(study.data, evaluation_text(study.data), tokenizer, kind).ids


def _loaded(study: Study, where: str, revision: str | None = None) -> LoadedModel:
    return load_model(
        where,
        revision=revision,
        device=study.numerics.device,
        dtype=study.numerics.dtype.value,
    )


def _measured(
    study: Study,
    export: Export,
    source: Source,
    packed: Source,
    served: Served,
    reference: Served | None,
    tell: Screen,
) -> Verdict:
    ids = torch.from_numpy(served.ids)
    candidates = candidates_of(export, packed.tensor_scales())
    ran = _Counter(tell, len(ids), ["full precision", *(c.name for c in candidates)])
    original = _loaded(study, source.where, source.revision)
    original.require_known(ids, "the served file")
    full = losses_of(original, ids, ran)
    del original  # two models need not fit
    loaded = _loaded(study, packed.where)
    loaded.require_known(ids, "the served file")
    losses = [losses_under(loaded, export, candidate, ids, ran) for candidate in candidates]
    own = None if reference is None else -reference.logprobs
    return judge(-served.logprobs, full, candidates, losses, own)


class _Counter:
    """Tells how far the windows are, one way of running them after another."""

    def __init__(self, tell: Screen, windows: int, names: Sequence[str]) -> None:
        self._tell, self._windows, self._names, self._done = tell, windows, names, 0

    def __call__(self) -> None:
        self._done += 1
        name = self._names[(self._done - 1) // self._windows]
        self._tell(Progress("measuring", self._done, self._windows * len(self._names), name))


def _print(verdict: Verdict, wrong: list[str], export: Export, served: Served) -> None:
    screen = console()
    total = len(export.packed)
    if wrong:
        say(
            screen,
            f"checkpoint is off: {len(wrong)} of {total} packed weights are not what the recipe "
            f"makes of the original, {wrong[0]} first",
            style="bold",
        )
    else:
        say(
            screen,
            f"checkpoint: all {total} packed weights are what the recipe makes of the original",
        )
    windows, tokens = served.logprobs.shape
    say(screen, f"served by {served.engine}: {windows} windows of {tokens} targets")
    cost = Interval(verdict.cost.mean, verdict.cost.low, verdict.cost.high).times(_MNAT)
    say(screen, f"served less full precision: {_shown(cost)} millinats per token")
    screen.print()
    show(screen, in_grid(_section(verdict)))
    screen.print()
    say(screen, verdict.sentence(), style="bold")
    say(screen, PREFILL, style="dim")


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


def _shown(interval: Interval) -> str:
    value, low, high = interval
    return f"{value:+.1f}" + ("" if low is None else f" [{low:+.1f}, {high:+.1f}]")


def _data(verdict: Verdict, wrong: list[str], served: Served) -> dict[str, Any]:
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
    return {
        "version": 1,
        "engine": served.engine,
        "verdict": verdict.sentence(),
        "as_predicted": verdict.as_predicted and not wrong,
        "wrong_weights": wrong,
        "candidates": rows,
    }
