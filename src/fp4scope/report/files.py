"""Everything that a finished study leaves in its folder."""

import json
import re
from collections.abc import Iterable
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fp4scope.errors import OutputError
from fp4scope.files import refusing, replace_file, text_bytes
from fp4scope.ledger import results_to_json
from fp4scope.report.figures import figures, save
from fp4scope.report.findings import Findings
from fp4scope.report.markdown import markdown
from fp4scope.report.page import page
from fp4scope.report.theme import DARK
from fp4scope.stats import CONFIDENCE
from fp4scope.table import Table

TABLES = (
    "all_quantized", "divergence", "tokens", "positions", "given", "exceptions", "savings",
    "projections", "blocks", "layers", "patterns", "experts", "split", "gains", "errors",
    "predictors", "interactions", "additivity", "lowering", "remedies", "effects", "effect_sums",
    "effect_pairs", "routing", "routers", "replay", "experts_seen", "agreement", "activations",
)  # fmt: skip
"""Those that have a CSV file, if there is anything in them."""
ON_DARK = "-dark"
"""Ends the names of figures for a dark ground."""
_ADVICE = (
    "what was measured is safe: see to it that the folder can be written to, then run the same "
    "command again"
)


def write_outputs(diagnosis: Findings, folder: Path) -> list[Path]:
    """Write `results.json`, the CSV tables, `report.html`, `report.md` and the figures.

    Each file appears whole or not at all, and in place of an older one. The numbers come first, so
    that they are there whatever becomes of the report.

    Returns:
        The files, the reports first.

    Raises:
        OutputError: One could not be written; the message names it.
    """
    results = results_to_json(diagnosis.results, {"confidence": CONFIDENCE, **summary(diagnosis)})
    numbers = [_write(folder / "results.json", _json(results))]
    for name, table in _tables(diagnosis).items():
        if table.rows:
            numbers.append(_write(folder / f"{name}.csv", text_bytes(table.to_csv())))
    reports = write_texts(diagnosis, folder)
    return [*reports, *numbers, *_write_both(diagnosis, folder, ("svg", "png"))]


def write_texts(diagnosis: Findings, folder: Path) -> list[Path]:
    """Write `report.html` and `report.md` alone.

    Raises:
        OutputError: One could not be written.
    """
    pages = {"report.html": page(diagnosis), "report.md": markdown(diagnosis)}
    return [_write(folder / name, text_bytes(text)) for name, text in pages.items()]


def summary(diagnosis: Findings) -> dict[str, list[dict[str, Any]]]:
    """The rows of all tables that have any, by name, as JSON can hold them."""
    tables = _tables(diagnosis).items()
    return {name: _finite(table.rows) for name, table in tables if table.rows}


def _tables(diagnosis: Findings) -> dict[str, Table]:
    return {name: getattr(diagnosis, name) for name in TABLES}


def outputs(folder: Path) -> list[Path]:
    """What a finished study has left in its folder, the reports first, figures left out."""
    names = ("report.html", "report.md", "results.json", *(f"{name}.csv" for name in TABLES))
    return [path for name in names if (path := folder / name).exists()]


def write_report(diagnosis: Findings, folder: Path, *, with_figures: bool = False) -> list[Path]:
    """Write `report.html` from results alone; `with_figures` every figure as SVG and PDF too.

    Raises:
        OutputError: One could not be written, or the results say too little for a report.
    """
    written = [_write(folder / "report.html", text_bytes(page(diagnosis)))]
    if with_figures:
        written += _write_both(diagnosis, folder, ("svg", "pdf"), every=True)
    return written


def _json(data: Any) -> bytes:  # noqa: ANN401
    """JSON in which a byte of a path that is not UTF-8 is an escape as in the report."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[\ud800-\udfff]", lambda c: f"\\\\u{ord(c[0]):x}", text).encode()


def _finite(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with nothing where a derived number overflowed: JSON has no word for it."""
    return [
        {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]


def _write_both(
    found: Findings, folder: Path, suffixes: tuple[str, ...], *, every: bool = False
) -> list[Path]:
    """Write figures for a light ground, and as SVG for a dark one."""
    written = write_figures(figures(found, every=every), folder, suffixes)
    dark = (
        (f"{name}{ON_DARK}", drawn) for name, drawn in figures(found, every=every, theme=DARK.name)
    )
    return [*written, *write_figures(dark, folder, suffixes[:1])]


def write_figures(
    drawn: Iterable[tuple[str, Figure]], folder: Path, suffixes: tuple[str, ...]
) -> list[Path]:
    """Write figures by name into the folder's `figures`, each as these files.

    Raises:
        OutputError: One could not be written.
    """
    written: list[Path] = []
    for name, figure in drawn:
        for suffix in suffixes:
            path = folder / "figures" / f"{name}.{suffix}"
            if path.parent.is_symlink():
                raise OutputError(f"{path.parent} is a link to another folder; remove it")
            written.append(_write(path, _image(figure, suffix)))
    return written


def _image(figure: Figure, suffix: str) -> bytes:
    file = BytesIO()
    save(figure, file, suffix)
    return file.getvalue()


def _write(path: Path, content: bytes) -> Path:
    with refusing(f"cannot make {path.parent}", OutputError, _ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content, _ADVICE)
    return path
