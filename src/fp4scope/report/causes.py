"""The tables of a report about causes: why what is quantized costs what it does."""

from collections.abc import Iterator

from fp4scope.report import labels
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import measured, number, share
from fp4scope.report.section import Cell, Column, Section, naming, texts


def about_causes(found: Findings) -> list[Section]:
    """All that is said of causes; nothing of a study that did not ask."""
    return [*additivity(found)]


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


def _milli(value: float | None) -> Cell:
    return Cell("" if value is None else number(1e3 * value), value=value)
