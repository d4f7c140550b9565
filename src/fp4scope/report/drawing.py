"""The figures, drawn with matplotlib: each from the rows of one direction and precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from fp4scope.names import visible
from fp4scope.report.axes import linear_threshold, log_ticks, step_above, step_below
from fp4scope.report.findings import Findings
from fp4scope.report.labels import KEEP, Direction, direction, precision
from fp4scope.report.numbers import in_percent
from fp4scope.report.selection import compared_with, costliest
from fp4scope.stats import SIGNIFICANCE
from fp4scope.table import Interval, Table

# Okabe and Ito's colour-blind-safe palette.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE: dict[Any, Any] = {
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
UNITS = {"nll": "millinats", "kl": "millinats of KL"}
"""By metric. Each has its own test."""


@dataclass(frozen=True)
class Shown:
    """What a figure is drawn from.

    Attributes:
        found: The study.
        table: Rows of one direction and precision, with `drawn` and its interval in nats per token,
            `drawn_p`, and whether they are `estimated`.
        metric: Of which `drawn` is the difference.
    """

    found: Findings
    table: Table
    metric: str

    @property
    def way(self) -> Direction:
        return direction(self.table[0]["direction"])

    @property
    def unit(self) -> str:
        return UNITS[self.metric]

    @property
    def formats(self) -> list[str]:
        return list(dict.fromkeys(self.table["format"]))

    def title(self, what: str) -> str:
        """What is shown, of which model, in what precision, on how many windows."""
        seen = sorted(set(self.table["windows"]))
        windows = f"{seen[0]} to {seen[-1]}" if len(seen) > 1 else f"{seen[0]}"
        kind = "confidence sequences" if self.found.results.anytime else "intervals"
        what += ", first-order estimate" if self.table[0]["estimated"] else ""
        return (
            f"{what}: {visible(self.found.results.model.get('name', 'a model'))}\n"
            f"{precision(self.table)}, {windows} windows, 95% {kind}"
        )


def projections(shown: Shown) -> Figure:
    """Bars with whiskers: one group a projection, one bar a format."""
    table = shown.table
    formats = shown.formats
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
    axis.set_xlabel(f"{shown.unit} per token, {shown.way.effect}")
    axis.set_title(shown.title(f"Projections, {shown.way.name}"))
    _legend(figure, axis)
    return figure


def layers(shown: Shown) -> Figure:
    """Curves over depth, one panel a projection, on a symmetric log axis."""
    return _curves(shown, shown.table, f"Layers, {shown.way.name}")


def effects(shown: Shown) -> Figure:
    """The same of the groups of a designed sweep; what is behind the blocks has no depth."""
    inside = [row for row in shown.table if row["block"] is not None]
    title = "Cost of groups, on average over what else is quantized"
    return _curves(shown, Table(shown.table.columns, inside), title)


def _curves(shown: Shown, table: Table, title: str) -> Figure:

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
    figure.supylabel(f"{shown.unit} per token (symlog)", fontsize=9)
    figure.suptitle(shown.title(title), fontsize=10)
    return figure


def percent(shown: Shown) -> Figure:
    """What keeping a layer saves, in percent of the all-quantized model's perplexity."""

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

    figure, _ = _panels(shown.table, draw)
    figure.supylabel(f"% of the all-quantized model's PPL, {KEEP.effect}", fontsize=9)
    figure.suptitle(shown.title("Layers kept in full precision"), fontsize=10)
    return figure


def ppl(shown: Shown) -> Figure:
    """Perplexity over depth, of one format (by default the first), beside what it starts from.

    The whiskers are the intervals of the paired difference from that line.
    """
    table = shown.table.where(format=shown.formats[0])
    control = compared_with(shown.found, table[0])

    def draw(axis: Any, rows: list[dict[str, Any]], colour: str, label: str) -> None:  # noqa: ANN401
        if control is not None:
            axis.axhline(control["ppl"], color="0.4", linewidth=0.8, linestyle="--")
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
    figure.supylabel(f"PPL (dashed: the {shown.way.control})", fontsize=9)
    figure.suptitle(shown.title(f"Layers, {shown.way.name}"), fontsize=10)
    return figure


def heatmap(shown: Shown) -> Figure:
    """Block by projection, one panel a format; layers that are not significant are crossed out."""
    table = shown.table
    formats = shown.formats
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
        ticked = range(0, len(blocks), max(1, ceil(len(blocks) / 16)))
        axis.set_xticks(list(ticked), [str(blocks[j]) for j in ticked])
        axis.spines[:].set_visible(False)
        axis.set_title(name, loc="left")
        middle = step_below(float(norm.inverse(0.75)))
        ticks = [-peak, -middle, 0.0, middle, peak]
        bar = figure.colorbar(image, ax=axis, label=shown.unit, pad=0.01, ticks=ticks)
        bar.ax.yaxis.set_major_formatter(_PLAIN)
        bar.ax.minorticks_off()
    cross = "" if table[0]["estimated"] else " (a cross: not significant, Holm at 5%)"
    axes[-1].set_xlabel(f"block{cross}")
    what = f"Layers, {shown.way.name}, {shown.unit} per token"
    figure.suptitle(shown.title(what), fontsize=10)
    return figure


def _new(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Any]]:
    width, height = (min(inches, _MOST_INCHES) for inches in size)
    with mpl.rc_context(STYLE):
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
