"""What a command leaves beside its tables: JSON for machines, and the page in a browser."""

import json
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4scope.errors import OutputError
from fp4scope.files import named, refusing, require_writable, text_bytes

if TYPE_CHECKING:  # what is asked for is known before anything heavy is imported
    from fp4scope.diagnosis import Diagnosis

STDOUT = Path("-")
JSON_VERSION = 1


@dataclass(frozen=True)
class Wanted:
    """What a user wants of results.

    Attributes:
        out: The folder, if one is given.
        open: Whether the page is to be opened.
        json: Where findings and tables go for machines; `-` is stdout, which then has nothing else.
        quiet: Whether findings alone are shown.
    """

    out: Path | None
    open: bool
    json: Path | None
    quiet: bool

    def show(self, diagnosis: "Diagnosis", folder: Path) -> None:
        """Print, write and open what is asked for."""
        from fp4scope.cli.tables import print_diagnosis, print_findings

        if self.json != STDOUT:
            (print_findings if self.quiet else print_diagnosis)(diagnosis)
        if self.json is not None:
            write_json(self.json, _found(diagnosis, folder))
        if self.open:
            open_page(folder)


def require_json(path: Path | None) -> None:
    """Refuse, before the work, a file that cannot be written.

    Raises:
        OutputError: It cannot.
    """
    if path is not None and path != STDOUT:
        require_writable(path)


def write_json(path: Path, data: Any) -> None:  # noqa: ANN401
    """Write JSON to a file, or to stdout for `-`.

    Raises:
        OutputError: The file cannot be written.
    """
    text = json.dumps(data, allow_nan=False, indent=1)
    if path == STDOUT:
        sys.stdout.write(f"{text}\n")
        return
    with refusing(f"cannot write {named(path)}", OutputError, "choose another file"):
        path.write_bytes(text_bytes(f"{text}\n"))


def open_page(folder: Path) -> None:
    """Show a folder's report.html in the browser, if there is one."""
    webbrowser.open((folder / "report.html").resolve().as_uri())


def _found(diagnosis: "Diagnosis", folder: Path) -> dict[str, Any]:
    """What was found in words, and the tables as the CSV files have them."""
    from fp4scope.report.files import summary
    from fp4scope.report.sentences import headlines

    about = {"version": JSON_VERSION, "output": str(folder), "model": diagnosis.results.model}
    return about | {"findings": list(headlines(diagnosis)), "tables": summary(diagnosis)}
