"""What was predicted of recipes, beside what was measured: tables and a figure."""

from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fp4scope.deploy.bar import Bar
from fp4scope.deploy.proof import Measured
from fp4scope.recipes import Recipe
from fp4scope.report.drawing import MARKERS, legend, new_figure
from fp4scope.report.given import gigabytes
from fp4scope.report.numbers import measured, number, share
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.report.theme import LIGHT, Theme
from fp4scope.table import Interval, Table

COLUMNS = (
    "windows", "bits", "bytes", "measure", "predicted", "predicted_low", "predicted_high",
    "measured", "measured_low", "measured_high", "as_predicted",
)  # fmt: skip
_TITLES = {
    "refine": "Measured on refine, the windows that one was taken on",
    "certify": "Measured on certify, the windows that nothing was chosen on",
}
_TAKEN = "(taken)"
_MEASURES = {"kl": "KL", "nll": "more loss"}


def predicted_table(parts: Mapping[str, Sequence[Measured]]) -> Table:
    """A row for each recipe and measure, in nats per token, by the windows that it was measured on.

    Args:
        parts: Recipes measured on `refine` and on `certify`.
    """
    return Table(
        COLUMNS,
        [
            {
                "windows": part,
                "bits": one.decision.size.bits,
                "bytes": one.decision.size.bytes,
                "measure": measure,
                "as_predicted": one.is_as_predicted,
            }
            | Interval(expected.mean, expected.low, expected.high).columns("predicted")
            | one.found[measure].columns("measured")
            for part, rows in parts.items()
            for one in rows
            for measure, expected in one.decision.predicted.items()
        ],
    )


def proof_sections(
    parts: Mapping[str, Sequence[Measured]], bars: Sequence[Bar], taken: Recipe
) -> Iterator[Section]:
    """A table for each part: what was predicted of recipes, and what was measured.

    Args:
        parts: Recipes measured on `refine` and on `certify`, or by text, as `refine: prose`.
        bars: What they have to meet.
        taken: The one that all of it is about; its rows are marked.
    """
    for part, rows in parts.items():
        name, _, text = part.partition(": ")
        yield _section(_TITLES[name] + (f", {text}" if text else ""), rows, bars, taken)


def draw_predicted(table: Table, theme: Theme = LIGHT) -> Figure:
    """A panel for each measure: predicted against measured, with intervals and the identity.

    Args:
        table: As `predicted_table` gives it.
        theme: Of the ground that it is to stand on.
    """
    with mpl.rc_context(theme.style):
        figure, axes = new_figure(1, len(_MEASURES), (7.2, 4.4), one_x=False)
        for axis, (measure, name) in zip(axes, _MEASURES.items(), strict=True):
            _panel(axis, table.where(measure=measure), theme)
            axis.set_title(f"{name}, millinats per token", loc="left")
            axis.set_xlabel("predicted")
        axes[0].set_ylabel("measured")
        legend(figure, axes[0])
    return figure


def _panel(axis: Axes, table: Table, theme: Theme) -> None:
    ends: list[float] = []
    for i, part in enumerate(dict.fromkeys(table["windows"])):
        rows = table.where(windows=part)
        across, up = (
            [Interval.of(row, name).times(1e3) for row in rows]
            for name in ("predicted", "measured")
        )
        x, y = (np.array([one.value for one in by], np.float64) for by in (across, up))
        axis.errorbar(
            x, y, xerr=_reach(across), yerr=_reach(up), fmt="none", ecolor=theme.of(i),
            elinewidth=1, alpha=0.7,
        )  # fmt: skip
        axis.scatter(
            x, y, 26, theme.of(i), marker=MARKERS[i % len(MARKERS)], linewidths=0, label=part
        )
        # Predictions with little behind them reach far beyond all that was measured.
        ends += [one.value for one in across if one.value is not None]
        ends += [end for one in up for end in one if end is not None]
    low, high = min(0.0, *ends), max(ends)
    axis.axline((0, 0), slope=1, color=theme.soft, linewidth=1, zorder=1)
    room = 0.04 * (high - low)
    axis.set(xlim=(low - room, high + room), ylim=(low - room, high + room))
    axis.set_box_aspect(1)


def _reach(intervals: Sequence[Interval]) -> list[list[float]]:
    """How far intervals reach below and above their values; not at all where there is none."""
    below = [_less(one.value, one.low) for one in intervals]
    above = [_less(one.high, one.value) for one in intervals]
    return [below, above]


def _less(upper: float | None, lower: float | None) -> float:
    return 0.0 if upper is None or lower is None else max(0.0, upper - lower)


def _section(title: str, rows: Sequence[Measured], bars: Sequence[Bar], taken: Recipe) -> Section:
    columns = [
        naming("bits of the linears"),
        Column("size", "size"),
        *(
            Column(side, f"{short}, {side}", f"{name}, millinats per token")
            for name, short in (("KL", "KL"), ("more loss", "loss"))
            for side in ("predicted", "measured")
        ),
        Column("top-1", "top-1"),
        Column("as predicted", "as predicted"),
        *([Column("the bar", "the bar")] if bars else []),
    ]
    cells = [[*_cells(row, taken), *_verdict(row, bars)] for row in rows]
    return Section(title, columns, cells)


def _cells(row: Measured, taken: Recipe) -> Iterator[Cell]:
    size = row.decision.size
    mark = _TAKEN if row.decision.recipe == taken else ""
    yield Cell(number(size.bits, digits=2), mark, value=size.bits)
    yield Cell(gigabytes(size.bytes), value=size.bytes)
    for measure in ("kl", "nll"):
        for estimate in (row.decision.predicted[measure], row.found[measure]):
            yield measured(estimate.columns("x"), "x")
    yield share(row.found["top1"].mean)
    yield Cell("yes" if row.is_as_predicted else "NO")


def _verdict(row: Measured, bars: Sequence[Bar]) -> list[Cell]:
    return [Cell(row.verdict(bars).value)] if bars else []
