"""Why a unit costs what it does, in sentences, from what `--causes` measured."""

from collections.abc import Iterator, Mapping
from statistics import fmean, median
from typing import Any

from fp4scope.errors import StudyError, nearest
from fp4scope.report import labels
from fp4scope.report.findings import Findings
from fp4scope.report.lowering import TITLE, lowering_sentences
from fp4scope.report.numbers import interval, number, percent
from fp4scope.report.remedies import remedy_sentences
from fp4scope.table import Interval

_Row = Mapping[str, Any]
_MILLI = "millinats of KL"
_NEAR = 1.25
"""What costs less than this many times as much is near chance, however certain it is."""


def explained(found: Findings, unit: str | None = None) -> dict[str, list[str]]:
    """Sentences by unit and format.

    Args:
        found: Of a study with `--causes`.
        unit: A projection, or a layer as `3.down_proj`; by default the most costly of each format,
            and the layers that lower the loss.

    Raises:
        StudyError: The study has no causes, or none of this unit.
    """
    if not found.gains:
        raise StudyError(
            "this run measured no causes; repeat it with --causes projections, or --causes layers"
        )
    rows = [row for row in found.gains if unit is None or labels.place(row) == unit]
    if not rows:
        known = [labels.place(row) for row in found.gains]
        raise StudyError(f"no causes were measured of {unit!r}; {nearest(unit or '', known)}")
    if unit is None:
        formats = dict.fromkeys((row["format"], row["precision"]) for row in rows)
        rows = [max(_alike(rows, fmt), key=lambda row: row["kl"]) for fmt in formats]
    said = {
        f"{labels.place(row)}, {row['format']}, {row['precision']}": list(_sentences(found, row))
        for row in rows
    }
    lines = list(lowering_sentences(found)) if unit is None else []
    return said | ({TITLE: lines} if lines else {})


def _alike(rows: list[dict[str, Any]], fmt: tuple[str, str]) -> list[dict[str, Any]]:
    """Projections of one format and precision; layers where there are no projections."""
    own = [row for row in rows if (row["format"], row["precision"]) == fmt]
    return [row for row in own if row["level"] == "projections"] or own


def _sentences(found: Findings, row: _Row) -> Iterator[str]:
    yield f"Quantized alone it costs {interval(row, 'kl')} {_MILLI} per token."
    yield from _operands(found, row)
    yield from _error_and_gain(found, row)
    yield from _direction(row)
    for operand in ("weights", "inputs"):
        yield from _taken_apart(found, row, operand)
    yield from remedy_sentences(found, row)


def _operands(found: Findings, row: _Row) -> Iterator[str]:
    names = ("level", "unit", "block", "format", "precision")
    [split] = found.split.where(measure="kl", **{name: row[name] for name in names})
    yield (
        f"Weights alone cost {interval(split, 'weights')}, inputs alone "
        f"{interval(split, 'inputs')}."
    )
    beyond = Interval.of(split, "interaction")
    if beyond.value is not None and beyond.low is not None and not beyond.holds_zero:
        more = "more" if beyond.value > 0 else "less"
        yield f"Together they cost {more} than the sum: {interval(split, 'interaction')}."


def _error_and_gain(found: Findings, row: _Row) -> Iterator[str]:
    """Whether its error or its place stands out among units of its kind."""
    if row["error"] is None or not row["gain"]:
        return
    yield (
        f"Its output is off by {number(row['error_db'], digits=1)} dB. Noise of 0.1% of the "
        f"output's energy costs {interval(row, 'gain', 1.0)} {_MILLI}; noise of 1% costs "
        f"{number(10 * row['linear'])} times as much."
    )
    others = [
        other
        for other in found.gains.where(**{n: row[n] for n in ("level", "format", "precision")})
        if other["error"] and other["gain"]
    ]
    error, gain = (row[n] / median(other[n] for other in others) for n in ("error", "gain"))
    yield (
        f"Against the median of {len(others)} {row['level']} its error is {number(error)} times "
        f"as large, and its gain {number(gain)} times."
    )
    if row["over_predicted_low"] is not None:
        over = Interval.of(row, "over_predicted")
        yield f"KL is {_ratio(over)} times error times gain.{_far(over)}"


def _far(over: Interval) -> str:
    """Which way the product is off by more than a factor of 2, if it is."""
    if over.high is not None and over.high < 0.5:
        return " Rounding does much less here than noise of that energy in its output."
    if over.low is not None and over.low > 2:
        return " Rounding does much more here than noise of that energy in its output."
    return ""


def _direction(row: _Row) -> Iterator[str]:
    against = Interval.of(row, "against_noise")
    if against.low is None or against.high is None:
        return
    said = "no worse and no better than chance"
    if against.low > 1:
        said = "worse than chance"
    elif against.high < 1:
        said = "better than chance"
    if against.low > _NEAR or against.high < 1 / _NEAR:
        said += "; the direction of the error matters"
    yield (
        f"It costs {_ratio(against)} times what noise of the same energy in its operands does: "
        f"{said}."
    )


def _taken_apart(found: Findings, row: _Row, operand: str) -> Iterator[str]:
    own = [
        one
        for one in found.errors.where(projection=row["unit"], operand=operand)
        if row["block"] in (None, one["block"]) and one["format"] in row["format"].split("/")
    ]

    def of(name: str) -> float | None:
        known = [one[name] for one in own if one[name] is not None]
        return fmean(known) if known else None

    if of("error_db") is None:
        return
    yield (
        f"{operand.capitalize()}: {number(of('error_db'), digits=1)} dB, of which rounding "
        f"{percent(of('rounding'))}, clipping {percent(of('clipping'))}, flush to zero "
        f"{percent(of('flushing'))}; scales without rounding would save {percent(of('scale'))}. "
        f"Kurtosis {number(of('kurtosis'))}, {number(of('outlier_count'), digits=1)} outlier "
        "channels."
    )


def _ratio(found: Interval) -> str:
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"
