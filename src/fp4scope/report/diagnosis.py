"""`Diagnosis`: the results of a study as tables, figures and a report."""

import inspect
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fp4scope import stats
from fp4scope.errors import OutputError, StudyError, nearest
from fp4scope.records import Results, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Diagnosis:
    """What a study found. Tables are `Table`s: `d.cells.to_pandas()` for a data frame.

    Args:
        results: What was measured.
        folder: Where its files are, if anywhere.
    """

    def __init__(self, results: Results, folder: Path | None = None) -> None:
        self.results = results
        self.folder = folder
        self.files: tuple[Path, ...] = ()
        """What has just been written, if anything."""

    @cached_property
    def baselines(self) -> Table:
        """The reference and each format's baseline."""
        return stats.baseline_table(self.results)

    @cached_property
    def noise_shares(self) -> Table:
        """How much of the variance of baselines and restored units is rerun noise."""
        return stats.noise_shares(self.results)

    @cached_property
    def formats(self) -> Table:
        """Whole-model costs of formats against each other."""
        return stats.format_table(self.results)

    @cached_property
    def operands(self) -> Table:
        """What quantizing weights and activations costs more than only one of them."""
        return stats.operand_table(self.results)

    @cached_property
    def components(self) -> Table:
        return stats.unit_table(self.results, "components")

    @cached_property
    def blocks(self) -> Table:
        return stats.unit_table(self.results, "blocks")

    @cached_property
    def cells(self) -> Table:
        return stats.unit_table(self.results, "cells")

    @cached_property
    def patterns(self) -> Table:
        return stats.unit_table(self.results, "patterns")

    @cached_property
    def agreement(self) -> Table:
        """How the gradient ranks units, against the exact sweep: a row for each family of both."""
        return stats.agreement_table(self.results)

    @cached_property
    def activations(self) -> Table:
        """Input statistics of every cell, measured on the calibration text."""
        return stats.activation_table(self.results.activations)

    @cached_property
    def component_activations(self) -> Table:
        """The same by component, as in table 1 of the paper."""
        return stats.component_activation_table(self.results.activations)

    def plot(self, kind: str, **options: str) -> "Figure":
        """A matplotlib figure.

        Args:
            kind: `components`, `cells`, `heatmap`, `ppl` or `percent`.
            options: `direction` (`restore` or `isolate`) and `operands`, by default the first
                that the study has; `format`, by default all; of `components`, `cells` and
                `heatmap` also `metric` (`nll` or `kl`).

        Raises:
            StudyError: There is no such figure or option, or nothing to draw in it.
        """
        from fp4scope.report.figures import FIGURES

        if kind not in FIGURES:
            raise StudyError(f"unknown figure {kind!r}; {nearest(kind, FIGURES)}")
        known = list(inspect.signature(FIGURES[kind]).parameters)[1:]
        for name in options:
            if name not in known:
                raise StudyError(f"figure {kind!r} has no option {name!r}; {nearest(name, known)}")
        return FIGURES[kind](self, **options)

    def report(self) -> str:
        """The report as Markdown."""
        from fp4scope.report.markdown import markdown

        return markdown(self)

    def html(self) -> str:
        """The report as one HTML page, complete in itself."""
        from fp4scope.report.page import page

        return page(self)

    def _repr_html_(self) -> str:
        from fp4scope.report.notebook import summary

        return summary(self)

    def __repr__(self) -> str:
        stopping = self.results.protocol.get("stopping") or self.results.data
        windows = stopping.get("windows")
        return (
            f"Diagnosis({self.results.model.get('name')!r}: {len(self.results.observations)} "
            f"variants on {windows} windows)"
        )


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
    return Diagnosis(Results.read(path), folder)
