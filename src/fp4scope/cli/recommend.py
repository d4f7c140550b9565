"""`fp4scope recommend`: a recipe that was measured as a whole, on the terminal and as a file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4scope.cli.progress import Screen
from fp4scope.cli.recipe import decision_section, engine_lines
from fp4scope.cli.terminal import command, console, in_grid, say, show
from fp4scope.deploy.bar import Verdict
from fp4scope.deploy.bound import Bound
from fp4scope.deploy.palette import engine_of
from fp4scope.report.given import gigabytes
from fp4scope.report.numbers import number
from fp4scope.report.section import Section
from fp4scope.stats import Size
from fp4scope.study import Study

if TYPE_CHECKING:
    from fp4scope.conductor.recommendation import Recommendation


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


def _show(found: "Recommendation", folder: Path) -> None:
    from fp4scope.report.predicted import REPORT, proof_sections  # with matplotlib

    out = console()
    tables: list[Section] = [
        decision_section(found.decider, found.chosen.decision),
        *proof_sections(found.parts, found.bars),
    ]
    for section in tables:
        show(out, in_grid(section))
        out.print()
    count = len(found.certified)
    held = f"the last table hold for its {count} recipes"
    if found.texts:
        count *= len(found.texts)
        held = f"the last {len(found.texts)} tables hold for their {count} rows"
    say(out, f"Intervals of {held} at once.", style="dim")
    for line in engine_lines(found.decider, found.chosen.decision):
        say(out, line)
    for line in verdict_lines(found):
        say(out, f"- {line}", style="bold", hang="  ")
    path = folder / "recipe.yaml"
    out.print(f"\nWritten: {path}", soft_wrap=True)
    out.print(f"Predicted against measured: {folder / REPORT}", soft_wrap=True)
    if found.is_recommended:
        words = ["fp4scope", "export", str(path), "--to", "compressed-tensors"]
        command(out, "Next:", [*words, "--checkpoint", "DIR"])


def verdict_lines(found: "Recommendation") -> Iterator[str]:
    """The answer in a sentence or two."""
    chosen, searched = found.chosen, found.searched
    what = _named(chosen.decision.size)
    where = ", on every text" if found.texts else ""
    said = " and ".join(bar.text for bar in found.bars)
    if searched is not None:
        before, after = (_milli(one.found["kl"].mean) for one in (searched.start, searched.end))
        yield (
            "On refine the prediction of the choice failed: effects do not add up in this model. "
            f"So {searched.moves} changes of single groups were measured there in "
            f"{searched.passes} passes; KL went from {before} to {after} millinats, bits from "
            f"{number(searched.start.decision.size.bits, digits=2)} to "
            f"{number(searched.end.decision.size.bits, digits=2)}."
        )
    if found.verdict is Verdict.MET:
        yield f"{said}: met by {what}{where}, on windows that the choice has not seen."
    elif found.verdict is Verdict.UNDECIDED:
        yield (
            f"{said}: undecided for {what}; an interval crosses the bar. Measure more windows, or "
            "allow a larger recipe."
        )
    elif found.verdict is Verdict.MISSED:
        yield f"{said}: missed, by {what} too. Allow more, or give a palette with larger formats."
    expected = "Measured on refine" if searched is not None else "Predicted"
    if chosen.is_as_predicted:
        yield f"{expected} and measured here agree."
    else:
        yield (
            f"{expected} and measured here do not agree: what was expected of this recipe failed. "
            "Measure more windows, or allow more bits."
        )
    if not found.is_recommended:
        yield "No recommendation: the recipe is written as it was measured, and is not one."


def _named(size: Size) -> str:
    return f"{number(size.bits, digits=2)} bits a weight, {gigabytes(size.bytes)}"


def _milli(nats: float) -> str:
    return number(1e3 * nats, digits=1)
