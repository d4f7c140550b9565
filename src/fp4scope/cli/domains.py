"""`fp4scope run` on several texts."""

from collections.abc import Sequence
from pathlib import Path

from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import console, in_grid, say, show
from fp4scope.conductor.domains import run_domains
from fp4scope.report.domains import Domains
from fp4scope.report.token_changes import token_change_lines
from fp4scope.study import Study


def print_domains(
    study: Study, texts: dict[str, Path], folder: Path, accept: Sequence[str], quiet: bool
) -> None:
    """Diagnose on each text, and print what whole models cost in each.

    Args:
        study: What is asked of each.
        texts: Files by domain.
        folder: Each domain has a folder in it.
        accept: Bars that whole models are held to.
        quiet: Whether no progress is shown.
    """
    with Screen(quiet) as screen:
        domains = Domains(run_domains(study, texts, folder, screen, accept))
    out, section = console(), domains.section()
    show(out, in_grid(section))
    say(out, section.note, style="dim")
    if said := domains.sentence():
        say(out, f"\n{said}", style="bold")
    for line in token_change_lines(domains.joint):
        say(out, f"- {line}", hang="  ")
    for path in (*domains.write(folder), *(folder / name / "report.html" for name in texts)):
        out.print(f"Written: {path}", soft_wrap=True)
