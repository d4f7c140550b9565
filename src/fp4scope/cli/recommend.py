"""`fp4scope recommend`: a recipe that was measured as a whole, on the terminal and as a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import command, console, in_grid, say, show
from fp4scope.deploy.bar import Verdict
from fp4scope.deploy.bound import Bound
from fp4scope.deploy.palette import engine_of
from fp4scope.deploy.recommendation import Recommendation
from fp4scope.report.decision import decision_section, engine_lines
from fp4scope.report.recommendation import RECIPE, held_line, next_commands, verdict_lines
from fp4scope.report.section import Section
from fp4scope.study import Study


def print_recommendation(
    study: Study,
    folder: Path,
    bound: Bound,
    *,
    palette: str | None,
    texts: Mapping[str, Path] | None = None,
    quiet: bool = False,
    **served: str | None,
) -> Verdict:
    """Run, decide, measure, show and write.

    Args:
        study: It.
        folder: Where all is written.
        bound: What the recipe may cost or store.
        palette: What it may choose from.
        texts: By domain, if there are several.
        quiet: Whether no progress is shown.
        served: `serve_on` and `engine`.

    Returns:
        Whether the recipe is recommended.
    """
    with Screen(quiet) as screen:
        screen.note("loading torch and the model ...")
        from fp4scope.conductor.recommendation import begin

        found = begin(study, folder, bound, texts=texts, palette=palette, progress=screen, **served)
    _show(found, folder)
    return found.outcome


def print_going_on(
    begun: Path,
    folder: Path,
    bound: Bound,
    options: Mapping[str, Any],
    *,
    palette: str | None,
    engine: str | None,
    serve_on: str | None,
    quiet: bool = False,
) -> Verdict:
    """The same from a run that is there: run what is missing."""
    with Screen(quiet) as screen:
        screen.note("loading torch and the model ...")
        from fp4scope.conductor.recommendation import go_on

        found = go_on(
            begun,
            folder,
            bound,
            palette=palette,
            serve_on=serve_on,
            engine=engine_of(engine, palette),
            progress=screen,
            options=options,
        )
    _show(found, folder)
    return found.outcome


def _show(found: Recommendation, folder: Path) -> None:
    from fp4scope.report.predicted import proof_sections  # with matplotlib
    from fp4scope.report.recommendation_page import PAGE

    out = console()
    tables: list[Section] = [
        decision_section(found.decider, found.chosen.decision),
        *proof_sections(found.parts, found.bars, found.chosen.decision.recipe),
    ]
    for section in tables:
        show(out, in_grid(section))
        out.print()
    say(out, held_line(found), style="dim")
    for line in engine_lines(found.decider, found.chosen.decision):
        say(out, line)
    for line in verdict_lines(found):
        say(out, f"- {line}", style="bold", hang="  ")
    path = folder / RECIPE
    out.print(f"\nWritten: {path}", soft_wrap=True)
    out.print(f"Open: {(folder / PAGE).resolve().as_uri()}", soft_wrap=True)
    for name, words in next_commands(found, path):
        command(out, name, words)
