"""`fp4scope stats`: what enters each linear."""

from pathlib import Path

from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import console, in_grid, say, show
from fp4scope.errors import OutputError
from fp4scope.files import named, refusing
from fp4scope.report.sections import activations
from fp4scope.study import Study


def print_statistics(study: Study, out: Path | None) -> None:
    """Measure and print; non-finite inputs are counted and named instead of being refused."""
    with Screen() as screen:
        screen.note("loading torch and the model ...")
        from fp4scope.conductor import activation_statistics

        diagnosis = activation_statistics(study, progress=screen)
    screen = console()
    show(screen, in_grid(activations(diagnosis)))
    for record in [r for r in diagnosis.results.activations if r.nonfinite][:5]:
        say(
            screen,
            f"{record.nonfinite} inputs of {record.projection} in block {record.block} are NaN or "
            "Inf; they are not counted above",
            style="bold",
        )
    if out is not None:
        with refusing(f"cannot write {named(out)}", OutputError, "choose another file"):
            diagnosis.activations.write_csv(out)
        screen.print(f"\nWritten: {out}", soft_wrap=True)
