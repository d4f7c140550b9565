"""Figures of whole models: what they cost, what bits buy, and damage along the window."""

from collections.abc import Sequence
from math import log10
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fp4scope.ledger import octave_of
from fp4scope.names import visible
from fp4scope.report import axes as scales
from fp4scope.report.drawing import MARKERS, legend, new_figure
from fp4scope.report.findings import Findings
from fp4scope.report.labels import with_intervals
from fp4scope.report.pareto import Point, pareto_points
from fp4scope.report.stopping import windows_measured
from fp4scope.report.theme import Theme
from fp4scope.report.tokens import along_window
from fp4scope.table import Interval

_APART = 0.055
"""Of the height of a chart: labels are at least so far apart."""
_LABELLED = {"format": "measured", "recipe": "recipe, measured", "predicted": "recipe, predicted"}


def costs(found: Findings, theme: Theme) -> Figure:
    """A line for each format or recipe, a mark for each precision, the cheapest first."""
    wholes = [whole for whole in found.wholes if not whole.is_full_precision]
    names = list(dict.fromkeys(whole.name for whole in wholes))
    choices = list(dict.fromkeys(whole.precision for whole in wholes))
    figure, (axis,) = new_figure(1, 1, (7.2, 1.6 + 0.26 * len(names)))
    for i, precision in enumerate(choices):
        chosen = [whole for whole in wholes if whole.precision == precision]
        spans = [Interval.of(whole.row, "delta_nll").times(1e3) for whole in chosen]
        x, y = [span.value for span in spans], [names.index(whole.name) for whole in chosen]
        halves = [span.half for span in spans]
        colour, label = theme.of(i), precision or "recipe"
        if None not in halves:
            axis.errorbar(x, y, xerr=halves, fmt="none", ecolor=colour, elinewidth=1.4)
        axis.scatter(x, y, 30, colour, marker=MARKERS[i % len(MARKERS)], linewidths=0, label=label)
    axis.set_yticks(range(len(names)), [visible(name) for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.axvline(0, color=theme.soft, linewidth=0.8)
    axis.set_xlabel("millinats per token")
    above = axis.secondary_xaxis("top", functions=(_percent, _millinats))
    above.spines[:].set_visible(False)
    above.tick_params(length=0)
    above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scales.tick(value)}%"))
    axis.set_title(_title(found, "More perplexity than in full precision"), loc="left")
    legend(figure, axis)
    return figure


def pareto(found: Findings, theme: Theme) -> Figure:
    """Bits of the model against KL; what was measured is named."""
    points = pareto_points(found)
    figure, (axis,) = new_figure(1, 1, (7.2, 4.0))
    for i, kind in enumerate(_LABELLED):
        chosen = sorted((p for p in points if p.kind == kind), key=lambda point: point.bits)
        if not chosen:
            continue
        x, y = [p.bits for p in chosen], [1e3 * p.kl for p in chosen]
        if kind == "predicted":
            axis.plot(x, y, "-", color=theme.soft, linewidth=1, zorder=1)
        fill = "none" if kind == "predicted" else theme.of(i)
        edge = theme.soft if kind == "predicted" else theme.of(i)
        axis.scatter(x, y, 26, fill, marker=MARKERS[i], edgecolors=edge, label=_LABELLED[kind])
    axis.set_yscale("log")
    named = [point for point in points if point.kind != "predicted"]
    low, high = min(p.kl for p in points) * 1e3 / 1.5, max(p.kl for p in points) * 1e3 * 1.5
    axis.set_ylim(low, high)
    axis.set_yticks(scales.decades(low, high))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scales.tick(value)))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.12)
    _name(axis, named, theme, low, high)
    axis.set_xlabel("bits of each parameter of the model")
    axis.set_ylabel("KL, millinats per token")
    axis.set_title(_title(found, "Bits against damage"), loc="left")
    legend(figure, axis)
    return figure


def positions(found: Findings, theme: Theme) -> Figure:
    """KL along the window, one line for each model, with bands; both axes are logarithmic."""
    figure, (axis,) = new_figure(1, 1, (7.2, 3.6))
    values: list[float] = []
    targets = found.results.data["seq_len"] - 1
    for i, line in enumerate(along_window(found)[: len(MARKERS)]):
        spans = line.spans
        # Of a stratum its middle, as its axis has it.
        x = [2 ** octave_of(place, targets) for place in range(len(spans))]
        y = [span.value or 0.0 for span in spans]
        colour = theme.of(i)
        axis.plot(x, y, marker=MARKERS[i], markersize=4, color=colour, linewidth=1.2,
                  label=visible(line.model.title))  # fmt: skip
        if all(span.half is not None for span in spans):
            ends = [span.low for span in spans], [span.high for span in spans]
            axis.fill_between(x, *ends, color=colour, alpha=0.18, linewidth=0)
        values += [end for span in spans for end in (span.value, span.high) if end and end > 0]
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: scales.tick(value)))
    axis.set_yscale("log")
    low, high = min(values) / 1.5, max(values) * 1.5
    axis.set_ylim(low, high)
    axis.set_yticks(scales.decades(low, high))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scales.tick(value)))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("tokens of the window in front of the target")
    axis.set_ylabel("KL, millinats per token")
    axis.set_title(_title(found, "Damage along the window"), loc="left")
    legend(figure, axis)
    return figure


def _name(axis: Any, points: Sequence[Point], theme: Theme, low: float, high: float) -> None:  # noqa: ANN401
    """Names beside points, from the bottom up, each above those before it."""
    height = log10(high / low)
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: point.kl):
        place = log10(1e3 * point.kl / low) / height
        near = [y for x, y in taken if abs(x - point.bits) < 1]
        place = max([place, *(y + _APART for y in near)])
        taken.append((point.bits, place))
        at = (point.bits, low * 10 ** (place * height))
        axis.annotate(
            visible(point.name), at, (7, 0), textcoords="offset points", va="center",
            fontsize=7.5, color=theme.ink,
        )  # fmt: skip


def _title(found: Findings, what: str) -> str:
    name = visible(found.results.model.get("name", "a model"))
    windows = with_intervals([windows_measured(found.results)], found.results.anytime)
    return f"{what}: {name}\n{windows}"


def _percent(millinats: Any) -> Any:  # noqa: ANN401
    return 100 * np.expm1(millinats / 1e3)


def _millinats(percent: Any) -> Any:  # noqa: ANN401
    return 1e3 * np.log1p(np.maximum(percent, -99.9) / 100)
