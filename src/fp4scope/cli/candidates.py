"""`fp4scope verify` without a checkpoint: which recipes go with what is served."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp4scope.cli.asked import Asked, write_windows
from fp4scope.cli.options import listed
from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import console, in_grid, say, show
from fp4scope.cli.verify import MNAT, PREFILL, estimate_cell
from fp4scope.conductor.candidates import CANDIDATES, Tried, said, try_candidates
from fp4scope.conductor.tasks import recipes_of
from fp4scope.deploy.bar import Verdict
from fp4scope.errors import DataError, StudyError
from fp4scope.files import replace_file
from fp4scope.models import load_model
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.stats.inference.consistency import said_ratio
from fp4scope.stats.inference.intervals import MIN_WINDOWS
from fp4scope.study import Study
from fp4scope.tasks import parse_recipes


def print_candidates(
    model: str,
    asked: Asked,
    options: Mapping[str, Any],
    candidates: str | None,
    out: Path | None,
    quiet: bool,
) -> Verdict:
    """Try candidates, and print how well each goes with what is served.

    Args:
        model: The model in full precision.
        asked: What was served, or how to ask for it.
        options: Of the study: the text, windows, device and dtype.
        candidates: Names, by commas; full precision is always among them.
        out: A file for machines.
        quiet: Whether no progress is shown.

    Returns:
        Met where one alone goes with it, missed where none does, undecided where several do.
    """
    recipes = parse_recipes(listed(CANDIDATES if candidates is None else [candidates]))
    study = Study.build(**{"model": model, **options})
    asked.require(out)
    if asked.ids_out is not None:
        write_windows(study, model, asked.ids_out)
        return Verdict.MET
    with Screen(quiet) as progress:
        served, reference = asked.had(study, model, progress)
        if served is None:
            raise StudyError(
                "give what was served (--served FILE) or a server (--server URL), or name the "
                "checkpoint that is to be verified before --original"
            )
        if len(served.ids) < MIN_WINDOWS:
            raise DataError(f"{len(served.ids)} windows were served; intervals take {MIN_WINDOWS}")
        loaded = load_model(model, device=study.numerics.device, dtype=study.numerics.dtype.value)
        chosen = recipes_of(recipes, loaded.layout.sites)
        tried = try_candidates(loaded, chosen, served, reference, progress)
    screen = console()
    count, tokens = served.logprobs.shape
    say(screen, f"served by {served.engine}: {count} windows of {tokens} targets")
    screen.print()
    show(screen, in_grid(_section(tried)))
    screen.print()
    sentence = said(tried, count)
    say(screen, sentence, style="bold")
    say(screen, PREFILL, style="dim")
    if out is not None:
        content = _data(tried, sentence, served.engine)
        replace_file(out, json.dumps(content, allow_nan=False).encode(), "choose another file")
    return _outcome(tried)


def _outcome(tried: list[Tried]) -> Verdict:
    fit = sum(each.found.is_consistent for each in tried)
    return Verdict.MET if fit == 1 else Verdict.UNDECIDED if fit else Verdict.MISSED


def _section(tried: list[Tried]) -> Section:
    columns = [
        naming("Candidate"),
        Column("Costs, millinats", "Costs, mnat"),
        Column("Served less it, millinats", "Served less it"),
        Column("p", "p"),
        Column("Likelihood, to the likeliest", "Likelihood"),
        Column("KL at least, millinats", "KL at least"),
        Column("Consistent", "Consistent"),
    ]
    rows = [
        [
            Cell(each.name),
            estimate_cell(each.cost),
            estimate_cell(each.found.off),
            Cell(f"{each.found.p_holm:.2g}", value=each.found.p_holm),
            Cell(said_ratio(each.found.log10_ratio), value=each.found.log10_ratio),
            Cell() if each.kl is None else Cell(f"{each.kl.mean * MNAT:.1f}", value=each.kl.mean),
            Cell("yes" if each.found.is_consistent else "no"),
        ]
        for each in tried
    ]
    kept = [i for i, _ in enumerate(columns) if i != 5 or any(t.kl is not None for t in tried)]
    return Section(
        "What may be served",
        [columns[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
    )


def _data(tried: list[Tried], sentence: str, engine: str) -> dict[str, Any]:
    rows = [
        {
            "candidate": each.name,
            "consistent": each.found.is_consistent,
            "p": each.found.p,
            "p_holm": each.found.p_holm,
            "log10_likelihood_ratio": each.found.log10_ratio,
            **each.cost.columns("cost_nats"),
            **each.found.off.columns("served_less_predicted_nats"),
            **({} if each.kl is None else each.kl.columns("kl_at_least_nats")),
            **(
                {}
                if each.sharpness is None
                else {"temperature": each.sharpness.temperature, "p_temperature": each.sharpness.p}
            ),
        }
        for each in tried
    ]
    return {
        "version": 1,
        "engine": engine,
        "verdict": sentence,
        "outcome": _outcome(tried).value,
        "candidates": rows,
    }
