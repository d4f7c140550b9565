"""The figures of a study, drawn with matplotlib from its tables.

Differences are more quantized minus less quantized: positive means that quantizing this costs. They
have 95% intervals, and are in millinats per token, of NLL or of KL, or in percent of perplexity.
Units that were only estimated are drawn from the estimates, and the title says so.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from io import BytesIO
from math import ceil, log10
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
from fp4scope.report.findings import Findings
from fp4scope.report.selection import costliest
from fp4scope.report.steps import step_above, step_below
from fp4scope.stats import SIGNIFICANCE, only_estimated
from fp4scope.table import Table

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
_MEANS = {
    "restore": "saved by keeping it in full precision",
    "isolate": "lost by quantizing it alone",
}
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
        table = diagnosis.components if kind == "components" else diagnosis.cells
        several = len(set(table["operands"])) > 1
        for direction, operands in dict.fromkeys((r["direction"], r["operands"]) for r in table):
            chosen = table.where(direction=direction, operands=operands)
            if kind == "percent" and direction != "restore":
                continue
            if kind in ("percent", "ppl") and only_estimated(chosen[0]):
                continue  # an estimate is of the NLL
            name = file_name(f"{kind}-{direction}" + (f"-{operands}" if several else ""))
            options = {"direction": direction, "operands": operands}
            if kind != "ppl":
                found[name] = (kind, options)
                if every and kind in ("components", "heatmap") and not only_estimated(chosen[0]):
                    found[f"kl-{name}"] = (kind, options | {"metric": "kl"})
                continue
            for fmt in dict.fromkeys(chosen["format"]):
                found[file_name(f"{name}-{fmt}")] = (kind, options | {"format": fmt})
    return found


@_literal
def components_figure(
    diagnosis: Findings,
    direction: str | None = None,
    operands: str | None = None,
    format: str | None = None,
    metric: str = "nll",
) -> Figure:
    """Bars with whiskers: one group a component, one bar a format."""
    table = _select(diagnosis.components, direction, operands, format, metric)
    way: str = table[0]["direction"]
    formats = list(dict.fromkeys(table["format"]))
    order = costliest(table, "component")
    figure, axes = _new(1, 1, (7.2, 1.4 + 0.42 * len(order)))
    axis = axes[0]
    thick = 0.8 / len(formats)
    for i, name in enumerate(formats):
        rows = {r["component"]: r for r in table.where(format=name)}
        y = np.arange(len(order)) + (i - (len(formats) - 1) / 2) * thick
        chosen = [rows[c] for c in order if c in rows]
        axis.barh(
            y[[c in rows for c in order]],
            [1e3 * r["drawn"] for r in chosen],
            thick * 0.9,
            xerr=_whiskers(chosen, "drawn"),
            color=_COLOURS[i % len(_COLOURS)],
            error_kw={"elinewidth": 1, "capsize": 2},
            label=name,
        )
    axis.set_yticks(range(len(order)), [visible(name) for name in order])
    axis.invert_yaxis()
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.set_xlabel(f"{_UNITS[metric]} {_MEANS[way]}, per token")
    axis.set_title(_title(diagnosis, f"Components, {way}", table))
    _legend(figure, axis)
    return figure


@_literal
def cells_figure(
    diagnosis: Findings,
    direction: str | None = None,
    operands: str | None = None,
    format: str | None = None,
    metric: str = "nll",
) -> Figure:
    """Curves over depth, one panel a component, on a symmetric log axis."""
    table = _select(diagnosis.cells, direction, operands, format, metric)
    way: str = table[0]["direction"]

    def draw(axis: Any, rows: list[dict[str, Any]], colour: str, label: str) -> None:  # noqa: ANN401
        blocks = [r["block"] for r in rows]
        axis.plot(blocks, [1e3 * r["drawn"] for r in rows], ".-", color=colour, label=label)
        if all(r["drawn_low"] is not None for r in rows):
            low = [1e3 * r["drawn_low"] for r in rows]
            high = [1e3 * r["drawn_high"] for r in rows]
            axis.fill_between(blocks, low, high, color=colour, alpha=0.18, linewidth=0)

    figure, axes = _panels(table, draw)
    linear = _linear_threshold([1e3 * abs(v) for v in table["drawn"]])
    for axis in axes:
        axis.set_yscale("symlog", linthresh=linear)
        low, high = axis.get_ylim()
        axis.set_yticks(_log_ticks(low, high, linear), minor=False)
        axis.set_yticks([], minor=True)
        axis.yaxis.set_major_formatter(_PLAIN)
    figure.supylabel(f"{_UNITS[metric]} per token (symlog)", fontsize=9)
    figure.suptitle(_title(diagnosis, f"Cells, {way}", table), fontsize=10)
    return figure


@_literal
def percent_figure(
    diagnosis: Findings,
    direction: str | None = None,
    operands: str | None = None,
    format: str | None = None,
) -> Figure:
    """What keeping a cell saves, in percent of the baseline's perplexity."""
    if direction not in (None, "restore"):
        raise StudyError(
            f"the percentage figure shows cells kept in full precision: "
            f"direction is {direction!r}, and only restore has that"
        )
    table = _select(diagnosis.cells, "restore", operands, format)
    if table[0]["estimated"]:
        raise StudyError(
            "the percentage figure shows perplexity, and a first-order estimate has none; "
            "run the study with --method exact"
        )

    def draw(axis: Any, rows: list[dict[str, Any]], colour: str, label: str) -> None:  # noqa: ANN401
        # The baseline's perplexity over the windows that this cell has seen.
        scales = [100 / (r["ppl"] + r["delta_ppl"]) for r in rows]
        whiskers = _whiskers(rows, "delta_ppl", 1.0)
        axis.errorbar(
            [r["block"] for r in rows],
            [scale * r["delta_ppl"] for scale, r in zip(scales, rows, strict=True)],
            yerr=None if whiskers is None else whiskers * scales,
            fmt=".-",
            color=colour,
            linewidth=1,
            elinewidth=0.8,
            label=label,
        )

    figure, _ = _panels(table, draw)
    figure.supylabel("saved by keeping it in full precision, % of the baseline's PPL", fontsize=9)
    figure.suptitle(_title(diagnosis, "Cells kept in full precision", table), fontsize=10)
    return figure


@_literal
def ppl_figure(
    diagnosis: Findings,
    direction: str | None = None,
    operands: str | None = None,
    format: str | None = None,
) -> Figure:
    """Perplexity over depth, of one format (by default the first), beside what it starts from.

    The whiskers are the intervals of the paired difference from that line.
    """
    table = _select(diagnosis.cells, direction, operands, format)
    if table[0]["estimated"]:
        raise StudyError(
            "this figure shows perplexity, and a first-order estimate has none; run the study "
            "with --method exact"
        )
    fmt, way = table[0]["format"], table[0]["direction"]
    table = table.where(format=fmt)
    restored = way == "restore"
    name = (fmt, table[0]["operands"]) if restored else ("reference", "")
    control = diagnosis.baselines.where(format=name[0], operands=name[1])

    def draw(axis: Any, rows: list[dict[str, Any]], colour: str, label: str) -> None:  # noqa: ANN401
        for row in control:
            axis.axhline(row["ppl"], color="0.4", linewidth=0.8, linestyle="--")
        axis.errorbar(
            [r["block"] for r in rows],
            [r["ppl"] for r in rows],
            yerr=_whiskers(rows, "delta_ppl", 1.0),
            fmt=".-",
            color=colour,
            linewidth=1,
            elinewidth=0.8,
            label=label,
        )

    figure, _ = _panels(table, draw, zero=False)
    figure.supylabel(f"PPL (dashed: the {'baseline' if restored else 'reference'})", fontsize=9)
    figure.suptitle(_title(diagnosis, f"Cells, {way}", table), fontsize=10)
    return figure


@_literal
def heatmap_figure(
    diagnosis: Findings,
    direction: str | None = None,
    operands: str | None = None,
    format: str | None = None,
    metric: str = "nll",
) -> Figure:
    """Block by component, one panel a format; cells not told from zero are crossed out."""
    table = _select(diagnosis.cells, direction, operands, format, metric)
    direction = table[0]["direction"]
    formats = list(dict.fromkeys(table["format"]))
    components = list(dict.fromkeys(table["component"]))
    blocks = sorted(set(table["block"]))
    figure, axes = _new(
        len(formats),
        1,
        (max(5.0, 2.2 + 0.24 * len(blocks)), 1.2 + len(formats) * (1.1 + 0.22 * len(components))),
    )
    for axis, name in zip(axes, formats, strict=True):
        rows = {(r["component"], r["block"]): r for r in table.where(format=name)}
        values = np.full((len(components), len(blocks)), np.nan)
        unsure = []
        for i, component in enumerate(components):
            for j, block in enumerate(blocks):
                row = rows.get((component, block))
                if row is None:
                    continue
                values[i, j] = 1e3 * row["drawn"]
                if row["drawn_p"] is not None and row["drawn_p"] > SIGNIFICANCE:
                    unsure.append((j, i))
        peak = step_above(float(np.nanmax(np.abs(values))) or 1.0)
        linear = _linear_threshold(np.abs(values[~np.isnan(values)]))
        norm = SymLogNorm(linear, vmin=-peak, vmax=peak)
        image = axis.imshow(values, cmap="RdBu_r", norm=norm, aspect="auto")
        if unsure:
            axis.scatter(*zip(*unsure, strict=True), marker="x", s=9, linewidths=0.6, color="0.45")
        axis.set_yticks(range(len(components)), [visible(name) for name in components])
        shown = range(0, len(blocks), max(1, ceil(len(blocks) / 16)))
        axis.set_xticks(list(shown), [str(blocks[j]) for j in shown])
        axis.spines[:].set_visible(False)
        axis.set_title(name, loc="left")
        middle = step_below(float(norm.inverse(0.75)))
        ticks = [-peak, -middle, 0.0, middle, peak]
        bar = figure.colorbar(image, ax=axis, label=_UNITS[metric], pad=0.01, ticks=ticks)
        bar.ax.yaxis.set_major_formatter(_PLAIN)
        bar.ax.minorticks_off()
    cross = "" if table[0]["estimated"] else " (a cross: not told from zero, Holm at 5%)"
    axes[-1].set_xlabel(f"block{cross}")
    what = f"Cells, {direction}, {_UNITS[metric]} per token"
    figure.suptitle(_title(diagnosis, what, table), fontsize=10)
    return figure


FIGURES: dict[str, Callable[..., Figure]] = {
    "components": components_figure,
    "cells": cells_figure,
    "heatmap": heatmap_figure,
    "ppl": ppl_figure,
    "percent": percent_figure,
}


def _select(
    table: Table,
    direction: str | None,
    operands: str | None,
    format: str | None,
    metric: str = "nll",
) -> Table:
    """One direction and one choice of operands, by default the first; one format, or all."""
    if metric not in _UNITS:
        raise StudyError(f"no figure shows differences of {metric!r}; {nearest(metric, _UNITS)}")
    if format is not None:
        present = list(dict.fromkeys(table["format"]))
        if format not in present:
            raise StudyError(f"the study has no format {format!r}; {nearest(format, present)}")
        table = table.where(format=format)
    for column, value in (("direction", direction), ("operands", operands)):
        present = list(dict.fromkeys(table[column]))
        if not present or (value is not None and value not in present):
            asked = f"{column} {value!r}" if value else "these units"
            raise StudyError(
                f"the study has no {asked}; it has: {', '.join(present) or 'nothing to draw'}"
            )
        table = table.where(**{column: value or present[0]})
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
        | {f"drawn{end}": row[f"{source}{end}"] for end in ("", "_low", "_high")}
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
    """One panel a component, one colour a format, a line at zero unless that is far away."""
    components = list(dict.fromkeys(table["component"]))
    columns = min(2, len(components))
    rows = ceil(len(components) / columns)
    figure, axes = _new(rows, columns, (8.4, 1.4 + 1.7 * rows))
    for axis, component in zip(axes, components, strict=False):
        for i, name in enumerate(dict.fromkeys(table["format"])):
            chosen = table.where(component=component, format=name).rows
            chosen = sorted(chosen, key=lambda r: r["block"])
            if chosen:
                draw(axis, chosen, _COLOURS[i % len(_COLOURS)], name)
        if zero:
            axis.axhline(0, color="0.3", linewidth=0.8)
        axis.set_title(visible(component), loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelbottom=True)
    for axis in axes[len(components) :]:
        axis.set_visible(False)
    _legend(figure, axes[0])
    for axis in axes[max(0, len(components) - columns) : len(components)]:
        axis.set_xlabel("block")
    return figure, axes[: len(components)]


def _legend(figure: Figure, axis: Any) -> None:  # noqa: ANN401
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _whiskers(rows: list[dict[str, Any]], column: str, scale: float = 1e3) -> np.ndarray | None:
    if any(r[f"{column}_low"] is None for r in rows):
        return None
    half = [abs(scale) * (r[f"{column}_high"] - r[f"{column}_low"]) / 2 for r in rows]
    return np.array([half, half])


def _linear_threshold(sizes: Any) -> float:  # noqa: ANN401
    """Where the axis turns from linear to logarithmic: the power of ten above the median size."""
    return 10.0 ** ceil(log10(max(float(np.median(sizes)), 1e-3)))


def _log_ticks(low: float, high: float, linear: float) -> list[float]:
    """Zero, and 1 and 3 of each power of ten from just inside the linear part on, of either sign.

    Example:
        >>> _log_ticks(-20.0, 49.0, 10.0)
        [-10.0, -3.0, 0.0, 3.0, 10.0, 30.0]
    """
    found, place = [0.0], linear
    while place <= 10 * max(-low, high):
        found += [sign * size for size in (3 * place / 10, place) for sign in (-1, 1)]
        place *= 10
    return sorted(t for t in found if low <= t <= high)


def _title(diagnosis: Findings, what: str, table: Table) -> str:
    seen = sorted(set(table["windows"]))
    windows = f"{seen[0]} to {seen[-1]}" if len(seen) > 1 else f"{seen[0]}"
    kind = "confidence sequences" if diagnosis.results.anytime else "intervals"
    what += ", first-order estimate" if table[0]["estimated"] else ""
    return (
        f"{what}: {visible(diagnosis.results.model.get('name', 'a model'))}\n"
        f"{table[0]['operands']}, {windows} windows, 95% {kind}"
    )
