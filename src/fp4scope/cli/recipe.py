"""`fp4scope recipe`: a decision from a finished run, on the terminal and as a file."""

from collections.abc import Sequence
from pathlib import Path

from fp4scope.cli.terminal import command, console, in_grid, say, show
from fp4scope.deploy.bound import bound_of
from fp4scope.deploy.found import decider, measured_recipe, written
from fp4scope.deploy.palette import engine_of
from fp4scope.diagnosis import load
from fp4scope.report.decision import basis, decision_section, engine_lines, front_section

FRONT_SHOWN = 9


def print_recipe(
    folder: Path,
    *,
    accept: Sequence[str] = (),
    max_bits: float | None = None,
    max_size: str | None = None,
    palette: str | None = None,
    serve_on: str | None = None,
    engine: str | None = None,
    out: Path | None = None,
) -> None:
    """Decide, show and write.

    Raises:
        Fp4ScopeError: There is no decision under these bounds.
    """
    bound = bound_of(accept, max_bits, max_size)
    results = load(folder).results
    found = decider(results, palette, serve_on, engine_of(engine, palette))
    screen = console()
    if bound is None:
        show(screen, in_grid(front_section(found, found.front(FRONT_SHOWN))))
        say(screen, "Choose with --accept, --max-bits or --max-size; this writes a recipe.yaml.")
        return
    decision = found.sure(bound.choose(found))
    show(screen, in_grid(decision_section(found, decision)))
    for line in engine_lines(found, decision):
        say(screen, line)
    say(screen, basis(found))
    path = folder / "recipe.yaml" if out is None else out
    written(results, found, decision).write(path)
    screen.print(f"\nWritten: {path}", soft_wrap=True)
    asked = [
        *(("--accept", bar) for bar in accept),
        ("--max-bits", None if max_bits is None else f"{max_bits:g}"),
        ("--max-size", max_size),
        ("--palette", palette),
        ("--serve-on", serve_on),
        ("--engine", engine),
    ]
    words = [word for option, value in asked if value is not None for word in (option, value)]
    command(
        screen,
        "Measure it as a whole, on other windows:",
        ["fp4scope", "recommend", str(folder), *words],
    )


def print_measured(folder: Path, name: str, out: Path | None) -> None:
    """Write a recipe that a run measured as a file that an export takes.

    Raises:
        Fp4ScopeError: There are no results, or the run measured no such recipe.
    """
    found = measured_recipe(load(folder).results, name)
    path = out or folder / "recipe.yaml"
    found.write(path)
    screen = console()
    screen.print(f"Written: {path}", soft_wrap=True)
    words = ["fp4scope", "export", str(path), "--to", "compressed-tensors"]
    command(screen, "Next:", [*words, "--checkpoint", "DIR"])
