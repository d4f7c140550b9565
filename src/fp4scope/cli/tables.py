"""Results as tables on the terminal."""

from collections.abc import Iterator

from rich.console import Console

from fp4scope.cli.terminal import clock, command, console, in_grid, say, show
from fp4scope.diagnosis import Diagnosis
from fp4scope.report import labels
from fp4scope.report.answer import DISTRUST, answer
from fp4scope.report.designed import about_designed
from fp4scope.report.divergence import divergence
from fp4scope.report.files import outputs
from fp4scope.report.findings import Findings
from fp4scope.report.given import given_recipes
from fp4scope.report.routing import replay, routing
from fp4scope.report.section import Section
from fp4scope.report.sections import activations, costs, units
from fp4scope.report.selection import LAYERS_SHOWN
from fp4scope.report.sentences import agreements, headlines, next_step, then_step
from fp4scope.report.stopping import intervals_used, stopping_lines, windows_measured


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Everything a finished run found: files, tables, legend, findings, and where to go on."""
    out = console()
    _files(out, diagnosis)
    for section in (*main_tables(diagnosis), activations(diagnosis)):
        out.print()
        show(out, in_grid(section))
    results = diagnosis.results
    most = "up to " if results.anytime else ""
    keep, only = labels.KEEP, labels.ONLY
    say(
        out,
        f"\nPaired over {most}{windows_measured(results)} windows of {results.data['seq_len']} "
        f"tokens, with {intervals_used(results).rstrip(',')}. {labels.SIGN} {keep.name}: "
        f"{keep.meaning}; {only.name}: {only.meaning}. Projections that share a letter (tier) do "
        f"not differ significantly. {labels.SIGNIFICANT} {labels.NOISE}",
        style="dim",
    )
    if results.estimated:
        say(out, labels.ESTIMATES_MEAN, style="dim")
    out.print()
    print_findings(diagnosis)


def print_findings(diagnosis: Diagnosis) -> None:
    """What a finished run found in words, and where to go on."""
    out, results = console(), diagnosis.results
    for line in (*stopping_lines(results), *headlines(diagnosis), *agreements(diagnosis)):
        say(out, f"- {line}", hang="  ")
    print_answer(out, diagnosis)
    _further(out, diagnosis)


def print_answer(out: Console, found: Findings) -> None:
    """Which format, whether it meets the bar, what to keep, and what to distrust."""
    said = answer(found)
    out.print()
    show(out, in_grid(said.table))
    points = [*said.points, *([(DISTRUST, said.caveats)] if said.caveats else [])]
    for question, lines in points:
        say(out, f"\n{question}", style="bold")
        for line in lines:
            say(out, f"- {line}", hang="  ")


def _files(out: Console, diagnosis: Diagnosis) -> None:
    if diagnosis.folder is None:
        return
    names = [path.name for path in outputs(diagnosis.folder)]
    if figures := len(list(diagnosis.folder.glob("figures/*"))):
        names.append(f"figures ({figures})")
    out.print(f"\nWritten to {diagnosis.folder}:", soft_wrap=True)
    say(out, f"  {', '.join(names)}", hang="  ")


def _further(out: Console, diagnosis: Diagnosis) -> None:
    """The page, the next command, and how long this took."""
    out.print()
    wall = diagnosis.results.environment.get("wall_s")
    if wall is not None:
        out.print(f"Took: {clock(wall)}")
    if diagnosis.folder is None:
        return
    page = diagnosis.folder / "report.html"
    if page.exists():
        out.print(f"Open: {page.resolve().as_uri()}", soft_wrap=True)
    if words := next_step(diagnosis, diagnosis.folder):
        command(out, "Next:", words)
        if then := then_step(words):
            command(out, "Then:", then)


def main_tables(found: Findings) -> Iterator[Section]:
    """Whole models, projections (and blocks and patterns) in full, the largest layers."""
    yield from so_far(found)
    for level in ("blocks", "patterns"):
        yield from units(found, level, apart=True)
    for level in ("layers", "experts"):
        yield from units(found, level, apart=True, most=LAYERS_SHOWN)
    yield from about_designed(found)


def so_far(found: Findings) -> Iterator[Section]:
    """What is known first: whole models, projections."""
    yield from costs(found, apart=True)
    yield from divergence(found)
    yield from given_recipes(found)
    yield from routing(found)
    yield from replay(found)
    yield from units(found, "projections", apart=True)
