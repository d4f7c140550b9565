"""Everything that a finished study leaves in its folder."""

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from fp4scope.errors import OutputError
from fp4scope.report.diagnosis import Diagnosis
from fp4scope.report.figures import figures, save
from fp4scope.stats import CONFIDENCE


def write_outputs(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write `results.json`, the CSV tables, the figures, `report.html` and `report.md`.

    Each file appears whole or not at all, and in place of an older one.

    Returns:
        The files, the reports first.

    Raises:
        OutputError: One could not be written; the message names it.
    """
    written: list[Path] = []
    write = partial(_write, folder, written)
    tables = {
        "baselines": diagnosis.baselines,
        "components": diagnosis.components,
        "blocks": diagnosis.blocks,
        "cells": diagnosis.cells,
        "patterns": diagnosis.patterns,
        "agreement": diagnosis.agreement,
        "activations": diagnosis.activations,
    }
    summary = {name: table.rows for name, table in tables.items() if table.rows}
    results = diagnosis.results.to_json({"confidence": CONFIDENCE, **summary})
    write("report.html", partial(_text, diagnosis.html))
    write("report.md", partial(_text, diagnosis.report))
    text = json.dumps(results, allow_nan=False, separators=(",", ":"))
    write("results.json", partial(_text, lambda: text))
    for name, table in tables.items():
        if table.rows:
            write(f"{name}.csv", table.write_csv)
    _write_figures(figures(diagnosis), write, ("svg", "png"))
    diagnosis.files = tuple(written)
    return written


def write_report(diagnosis: Diagnosis, folder: Path, *, with_figures: bool = False) -> list[Path]:
    """Write `report.html` from results alone; `with_figures` every figure as PDF and SVG too.

    Raises:
        OutputError: One could not be written; the message names it.
    """
    written: list[Path] = []
    write = partial(_write, folder, written)
    write("report.html", partial(_text, diagnosis.html))
    if with_figures:
        _write_figures(figures(diagnosis, every=True), write, ("pdf", "svg"))
    return written


def _write_figures(
    drawn: Iterable[tuple[str, Figure]], write: Callable[..., None], suffixes: tuple[str, ...]
) -> None:
    for name, figure in drawn:
        for suffix in suffixes:
            write(f"figures/{name}.{suffix}", partial(save, figure, suffix=suffix))


def _text(text: Callable[[], str], path: Path) -> None:
    path.write_text(text(), encoding="utf-8")


def _write(folder: Path, written: list[Path], name: str, content: Callable[[Path], object]) -> None:
    path = folder / name
    temporary = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; what was measured is safe: make "
            "room and run the same command again"
        ) from None
    written.append(path)
