"""`fp4scope recommend`: a recipe that was measured as a whole, on the terminal and as a file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4scope.cli.progress import Screen
from fp4scope.cli.recipe import decision_section
from fp4scope.cli.terminal import command, console, in_grid, say, show
from fp4scope.deploy.bar import Bar, Verdict
from fp4scope.deploy.bound import Bound
from fp4scope.deploy.proof import Measured
from fp4scope.report.given import gigabytes
from fp4scope.report.numbers import measured, number, share
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.stats import Estimate
from fp4scope.study import Study

if TYPE_CHECKING:
    from fp4scope.conductor.recommendation import Recommendation


def print_recommendation(
    study: Study, folder: Path, bound: Bound, palette: str | None, serve_on: str | None
) -> None:
    """Run, decide, measure, show and write."""
    with Screen() as screen:
        screen.note("loading torch and the model ...")
        from fp4scope.conductor.recommendation import recommend

        found = recommend(study, folder, bound, palette=palette, serve_on=serve_on, progress=screen)
    _show(found, folder, bound)


def print_going_on(
    begun: Path,
    folder: Path,
    bound: Bound,
    palette: str | None,
    serve_on: str | None,
    options: Mapping[str, Any],
) -> None:
    """The same from a run that is there: run what is missing."""
    with Screen() as screen:
        screen.note("loading torch and the model ...")
        from fp4scope.conductor.recommendation import go_on

        found = go_on(
            begun,
            folder,
            bound,
            palette=palette,
            serve_on=serve_on,
            progress=screen,
            options=options,
        )
    _show(found, folder, bound)


def _show(found: "Recommendation", folder: Path, bound: Bound) -> None:
    out = console()
    show(out, in_grid(decision_section(found.decider, found.chosen.decision)))
    out.print()
    show(
        out,
        in_grid(
            proof_section("Measured on the windows that it was taken on", found.refined, bound.bars)
        ),
    )
    out.print()
    title = "Measured on windows that nothing was chosen on"
    show(out, in_grid(proof_section(title, found.certified, bound.bars)))
    say(
        out,
        f"Intervals of the last table hold for its {len(found.certified)} recipes at once.",
        style="dim",
    )
    out.print()
    for line in verdict_lines(found.chosen, found.verdict, bound.bars):
        say(out, f"- {line}", style="bold", hang="  ")
    path = folder / "recipe.yaml"
    out.print(f"\nWritten: {path}", soft_wrap=True)
    export = ["fp4scope", "export", str(path), "--to", "compressed-tensors", "--checkpoint", "DIR"]
    command(out, "Next:", export)


def proof_section(title: str, rows: Sequence[Measured], bars: Sequence[Bar]) -> Section:
    """What was predicted of recipes, and what was measured."""
    columns = [
        naming("bits of the linears"),
        Column("size", "size"),
        Column("predicted KL, millinats", "predicted", "KL, mnat"),
        Column("measured", "measured", "KL, mnat"),
        Column("predicted, millinats per token", "predicted", "mnat"),
        Column("measured", "measured", "mnat"),
        Column("top-1", "top-1"),
        Column("as predicted", "as predicted"),
        *([Column("the bar", "the bar")] if bars else []),
    ]
    return Section(title, columns, [[*_cells(row), *_verdict(row, bars)] for row in rows])


def _cells(row: Measured) -> Iterator[Cell]:
    size = row.decision.size
    yield Cell(number(size.bits, digits=2), value=size.bits)
    yield Cell(gigabytes(size.bytes), value=size.bytes)
    for measure in ("kl", "nll"):
        predicted = row.decision.predicted[measure]
        ends = {"x": predicted.mean, "x_low": predicted.low, "x_high": predicted.high}
        yield measured(ends, "x")
        yield _estimate(row.found[measure])
    yield share(row.found["top1"].mean)
    yield Cell("yes" if row.is_as_predicted else "NO")


def _verdict(row: Measured, bars: Sequence[Bar]) -> list[Cell]:
    return [Cell(row.verdict(bars).value)] if bars else []


def _estimate(found: Estimate) -> Cell:
    return measured(found.columns("x"), "x")


def verdict_lines(chosen: Measured, verdict: Verdict | None, bars: Sequence[Bar]) -> Iterator[str]:
    """The answer in a sentence or two."""
    size = chosen.decision.size
    what = f"{number(size.bits, digits=2)} bits a weight, {gigabytes(size.bytes)}"
    said = " and ".join(bar.text for bar in bars)
    if verdict is Verdict.MET:
        yield f"{said}: met by {what}, on windows that the choice has not seen."
    elif verdict is Verdict.UNDECIDED:
        yield (
            f"{said}: undecided for {what}; an interval crosses the bar. Measure more windows, or "
            "allow a larger recipe."
        )
    elif verdict is Verdict.MISSED:
        yield f"{said}: missed, by {what} too. Allow more, or give a palette with larger formats."
    if chosen.is_as_predicted:
        yield "Predicted and measured agree."
    else:
        yield (
            "The prediction failed for this recipe: effects do not add up in this model. Trust "
            "what was measured, and do not take recipes of other sizes from the predictions."
        )
