"""Everything that a finished study leaves in its folder."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fp4scope.errors import OutputError
from fp4scope.report.diagnosis import Diagnosis
from fp4scope.report.figures import figures, save
from fp4scope.stats import CONFIDENCE


def write_outputs(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write `results.json`, the CSV tables, the figures and `report.md`.

    Each file appears whole or not at all, and in place of an older one.

    Returns:
        The files, the report first.

    Raises:
        OutputError: One could not be written; the message names it.
    """
    written: list[Path] = []

    def write(name: str, content: Callable[[Path], object]) -> None:
        path = folder / name
        temporary = path.with_name(f".partial-{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content(temporary)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"cannot write {path}: {error.strerror or error}; the measurements are safe in the "
                "journal: make room and run the same command again"
            ) from None
        written.append(path)

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
    write("report.md", lambda path: path.write_text(diagnosis.report(), encoding="utf-8"))
    text = json.dumps(results, allow_nan=False, separators=(",", ":"))
    write("results.json", lambda path: path.write_text(text, encoding="utf-8"))
    for name, table in tables.items():
        if table.rows:
            write(f"{name}.csv", table.write_csv)
    for name, figure in figures(diagnosis):
        for suffix in ("svg", "png"):
            write(f"figures/{name}.{suffix}", partial(save, figure, suffix=suffix))
    diagnosis.files = tuple(written)
    return written
