"""`fp4scope tasks`: what recipes lose on tasks."""

from pathlib import Path

from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import console, in_grid, say, show
from fp4scope.conductor.tasks import run_tasks, task_files
from fp4scope.deploy.bar import parse_bar
from fp4scope.report.tasks import about_tasks
from fp4scope.stats import task_table
from fp4scope.study import Study
from fp4scope.tasks import Wish


def print_tasks(study: Study, wish: Wish, folder: Path, quiet: bool) -> None:
    """Score, and print what recipes lose.

    Args:
        study: The model, and what it is calibrated on.
        wish: What is asked.
        folder: Where results go.
        quiet: Whether no progress is shown.
    """
    with Screen(quiet) as screen:
        found = run_tasks(study, wish, folder, screen)
    out = console()
    for section in about_tasks(task_table(found), list(map(parse_bar, found.accept))):
        show(out, in_grid(section))
        say(out, section.note, style="dim")
        out.print()
    for path in task_files(folder):
        out.print(f"Written: {path}", soft_wrap=True)
