"""The figures of a study, drawn with matplotlib from its tables.

Differences are more quantized minus less quantized: positive means that quantizing this costs. They
have 95% intervals, and are in millinats per token, of NLL or of KL, or in percent of perplexity.
Units that were only estimated are drawn from the estimates, and the title says so.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from fp4scope.errors import StudyError, nearest
from fp4scope.names import file_name, visible
from fp4scope.report.axes import linear_threshold, log_ticks, step_above, step_below
from fp4scope.report.findings import Findings
from fp4scope.report.labels import KEEP
from fp4scope.report.labels import direction as in_words
from fp4scope.report.labels import precision as precisions
from fp4scope.report.numbers import in_percent
from fp4scope.report.selection import costliest, side_by_side
from fp4scope.stats import FULL_PRECISION, SIGNIFICANCE, only_estimated
from fp4scope.table import Interval, Table
from fp4scope.treatments import operands_of

# Okabe and Ito's colour-blind-safe palette.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fp4scope",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "text.parse_math": False,
}
_MOST_INCHES = 400.0
"""An image of more than 65,536 dots in a direction cannot be drawn; there are 150 to an inch."""
_PLAIN = StrMethodFormatter("{x:g}")
_UNITS = {"nll": "millinats", "kl": "millinats of KL"}
"""By metric. Each has its own test."""
_P = {"nll": "p_holm", "kl": "p_holm_kl"}


def figures(diagnosis: Findings, *, every: bool = False) -> Iterator[tuple[str, Figure]]:
    """The figures that the study has data for, with their names.

    Without `every` those of raw perplexity and of KL are left out: drawing takes a while.
    """
    for name, (kind, options) in _drawable(diagnosis, every).items():
        yield name, FIGURES[kind](diagnosis, **options)


def figure_names(diagnosis: Findings) -> list[str]:
    """Names of the figures that a report shows."""
    return list(_drawable(diagnosis, every=False))


def save(figure: Figure, path: Path | BytesIO, suffix: str) -> None:
    """Write a figure as `pdf`, or as `svg` or `png`: there the same one gives the same bytes."""
    dated = {"svg": "Date", "pdf": "CreationDate"}.get(suffix)
    metadata = {dated: None} if dated else None
    with mpl.rc_context(_STYLE):
        figure.savefig(path, format=suffix, dpi=150, metadata=metadata)


def _literal(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Every text of a figure stands as it is: a `$` in a name begins no formula."""

    @wraps(draw)
    def drawn(*args: Any, **options: Any) -> Figure:  # noqa: ANN401
        figure = draw(*args, **options)
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        return figure

    return drawn


def _drawable(diagnosis: Findings, every: bool) -> dict[str, tuple[str, dict[str, str]]]:
    found = {}
    for kind in FIGURES:
        if kind == "ppl" and not every:
            continue
        table = diagnosis.projections if kind == "projections" else diagnosis.layers
        several = len(set(map(operands_of, table["precision"]))) > 1
        for chosen in side_by_side(table):
            direction, precision = chosen[0]["direction"], chosen[0]["precision"]
            if kind == "percent" and in_words(direction) is not KEEP:
                continue
            if kind in ("percent", "ppl") and only_estimated(chosen[0]):
                continue  # an estimate is of the NLL
            name = f"{kind}-{in_words(direction).name}"
            name = file_name(f"{name}-{precision}" if several else name)
            options = {"direction": direction, "precision": precision}
            if kind != "ppl":
                found[name] = (kind, options)
                if every and kind in ("projections", "heatmap") and not only_estimated(chosen[0]):
                    found[f"kl-{name}"] = (kind, options | {"metric": "kl"})
                continue
            for fmt in dict.fromkeys(chosen["format"]):
                found[file_name(f"{name}-{fmt}")] = (kind, options | {"format": fmt})
    return found


@_literal
def projections_figure(
    diagnosis: Findings,
    direction: str | None = None,
    precision: str | None = None,
    format: str | None = None,
    metric: str = "nll",
) -> Figure:
    """Bars with whiskers: one group a projection, one bar a format."""
    table = _select(diagnosis.projections, direction, precision, format, metric)
    way = in_words(table[0]["direction"])
    formats = list(dict.fromkeys(table["format"]))
    order = [name for (name,) in costliest(table, "projection")]
    figure, axes = _new(1, 1, (7.2, 1.4 + 0.42 * len(order)))
    axis = axes[0]
    thick = 0.8 / len(formats)
    for i, name in enumerate(formats):
        rows = {r["projection"]: r for r in table.where(format=name)}
        y = np.arange(len(order)) + (i - (len(formats) - 1) / 2) * thick
        chosen = [rows[c] for c in order if c in rows]
        axis.barh(
            y[[c in rows for c in order]],
            [1e3 * r["drawn"] for r in chosen],
            thick * 0.9,
            xerr=_whiskers([Interval.of(row, "drawn").times(1e3) for row in chosen]),
            color=_COLOURS[i % len(_COLOURS)],
            error_kw={"elinewidth": 1, "capsize": 2},
            label=name,
        )
    axis.set_yticks(range(len(order)), [visible(name) for name in order])
    axis.invert_yaxis()
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.set_xlabel(f"{_UNITS[metric]} per token, {way.effect}")
    axis.set_title(_title(diagnosis, f"Projections, {way.name}", table))
    _legend(figure, axis)
    return figure


@_literal
def layers_figure(
    diagnosis: Findings,
    direction: str | None = None,
    precision: str | None = None,
    format: str | None = None,
    metric: str = "nll",
) -> Figure:
    """Curves over depth, one panel a projection, on a symmetric log axis."""
    table = _select(diagnosis.layers, direction, precision, format, metric)
    way = in_words(table[0]["direction"])

    def draw(axis: Any, rows: list[dict[str, Any]], colour: str, label: str) -> None:  # noqa: ANN401
        blocks = [r["block"] for r in rows]
        axis.plot(blocks, [1e3 * r["drawn"] for r in rows], ".-", color=colour, label=label)
        spans = [Interval.of(r, "drawn").times(1e3) for r in rows]
        if all(span.half is not None for span in spans):
            ends = ([span.low for span in spans], [span.high for span in spans])
            axis.fill_between(blocks, *ends, color=colour, alpha=0.18, linewidth=0)

    figure, axes = _panels(table, draw)
    linear = linear_threshold(1e3 * value for value in table["drawn"])
    for axis in axes:
        axis.set_yscale("symlog", linthresh=linear)
        low, high = axis.get_ylim()
        axis.set_yticks(log_ticks(low, high, linear), minor=False)
        axis.set_yticks([], minor=True)
        axis.yaxis.set_major_formatter(_PLAIN)
    figure.supylabel(f"{_UNITS[metric]} per token (symlog)", fontsize=9)
    figure.suptitle(_title(diagnosis, f"Layers, {way.name}", table), fontsize=10)
    return figure


@_literal
def percent_figure(
    diagnosis: Findings,
    direction: str | None = None,
    precision: str | None = None,
    format: str | None = None,
) -> Figure:
    """What keeping a layer saves, in percent of the all-quantized model's perplexity."""
    if direction is not None and in_words(direction) is not KEEP:
        raise StudyError(
            f"the percentage figure shows layers kept in full precision: "
            f"direction is {direction!r}, and only {KEEP.name} has that"
        )
    table = _select(diagnosis.layers, KEEP.name, precision, format)
    if table[0]["estimated"]:
        raise StudyError(
            "the percentage figure shows perplexity, and a first-order estimate has none; "
            "run the study with --method exact"
        )

    def draw(axis: Any, rows: list[dict[str, Any]], colour: str, label: str) -> None:  # noqa: ANN401
        shares = [in_percent(row) for row in rows]
        axis.errorbar(
            [r["block"] for r in rows],
            [share.value for share in shares],
            yerr=_whiskers(shares),
            fmt=".-",
            color=colour,
            linewidth=1,
            elinewidth=0.8,
            label=label,
        )

    figure, _ = _panels(table, draw)
    figure.supylabel(f"% of the all-quantized model's PPL, {KEEP.effect}", fontsize=9)
    figure.suptitle(_title(diagnosis, "Layers kept in full precision", table), fontsize=10)
    return figure


@_literal
def ppl_figure(
    diagnosis: Findings,
    direction: str | None = None,
    precision: str | None = None,
    format: str | None = None,
) -> Figure:
    """Perplexity over depth, of one format (by default the first), beside what it starts from.

    The whiskers are the intervals of the paired difference from that line.
    """
    table = _select(diagnosis.layers, direction, precision, format)
    if table[0]["estimated"]:
        raise StudyError(
            "this figure shows perplexity, and a first-order estimate has none; run the study "
            "with --method exact"
        )
    fmt, way = table[0]["format"], in_words(table[0]["direction"])
    table = table.where(format=fmt)
    kept = way is KEEP
    control = diagnosis.all_quantized.where(
        format=fmt if kept else FULL_PRECISION, precision=table[0]["precision"] if kept else ""
    )

    def draw(axis: Any, rows: list[dict[str, Any]], colour: str, label: str) -> None:  # noqa: ANN401
        for row in control:
            axis.axhline(row["ppl"], color="0.4", linewidth=0.8, linestyle="--")
        axis.errorbar(
            [r["block"] for r in rows],
            [r["ppl"] for r in rows],
            yerr=_whiskers([Interval.of(r, "delta_ppl") for r in rows]),
            fmt=".-",
            color=colour,
            linewidth=1,
            elinewidth=0.8,
            label=label,
        )

    figure, _ = _panels(table, draw, zero=False)
    figure.supylabel(f"PPL (dashed: the {way.control})", fontsize=9)
    figure.suptitle(_title(diagnosis, f"Layers, {way.name}", table), fontsize=10)
    return figure


@_literal
def heatmap_figure(
    diagnosis: Findings,
    direction: str | None = None,
    precision: str | None = None,
    format: str | None = None,
    metric: str = "nll",
) -> Figure:
    """Block by projection, one panel a format; layers that are not significant are crossed out."""
    table = _select(diagnosis.layers, direction, precision, format, metric)
    way = in_words(table[0]["direction"])
    formats = list(dict.fromkeys(table["format"]))
    projections = list(dict.fromkeys(table["projection"]))
    blocks = sorted(set(table["block"]))
    figure, axes = _new(
        len(formats),
        1,
        (max(5.0, 2.2 + 0.24 * len(blocks)), 1.2 + len(formats) * (1.1 + 0.22 * len(projections))),
    )
    for axis, name in zip(axes, formats, strict=True):
        rows = {(r["projection"], r["block"]): r for r in table.where(format=name)}
        values = np.full((len(projections), len(blocks)), np.nan)
        unsure = []
        for i, projection in enumerate(projections):
            for j, block in enumerate(blocks):
                row = rows.get((projection, block))
                if row is None:
                    continue
                values[i, j] = 1e3 * row["drawn"]
                if row["drawn_p"] is not None and row["drawn_p"] > SIGNIFICANCE:
                    unsure.append((j, i))
        peak = step_above(float(np.nanmax(np.abs(values))) or 1.0)
        linear = linear_threshold(values[~np.isnan(values)].tolist())
        norm = SymLogNorm(linear, vmin=-peak, vmax=peak)
        image = axis.imshow(values, cmap="RdBu_r", norm=norm, aspect="auto")
        if unsure:
            axis.scatter(*zip(*unsure, strict=True), marker="x", s=9, linewidths=0.6, color="0.45")
        axis.set_yticks(range(len(projections)), [visible(name) for name in projections])
        shown = range(0, len(blocks), max(1, ceil(len(blocks) / 16)))
        axis.set_xticks(list(shown), [str(blocks[j]) for j in shown])
        axis.spines[:].set_visible(False)
        axis.set_title(name, loc="left")
        middle = step_below(float(norm.inverse(0.75)))
        ticks = [-peak, -middle, 0.0, middle, peak]
        bar = figure.colorbar(image, ax=axis, label=_UNITS[metric], pad=0.01, ticks=ticks)
        bar.ax.yaxis.set_major_formatter(_PLAIN)
        bar.ax.minorticks_off()
    cross = "" if table[0]["estimated"] else " (a cross: not significant, Holm at 5%)"
    axes[-1].set_xlabel(f"block{cross}")
    what = f"Layers, {way.name}, {_UNITS[metric]} per token"
    figure.suptitle(_title(diagnosis, what, table), fontsize=10)
    return figure


FIGURES: dict[str, Callable[..., Figure]] = {
    "projections": projections_figure,
    "layers": layers_figure,
    "heatmap": heatmap_figure,
    "ppl": ppl_figure,
    "percent": percent_figure,
}


def _select(
    table: Table,
    direction: str | None,
    precision: str | None,
    format: str | None,
    metric: str = "nll",
) -> Table:
    """One direction and the formats of one precision, by default the first; one format, or all.

    Formats of other widths, of which the same operands are quantized, stand beside them.
    """
    if metric not in _UNITS:
        raise StudyError(f"no figure shows differences of {metric!r}; {nearest(metric, _UNITS)}")
    if format is not None:
        present = list(dict.fromkeys(table["format"]))
        if format not in present:
            raise StudyError(f"the study has no format {format!r}; {nearest(format, present)}")
        table = table.where(format=format)
    for column, value, same in (
        ("direction", direction, str),
        ("precision", precision, operands_of),
    ):
        present = list(dict.fromkeys(table[column]))
        chosen = value or next(iter(present), "")
        if chosen not in present:
            asked = f"{column} {value!r}" if value else "these units"
            there = ", ".join(present) or "nothing to draw"
            raise StudyError(f"the study has no {asked}; it has: {there}")
        rows = [row for row in table if same(row[column]) == same(chosen)]
        table = Table(table.columns, rows)
    return _drawn(table, metric)


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


def _new(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Any]]:
    width, height = (min(inches, _MOST_INCHES) for inches in size)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=rows * columns > 1)
    return figure, list(axes.flat)


def _panels(table: Table, draw: Callable[..., None], zero: bool = True) -> tuple[Figure, list[Any]]:
    """One panel a projection, one colour a format, a line at zero unless that is far away."""
    projections = list(dict.fromkeys(table["projection"]))
    columns = min(2, len(projections))
    rows = ceil(len(projections) / columns)
    figure, axes = _new(rows, columns, (8.4, 1.4 + 1.7 * rows))
    for axis, projection in zip(axes, projections, strict=False):
        for i, name in enumerate(dict.fromkeys(table["format"])):
            chosen = table.where(projection=projection, format=name).rows
            chosen = sorted(chosen, key=lambda r: r["block"])
            if chosen:
                draw(axis, chosen, _COLOURS[i % len(_COLOURS)], name)
        if zero:
            axis.axhline(0, color="0.3", linewidth=0.8)
        axis.set_title(visible(projection), loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelbottom=True)
    for axis in axes[len(projections) :]:
        axis.set_visible(False)
    _legend(figure, axes[0])
    for axis in axes[max(0, len(projections) - columns) : len(projections)]:
        axis.set_xlabel("block")
    return figure, axes[: len(projections)]


def _legend(figure: Figure, axis: Any) -> None:  # noqa: ANN401
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _whiskers(shown: Sequence[Interval]) -> list[float] | None:
    halves = [span.half for span in shown]
    return None if None in halves else halves  # type: ignore[return-value]


def _title(diagnosis: Findings, what: str, table: Table) -> str:
    seen = sorted(set(table["windows"]))
    windows = f"{seen[0]} to {seen[-1]}" if len(seen) > 1 else f"{seen[0]}"
    kind = "confidence sequences" if diagnosis.results.anytime else "intervals"
    what += ", first-order estimate" if table[0]["estimated"] else ""
    return (
        f"{what}: {visible(diagnosis.results.model.get('name', 'a model'))}\n"
        f"{precisions(table)}, {windows} windows, 95% {kind}"
    )
