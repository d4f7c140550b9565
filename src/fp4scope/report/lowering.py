"""Layers whose quantization lowers the loss: a table of a report, and sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

from fp4scope.report.findings import Findings
from fp4scope.report.numbers import number
from fp4scope.report.section import Cell, Column, Section, naming, texts
from fp4scope.study import Direction

TITLE = "Layers that lower the loss"
_Row = Mapping[str, Any]


def lowering(found: Findings) -> Iterator[Section]:
    """A row for each format, precision and direction; nothing where no layers were tested."""
    columns = [
        naming("format"), naming("precision"), naming("direction"), Column("layers"),
        Column("significantly lower the loss", "lower the loss"),
        Column("of these KL rises", "KL rises"), Column("KL falls", "KL falls"),
        Column("KL undecided", "KL undecided"),
        Column("at 2.5% each by itself", "uncorrected"), Column("expected by chance", "by chance"),
        Column("chosen on half of the windows"), Column("below zero on the other half"),
    ]  # fmt: skip
    counts = ("lowering", "kl_rises", "kl_falls", "kl_open", "uncorrected", "by_chance")
    shown = [
        [
            *texts(row["format"], row["precision"], row["direction"]),
            *(_count(row[name]) for name in ("layers", *counts, "chosen", "again")),
        ]
        for row in found.lowering
    ]
    if shown:
        yield Section(
            TITLE,
            columns,
            shown,
            intro="Layers that cost less than nothing. KL says what they are. Where it rises, the "
            "model moves away from the one in full precision and what it says fits this text "
            "better: look at whether the text is what the model is for. Where it falls, their "
            "error cancels errors of other layers.",
            note="Significant: at 5%, by Holm over the layers of a row. Chance lowers one in 40 "
            "layers at 2.5%. Chosen: at 2.5% on every other window, for both halves. Of layers "
            "that only chance has chosen half are below zero on the other half.",
            id="lowering",
        )


def lowering_sentences(found: Findings) -> Iterator[str]:
    """What is found in each format and direction."""
    for row in found.lowering:
        start = f"{row['format']}, {row['precision']}, {row['direction']}: quantizing"
        if not row["lowering"]:
            yield f"{start} none of {row['layers']} layers significantly lowers the loss."
            continue
        yield f"{start} {row['lowering']} of {row['layers']} layers significantly lowers the loss."
        yield from _what(row)
        yield (
            f"Each by itself, {row['uncorrected']} do at 2.5%, where chance gives "
            f"{number(row['by_chance'], digits=1)}."
        )
        if row["chosen"]:
            yield (
                f"Of {row['chosen']} chosen on half of the windows, {row['again']} are below zero "
                "on the other half."
            )


def _what(row: _Row) -> Iterator[str]:
    """What KL says of the layers that lower the loss."""
    if row["kl_rises"]:
        yield (
            f"In {row['kl_rises']} KL rises: the model moves away from the one in full precision, "
            "and fits this text better. Is the text what the model is for?"
        )
    if row["kl_falls"]:
        others = " of other layers" if row["direction"] == Direction.KEEP.value else ""
        yield f"In {row['kl_falls']} KL falls too: their error cancels errors{others}."
    if row["kl_open"]:
        yield f"In {row['kl_open']} KL is undecided."


def _count(value: float | int | None) -> Cell:
    if value is None:
        return Cell()
    return Cell(str(value) if isinstance(value, int) else number(value, digits=1), value=value)
