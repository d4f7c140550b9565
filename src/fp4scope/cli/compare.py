"""`fp4scope compare`: several outputs side by side, and a gate for a build."""

from collections.abc import Sequence
from pathlib import Path

from fp4scope.cli.output import STDOUT, require_json, write_json
from fp4scope.cli.terminal import console, in_grid, say, show
from fp4scope.diagnosis import Comparison, compare
from fp4scope.errors import OutputError
from fp4scope.files import named, refusing, require_writable, text_bytes
from fp4scope.report.gates import failures, parse_gate
from fp4scope.report.side_by_side import findings, headline, sections

JSON_VERSION = 1


def print_comparison(
    folders: Sequence[Path], fail_if: Sequence[str], out: Path | None, json_out: Path | None
) -> list[str]:
    """Compare, print, and write what is asked for.

    Returns:
        Which conditions hold, and where.
    """
    gates = [parse_gate(text) for text in fail_if]
    if out is not None:
        require_writable(out)
    require_json(json_out)
    comparison = compare(folders)
    failed = [said for gate in gates for said in failures(gate, comparison)]
    screen = console()
    screen.quiet = json_out == STDOUT
    for section in sections(comparison, brief=True):
        screen.print()
        show(screen, in_grid(section))
        if section.note:
            say(screen, section.note, style="dim")
    screen.print()
    for line in findings(comparison):
        say(screen, f"- {line}", hang="  ")
    say(screen, f"\n{headline(comparison)}", style="bold")
    if comparison.warnings:
        say(screen, "\nNot the same in all:", style="bold")
        for warning in comparison.warnings:
            say(screen, f"- {warning}", hang="  ")
    if out is not None:
        as_page = out.suffix.lower() in (".html", ".htm")
        _write(out, comparison.html() if as_page else comparison.report())
        screen.print(f"\nWritten: {out}", soft_wrap=True)
    if json_out is not None:
        write_json(json_out, _data(comparison, failed))
        screen.print(f"\nWritten: {json_out}", soft_wrap=True)
    return failed


def _data(comparison: Comparison, failed: Sequence[str]) -> dict[str, object]:
    tables = {name: table.rows for name, table in comparison.tables().items()}
    about = {"version": JSON_VERSION, "outputs": list(comparison.runs)}
    return {**about, "failed": list(failed), "warnings": comparison.warnings, **tables}


def _write(path: Path, text: str) -> None:
    with refusing(f"cannot write {named(path)}", OutputError, "choose another file"):
        path.write_bytes(text_bytes(text))
