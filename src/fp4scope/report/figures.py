"""The figures of a study: which there are, and from what each is drawn (`drawing`).

Differences are more quantized minus less quantized: positive means that quantizing this costs. They
have 95% intervals, and are in millinats per token, of NLL or of KL, or in percent of perplexity.
Units that were only estimated are drawn from the estimates, and the title says so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

from fp4scope.errors import StudyError, nearest
from fp4scope.names import file_name
from fp4scope.report import drawing, drawing_wholes
from fp4scope.report.drawing import UNITS, Shown
from fp4scope.report.findings import Findings
from fp4scope.report.labels import KEEP
from fp4scope.report.pareto import pareto_points
from fp4scope.report.selection import side_by_side
from fp4scope.report.theme import LIGHT, THEMES, Theme
from fp4scope.report.tokens import along_window
from fp4scope.stats import only_estimated
from fp4scope.table import Interval, Table
from fp4scope.treatments import operands_of

_P = {"nll": "p_holm", "kl": "p_holm_kl"}


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Attributes:
        paint: Draws it.
        level: Whose rows it shows.
        metrics: Whether it shows differences, of the NLL or of KL; else it shows perplexity.
    """

    paint: Callable[[Shown], Figure]
    level: str = "layers"
    metrics: bool = True


KINDS = {
    "projections": Kind(drawing.projections, "projections"),
    "layers": Kind(drawing.layers),
    "heatmap": Kind(drawing.heatmap),
    "ppl": Kind(drawing.ppl, metrics=False),
    "percent": Kind(drawing.percent, metrics=False),
    "effects": Kind(drawing.effects, "effects"),
}
WHOLES = {
    "costs": drawing_wholes.costs,
    "pareto": drawing_wholes.pareto,
    "positions": drawing_wholes.positions,
}
"""Figures of whole models: these have no directions, and show all precisions."""


def draw(found: Findings, kind: str, *, theme: str = LIGHT.name, **options: str) -> Figure:
    """A figure.

    Args:
        found: The study.
        kind: One of `KINDS` or `WHOLES`.
        theme: `light` or `dark`: the ground that it is to stand on.
        options: `direction`, `precision`, `format`, and of differences `metric`.

    Raises:
        StudyError: There is no such figure or option, or nothing to draw in it.
    """
    if theme not in THEMES:
        raise StudyError(f"there is no theme {theme!r}; {nearest(theme, THEMES)}")
    colours = THEMES[theme]
    with mpl.rc_context(colours.style):
        figure = _painted(found, kind, colours, options)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a `$` in a name begins no formula
    return figure


def _painted(found: Findings, kind: str, theme: Theme, options: dict[str, str]) -> Figure:
    if kind not in KINDS and kind not in WHOLES:
        raise StudyError(f"unknown figure {kind!r}; {nearest(kind, [*KINDS, *WHOLES])}")
    known: list[str] = []
    if kind in KINDS:
        metric = ["metric"] if KINDS[kind].metrics else []
        known = ["direction", "precision", "format", *metric]
    for name in options:
        if name not in known:
            has = nearest(name, known) if known else "it has none but theme"
            raise StudyError(f"figure {kind!r} has no option {name!r}; {has}")
    if kind in KINDS:
        return KINDS[kind].paint(_shown(found, kind, theme, **options))
    if kind not in _of_wholes(found):
        raise StudyError(f"the study has nothing to draw in the figure {kind!r}")
    return WHOLES[kind](found, theme)


def figures(
    found: Findings, *, every: bool = False, theme: str = LIGHT.name
) -> Iterator[tuple[str, Figure]]:
    """The figures that the study has data for, with their names.

    Without `every` those of raw perplexity and of KL are left out: drawing takes a while.
    """
    for name in _of_wholes(found):
        yield name, draw(found, name, theme=theme)
    for name, (kind, options) in _drawable(found, every).items():
        yield name, draw(found, kind, theme=theme, **options)


def figure_names(found: Findings) -> list[str]:
    """Names of the figures that a report shows."""
    return [*_of_wholes(found), *_drawable(found, every=False)]


def save(figure: Figure, path: Path | BytesIO, suffix: str) -> None:
    """Write a figure as `pdf` or `svg`, which are transparent, or as `png`.

    The same figure gives the same bytes of SVG and PNG.
    """
    dated = {"svg": "Date", "pdf": "CreationDate"}.get(suffix)
    metadata = {dated: None} if dated else None
    with mpl.rc_context(LIGHT.style):
        figure.savefig(path, format=suffix, dpi=150, metadata=metadata, transparent=suffix != "png")


def _of_wholes(found: Findings) -> list[str]:
    """Figures of whole models for which there is something to draw."""
    measured = any(not whole.is_full_precision for whole in found.wholes)
    lines = [line for line in along_window(found) if len(line.spans) > 1]
    along = any((span.value or 0) > 0 for line in lines for span in line.spans)
    known = {"costs": measured, "pareto": pareto_points(found), "positions": along}
    return [name for name in WHOLES if known[name]]


def _drawable(found: Findings, every: bool) -> dict[str, tuple[str, dict[str, str]]]:
    """Kind and options of each figure by its name."""
    drawable: dict[str, tuple[str, dict[str, str]]] = {}
    for kind, about in KINDS.items():
        table: Table = getattr(found, about.level)
        several = len(set(map(operands_of, table["precision"]))) > 1
        for rows in side_by_side(table):
            way, precision, estimated = (
                rows[0]["direction"], rows[0]["precision"], only_estimated(rows[0]),
            )  # fmt: skip
            if (not about.metrics and estimated) or (kind == "percent" and way != KEEP.name):
                continue  # an estimate is of the NLL
            name = file_name(f"{kind}-{way}-{precision}" if several else f"{kind}-{way}")
            options = {"direction": way, "precision": precision}
            if kind == "ppl":
                for fmt in dict.fromkeys(rows["format"]) if every else ():
                    drawable[file_name(f"{name}-{fmt}")] = (kind, options | {"format": fmt})
                continue
            drawable[name] = (kind, options | {"metric": "kl"} if kind == "effects" else options)
            if every and kind in ("projections", "heatmap") and not estimated:
                drawable[f"kl-{name}"] = (kind, options | {"metric": "kl"})
    return drawable


def _shown(
    found: Findings,
    kind: str,
    theme: Theme,
    direction: str | None = None,
    precision: str | None = None,
    format: str | None = None,
    metric: str = "nll",
) -> Shown:
    """One direction and the formats of one precision, by default the first; one format, or all.

    Formats of other widths, of which the same operands are quantized, stand beside them.
    """
    if metric not in UNITS:
        raise StudyError(f"no figure shows differences of {metric!r}; {nearest(metric, UNITS)}")
    if kind == "percent":
        if direction not in (None, KEEP.name):
            raise StudyError(
                f"the percentage figure shows layers kept in full precision: "
                f"direction is {direction!r}, and only {KEEP.name} has that"
            )
        direction = KEEP.name
    table: Table = getattr(found, KINDS[kind].level)
    if format is not None:
        present = list(dict.fromkeys(table["format"]))
        if format not in present:
            raise StudyError(f"the study has no format {format!r}; {nearest(format, present)}")
        table = table.where(format=format)
    same: dict[str, Callable[[str], str]] = {"direction": str, "precision": operands_of}
    for column, value in (("direction", direction), ("precision", precision)):
        present = list(dict.fromkeys(table[column]))
        chosen = value or next(iter(present), "")
        if chosen not in present:
            asked = f"{column} {value!r}" if value else "these units"
            there = ", ".join(present) or "nothing to draw"
            raise StudyError(f"the study has no {asked}; it has: {there}")
        alike = same[column]
        table = Table(table.columns, [r for r in table if alike(r[column]) == alike(chosen)])
    table = _drawn(table, metric)
    if table[0]["estimated"] and not KINDS[kind].metrics:
        raise StudyError(
            "this figure shows perplexity, and a first-order estimate has none; run the study "
            "with --method exact"
        )
    return Shown(found, table, metric, theme)


def _drawn(table: Table, metric: str) -> Table:
    """With `drawn`, its interval and its p: what is measured, or where nothing is, the estimates.

    `estimated` says which.
    """
    measured = [row for row in table if not only_estimated(row)]
    if not measured and metric != "nll":
        raise StudyError("a first-order estimate is of the NLL; run the study with --method exact")
    source, p = (f"delta_{metric}", _P[metric]) if measured else ("gradient_nll", "p_holm")
    rows = [
        row
        | {"estimated": not measured, "drawn_p": row[p]}
        | Interval.of(row, source).columns("drawn")
        for row in measured or table
    ]
    return Table((*table.columns, "estimated", "drawn", "drawn_low", "drawn_high", "drawn_p"), rows)
