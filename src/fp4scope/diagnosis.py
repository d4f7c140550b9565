"""The public face of results: `Diagnosis` of one study, `Comparison` of several.

Both are tables (`fp4scope.report`) with the ways to show them. `load` and `compare` read them from
the folders that runs have written.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fp4scope.errors import OutputError, StudyError
from fp4scope.ledger import TASKS, Results, TaskResults, read_results, read_tasks
from fp4scope.report.findings import Findings
from fp4scope.report.joint import JointFindings
from fp4scope.report.joint_page import page as joint_page
from fp4scope.report.markdown import markdown
from fp4scope.report.notebook import summary
from fp4scope.report.page import page
from fp4scope.report.side_by_side import markdown as side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Diagnosis(Findings):
    """What a study found. Tables are `Table`s: `d.layers.to_pandas()` for a data frame.

    Args:
        results: What was measured.
        folder: Where its files are, if anywhere.
    """

    def __init__(self, results: Results, folder: Path | None = None) -> None:
        super().__init__(results)
        self.folder = folder

    @cached_property
    def scored(self) -> TaskResults | None:
        """What `fp4scope tasks` has left in the same folder.

        Raises:
            OutputError: It is damaged.
        """
        path = None if self.folder is None else self.folder / TASKS
        return read_tasks(path) if path is not None and path.exists() else None

    def plot(self, kind: str, **options: str) -> "Figure":
        """A matplotlib figure.

        Args:
            kind: `projections`, `layers`, `heatmap`, `ppl`, `percent` or `effects`; `costs`,
                `pareto` and `positions` show whole models.
            options: `direction` (`keep` or `only`) and `precision` (`W4A4`, `W4A16`, ...), by
                default the first that the study has; `format`, by default all; of
                `projections`, `layers` and `heatmap` also `metric` (`nll` or `kl`). Of all of them
                `theme`, `light` or `dark`.

        Raises:
            StudyError: There is no such figure or option, or nothing to draw in it.
        """
        from fp4scope.report.figures import draw  # matplotlib takes its time

        return draw(self, kind, **options)

    def report(self) -> str:
        """The report as Markdown."""
        return markdown(self)

    def html(self) -> str:
        """The report as one HTML page, complete in itself."""
        return page(self)

    def _repr_html_(self) -> str:
        return summary(self)

    def __repr__(self) -> str:
        stopping = self.results.protocol.get("stopping") or self.results.data
        windows = stopping.get("windows")
        return (
            f"Diagnosis({self.results.model.get('name')!r}: {len(self.results.ledger)} "
            f"recipes on {windows} windows)"
        )


class Comparison(JointFindings):
    """Several outputs side by side, by the names that tables give them.

    The first is what others are compared with.
    """

    def report(self) -> str:
        """The comparison as Markdown."""
        return side_by_side(self)

    def html(self) -> str:
        """The comparison as one HTML page, complete in itself."""
        return joint_page(self)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.runs)})"


def load(folder: str | Path) -> Diagnosis:
    """The diagnosis that `fp4scope run` or `diagnose` wrote to a folder.

    Raises:
        OutputError: There are no finished results, or they are damaged.
    """
    folder = Path(folder)
    path = folder / "results.json"
    if not os.path.lexists(path):
        hint = (
            "; its run has not finished: repeat the command to go on"
            if os.path.exists(folder / "journal.jsonl")
            else ""
        )
        raise OutputError(f"{folder} has no results.json{hint}")
    return Diagnosis(read_results(path), folder)


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Outputs of `fp4scope run` or `diagnose` side by side; the first is what others are held to.

    Args:
        folders: Two or more.

    Raises:
        StudyError: There are fewer than two, or one is given twice.
        OutputError: One has no finished results, or results that cannot be read.
    """
    if isinstance(folders, str | Path) or len(folders) < 2:
        given = 1 if isinstance(folders, str | Path) else len(folders)
        raise StudyError(f"{given} output{'s' * (given != 1)} to compare; give two or more folders")
    paths = [Path(folder) for folder in folders]
    known: dict[Path, Path] = {}
    for path in paths:
        if not os.path.isdir(path):
            what = "is not a folder" if os.path.exists(path) else "does not exist"
            raise OutputError(f"{path} {what}; give folders that `fp4scope run -o` has written")
        if (same := known.setdefault(path.resolve(), path)) is not path:
            raise StudyError(f"{path} is the same folder as {same}; give each output once")
    return Comparison({name: load(p).results for name, p in zip(_names(paths), paths, strict=True)})


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each that tells all apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [os.sep.join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
