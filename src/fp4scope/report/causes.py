"""The tables of a report about causes: why what is quantized costs what it does."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from fp4scope.report import labels
from fp4scope.report.findings import Findings
from fp4scope.report.lowering import lowering
from fp4scope.report.numbers import measured, number, share
from fp4scope.report.remedies import remedies
from fp4scope.report.section import Cell, Column, Section, naming, texts
from fp4scope.report.selection import LAYERS_SHOWN

_NAMES = [naming("unit"), naming("format"), naming("precision")]
_KL = "KL, millinats per token"
_SHOWN = f"Projections, and of layers the {LAYERS_SHOWN} most costly of each format."


def about_causes(found: Findings) -> list[Section]:
    """All that is said of causes; nothing of a study that did not ask."""
    units = [*remedies(found), *split(found), *gains(found), *errors(found)]
    return [*units, *predictors(found), *additivity(found), *lowering(found)]


def split(found: Findings) -> Iterator[Section]:
    """What weights and inputs cost."""
    rows = [row for row in found.split if row["measure"] == "kl"]
    columns = [
        *_NAMES, Column(_KL, "KL"), Column("weights alone", "weights"),
        Column("inputs alone", "inputs"), Column("beyond their sum", "beyond"),
    ]  # fmt: skip
    shown = [
        [*_named(row), *(measured(row, n) for n in ("both", "weights", "inputs", "interaction"))]
        for row in _largest(rows, "both")
    ]
    if shown:
        yield Section(
            "By operand",
            columns,
            shown,
            intro="Each unit quantized alone: weights and inputs, only one of them, and what both "
            "cost beyond the sum.",
            note=f"With 95% intervals over windows, paired. {_SHOWN} NLL too is in split.csv.",
            id="by-operand",
        )


def gains(found: Findings) -> Iterator[Section]:
    """Each unit against noise, and how much noise behind it costs."""
    columns = [
        *_NAMES, Column(_KL, "KL"), Column("over that of noise of the same energy", "over noise"),
        Column("KL for each % of relative noise behind it, millinats", "gain"),
        Column("the same for ten times the noise, over it", "linear"),
        Column("output's error, dB", "error"), Column("KL over error times gain", "over predicted"),
    ]  # fmt: skip
    shown = [
        [
            *_named(row),
            measured(row, "kl"),
            _plain(row, "against_noise"),
            measured(row, "gain", 10.0),
            _plain(row, "linear"),
            Cell(number(row["error_db"], digits=1), value=row["error_db"]),
            _plain(row, "over_predicted"),
        ]
        for row in _largest(list(found.gains), "kl")
    ]
    if shown:
        yield Section(
            "Error and gain",
            columns,
            shown,
            intro="Over noise: the same unit with the rounding error of each block replaced by "
            "noise of the same energy in a random direction. Near 1 the direction of the error "
            "does not matter; above it rounding hurts more than chance.",
            note="Gain: noise is added to what leaves the unit in the full-precision model, in a "
            "random direction for each token. Linear: 1 where KL is proportional to the noise's "
            "energy. Error: energy of the output's error over the output's own, a mean over "
            f"tokens. {_SHOWN} Every unit is in gains.csv.",
            id="gains",
        )


def errors(found: Findings) -> Iterator[Section]:
    """The errors of operands, means over the blocks of each projection."""
    rows: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in found.errors:
        rows.setdefault((row["projection"], row["operand"], row["format"]), []).append(row)
    columns = [
        naming("projection"), naming("operand"), naming("format"),
        Column("error, dB", "error"), Column("rounding", "rounding"),
        Column("clipping", "clipping"),
        Column("flush to zero", "flush"), Column("an unrounded scale saves", "scale"),
        Column("clipped"), Column("flushed"), Column("kurtosis"), Column("block max / median"),
        Column("energy in the top 0.1%"), Column("outlier channels"),
    ]  # fmt: skip
    shares = ("rounding", "clipping", "flushing", "scale", "clipped", "flushed")
    numbers = ("kurtosis", "block_ratio")
    shown = [
        [
            *texts(*names),
            Cell(number(_mean(of, "error_db"), digits=1), value=_mean(of, "error_db")),
            *(share(_mean(of, name)) for name in shares),
            *(Cell(number(_mean(of, name)), value=_mean(of, name)) for name in numbers),
            share(_mean(of, "top")),
            Cell(number(_mean(of, "outlier_count"), digits=1), value=_mean(of, "outlier_count")),
        ]
        for names, of in rows.items()
    ]
    if shown:
        yield Section(
            "Errors taken apart",
            columns,
            shown,
            intro="The energy of the error of each operand: what falls on elements that are "
            "rounded, clipped or flushed to zero, and what scales that are not rounded would save.",
            note="Means over blocks. The three shares sum to 100%; a negative saving says that "
            "rounded scales do better. Outlier channels: root mean square over six times that of "
            "the median channel, in every window. Every layer is in errors.csv.",
            id="errors",
        )


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [row[name] for row in rows if row[name] is not None]
    return fmean(known) if known else None


def predictors(found: Findings) -> Iterator[Section]:
    """How well what is cheap to know orders what units cost."""
    of = {"gradient": "nll"}  # it estimates that; the rest says nothing of a sign
    rows = [row for row in found.predictors if row["measure"] == of.get(row["predictor"], "kl")]
    columns = [
        naming("format"), naming("precision"), naming("among"), naming("predictor"),
        naming("measure"), Column("rank correlation", "rho"), Column("ceiling", "ceiling"),
        Column("units"),
    ]  # fmt: skip
    shown = [
        [
            *texts(row["format"], row["precision"], row["among"], row["predictor"]),
            Cell(row["measure"].upper()),
            _plain(row, "rho"),
            Cell(number(row["ceiling"], digits=2), value=row["ceiling"]),
            Cell(str(row["units"]), value=row["units"]),
        ]
        for row in rows
    ]
    if shown:
        yield Section(
            "Do statistics predict what quantizing costs?",
            columns,
            shown,
            intro="Spearman's rank correlation of each predictor with what units cost that are "
            "quantized alone, with 95% intervals over windows: their KL, and for the gradient, "
            "which estimates NLL, their NLL.",
            note="Ceiling: what a perfect predictor would reach, since the measured order has "
            "noise of its own. The gradient is taken on the same windows, and shares their noise. "
            "Both measures of each are in predictors.csv.",
            id="predictors",
        )


def additivity(found: Findings) -> Iterator[Section]:
    """How far effects add, in each level and format."""
    rows = [
        [
            *texts(row["format"], row["precision"], labels.level(row["level"])),
            Cell(row["measure"].upper()),
            *(_milli(row[name]) for name in ("keep", "only")),
            measured(row, "interaction"),
            share(row["explained"]),
            *(_milli(row[name]) for name in ("error", "error_drawn")),
        ]
        for row in found.additivity
    ]
    columns = [
        naming("format"), naming("precision"), naming("units"), naming("measure"),
        Column("keep, millinats", "keep"), Column("only, millinats", "only"),
        Column("keep less only, millinats", "keep less only"),
        Column("only explains of keep", "explained"),
        Column("error of keep, half of the windows"), Column("the same, drawn to only"),
    ]  # fmt: skip
    if rows:
        yield Section(
            "Where effects add",
            columns,
            rows,
            intro="Keeping a unit saves what quantizing it alone costs where effects add. What is "
            "left over is how the errors of different units act on each other.",
            note="Root mean squares over the units, without what noise adds, with 95% intervals. "
            "Explained: of how units differ in keep, the share that only tells. Error: how far "
            "half of the windows are off the truth, with keep as measured and with keep drawn to "
            "only. Where that is smaller, only is the better measurement. Every unit is in "
            "interactions.csv.",
            id="additivity",
        )


def _largest(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """All projections, and the most costly layers of each format."""
    found = [row for row in rows if row["level"] != "layers"]
    for fmt in dict.fromkeys((row["format"], row["precision"]) for row in rows):
        layers = [
            row
            for row in rows
            if row["level"] == "layers" and (row["format"], row["precision"]) == fmt
        ]
        found += sorted(layers, key=lambda row: -row[name])[:LAYERS_SHOWN]
    return found


def _named(row: Mapping[str, Any]) -> list[Cell]:
    return [Cell(labels.place(row)), *texts(row["format"], row["precision"])]


def _plain(row: Mapping[str, Any], name: str) -> Cell:
    """A ratio with its interval."""
    if row[name] is None:
        return Cell()
    ends = [number(row[f"{name}_{end}"]) for end in ("low", "high")]
    return Cell(number(row[name]), f"[{', '.join(ends)}]" if all(ends) else "", row[name])


def _milli(value: float | None) -> Cell:
    return Cell("" if value is None else number(1e3 * value), value=value)
