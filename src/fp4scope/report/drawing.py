"""The figures, drawn with matplotlib: each from the rows of one direction and precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fp4scope.names import visible
from fp4scope.report.axes import linear_threshold, log_ticks, step_above, steps_of_colour, tick
from fp4scope.report.findings import Findings
from fp4scope.report.labels import KEEP, Direction, direction, precision, with_intervals
from fp4scope.report.numbers import in_percent
from fp4scope.report.selection import compared_with, costliest
from fp4scope.report.theme import Theme
from fp4scope.stats import SIGNIFICANCE
from fp4scope.table import Interval, Table

_MOST_INCHES = 400.0
"""An image of more than 65,536 dots in a direction cannot be drawn; there are 150 to an inch."""
_PLAIN = FuncFormatter(lambda value, _: tick(value))
_DOT = {"marker": ".", "s": 6, "linewidths": 0}
"""On what is not significant."""
MARKERS = "osD^vP"
"""One for each series, which tell without colours."""
_LEGEND_LETTERS, _MARK_LETTERS = 100, 6
"""Letters beside each other in a legend, and the room of a mark in them."""
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
        theme: Its colours.
    """

    found: Findings
    table: Table
    metric: str
    theme: Theme

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
        windows = with_intervals(self.table["windows"], self.found.results.anytime)
        what += ", first-order estimate" if self.table[0]["estimated"] else ""
        return (
            f"{what}: {visible(self.found.results.model.get('name', 'a model'))}\n"
            f"{precision(self.table)}, {windows}"
        )


def projections(shown: Shown) -> Figure:
    """Dots with whiskers, a line for each projection and format; hollow: not significant."""
    table, theme = shown.table, shown.theme
    formats = shown.formats
    order = [name for (name,) in costliest(table, "projection")]
    figure, axes = new_figure(1, 1, (7.2, 1.3 + (0.2 + 0.14 * len(formats)) * len(order)))
    axis = axes[0]
    for i, name in enumerate(formats):
        rows = {row["projection"]: row for row in table.where(format=name)}
        chosen = [(place, rows[unit]) for place, unit in enumerate(order) if unit in rows]
        y = [place + (i - (len(formats) - 1) / 2) * 0.6 / len(formats) for place, _ in chosen]
        x = [1e3 * row["drawn"] for _, row in chosen]
        spans = [Interval.of(row, "drawn").times(1e3) for _, row in chosen]
        colour = theme.of(i)
        axis.errorbar(x, y, xerr=_whiskers(spans), fmt="none", ecolor=colour, elinewidth=1.4)
        fills = ["none" if _unsure(row) else colour for _, row in chosen]
        axis.scatter(
            x, y, 26, fills, marker=MARKERS[i % len(MARKERS)], edgecolors=colour, label=name
        )
    axis.set_yticks(range(len(order)), [visible(name) for name in order])
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.axvline(0, color=theme.soft, linewidth=0.8)
    axis.xaxis.set_major_formatter(_PLAIN)
    axis.set_xlabel(f"{shown.unit} per token, {shown.way.effect} (hollow: not significant)")
    axis.set_title(shown.title(f"Projections, {shown.way.name}"), loc="left")
    legend(figure, axis)
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
        values = [1e3 * r["drawn"] for r in rows]
        axis.plot(blocks, values, ".-", color=colour, linewidth=1.2, label=label)
        spans = [Interval.of(r, "drawn").times(1e3) for r in rows]
        if all(span.half is not None for span in spans):
            ends = ([span.low for span in spans], [span.high for span in spans])
            axis.fill_between(blocks, *ends, color=colour, alpha=0.18, linewidth=0)

    figure, axes = _panels(shown, table, draw)
    linear = linear_threshold(1e3 * value for value in table["drawn"])
    axes[0].set_yscale("symlog", linthresh=linear)
    low, high = axes[0].get_ylim()
    axes[0].set_yticks(log_ticks(low, high, linear), minor=False)
    axes[0].set_yticks([], minor=True)
    axes[0].yaxis.set_major_formatter(_PLAIN)
    figure.supylabel(f"{shown.unit} per token", fontsize=9)
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

    figure, _ = _panels(shown, shown.table, draw)
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
            axis.axhline(control["ppl"], color=shown.theme.soft, linewidth=0.8, linestyle="--")
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

    figure, _ = _panels(shown, table, draw, zero=False)
    figure.supylabel(f"PPL (dashed: the {shown.way.control})", fontsize=9)
    figure.suptitle(shown.title(f"Layers, {shown.way.name}"), fontsize=10)
    return figure


def heatmap(shown: Shown) -> Figure:
    """Block by projection, one panel a format, on one scale; a dot: not significant."""
    table, formats = shown.table, shown.formats
    projections = list(dict.fromkeys(table["projection"]))
    blocks = sorted(set(table["block"]))
    tall = 1.3 + len(formats) * (0.45 + 0.2 * len(projections))
    figure, axes = new_figure(len(formats), 1, (max(5.0, 2.2 + 0.24 * len(blocks)), tall))
    drawn = [1e3 * row["drawn"] for row in table]
    peak, linear = step_above(max(map(abs, drawn)) or 1.0), linear_threshold(drawn)
    norm = SymLogNorm(linear, vmin=-peak, vmax=peak)
    for axis, name in zip(axes, formats, strict=True):
        values = np.full((len(projections), len(blocks)), np.nan)
        unsure: list[tuple[int, int]] = []
        for row in table.where(format=name):
            i, j = projections.index(row["projection"]), blocks.index(row["block"])
            if _unsure(row):
                unsure.append((j, i))
            else:
                values[i, j] = 1e3 * row["drawn"]
        axis.imshow(values, cmap=shown.theme.map, norm=norm, aspect="auto")
        if unsure:
            axis.scatter(*zip(*unsure, strict=True), color=shown.theme.soft, **_DOT)
        axis.set_yticks(range(len(projections)), [visible(name) for name in projections])
        ticked = range(0, len(blocks), max(1, ceil(len(blocks) / 16)))
        axis.set_xticks(list(ticked), [str(blocks[j]) for j in ticked])
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.set_title(name, loc="left")
    steps = steps_of_colour(peak, linear)
    ticks = [*(-step for step in steps), 0.0, *reversed(steps)]
    colours = ScalarMappable(norm, shown.theme.map)
    bar = figure.colorbar(colours, ax=axes, label=f"{shown.unit} per token", pad=0.01, ticks=ticks)
    bar.ax.yaxis.set_major_formatter(_PLAIN)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    dot = "" if table[0]["estimated"] else " (a dot: not significant, Holm at 5%)"
    axes[-1].set_xlabel(f"block{dot}")
    what = f"Layers, {shown.way.name}, {shown.unit} per token"
    figure.suptitle(shown.title(what), fontsize=10)
    return figure


def new_figure(
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    shared: bool = False,
    one_x: bool = True,
) -> tuple[Figure, list[Any]]:
    """A figure of panels; `shared`: with one vertical axis; `one_x`: with one horizontal."""
    width, height = (min(inches, _MOST_INCHES) for inches in size)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(
        rows, columns, squeeze=False, sharex=one_x and rows * columns > 1, sharey=shared
    )
    return figure, list(axes.flat)


def legend(figure: Figure, axis: Any) -> None:  # noqa: ANN401
    """What the marks of a panel mean, below the figure."""
    handles, labels = axis.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    columns = min(5, len(labels), max(1, _LEGEND_LETTERS // (longest + _MARK_LETTERS)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _panels(
    shown: Shown, table: Table, draw: Callable[..., None], zero: bool = True
) -> tuple[Figure, list[Any]]:
    """One panel a projection, one colour a format, a line at zero unless that is far away."""
    projections = list(dict.fromkeys(table["projection"]))
    columns = len(projections) if len(projections) < 4 else min(4, ceil(len(projections) / 2))
    rows = ceil(len(projections) / columns)
    size = (1.0 + 2.3 * columns, 1.3 + 1.6 * rows)
    figure, axes = new_figure(rows, columns, size, shared=True)
    for axis, projection in zip(axes, projections, strict=False):
        for i, name in enumerate(dict.fromkeys(table["format"])):
            chosen = table.where(projection=projection, format=name).rows
            chosen = sorted(chosen, key=lambda r: r["block"])
            if chosen:
                draw(axis, chosen, shown.theme.of(i), name)
        if zero:
            axis.axhline(0, color=shown.theme.soft, linewidth=0.8)
        axis.set_title(visible(projection), loc="left")
        axis.set_xlim(-0.7, max(table["block"]) + 0.7)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelbottom=True)
    for axis in axes[len(projections) :]:
        axis.set_visible(False)
    legend(figure, axes[0])
    for axis in axes[max(0, len(projections) - columns) : len(projections)]:
        axis.set_xlabel("block")
    return figure, axes[: len(projections)]


def _unsure(row: dict[str, Any]) -> bool:
    """Whether a row is tested, and not significant."""
    return row["drawn_p"] is not None and row["drawn_p"] > SIGNIFICANCE


def _whiskers(shown: Sequence[Interval]) -> list[float] | None:
    halves = [span.half for span in shown]
    return None if None in halves else halves  # type: ignore[return-value]
