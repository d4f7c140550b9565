"""Remedies of the most costly units: a table of a report, and sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fp4scope.deploy.remedies import EVERYWHERE, SAME_SIZE, SERVED
from fp4scope.report import labels
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import interval, measured, number
from fp4scope.report.section import Cell, Column, Section, naming, texts

_Row = Mapping[str, Any]
_NOBODY = "no engine"


def remedies(found: Findings) -> Iterator[Section]:
    """The best remedies of each unit; nothing where none were tried."""
    rows = [row for row in found.remedies if row["best"]]
    columns = [
        naming("unit"), naming("format"), naming("likely cause"),
        Column("keeping it saves, KL millinats", "keeping it saves"), naming("remedy"),
        Column("removes of that", "removes"), Column("bits more for each weight", "bits more"),
        naming("served as measured by"),
    ]  # fmt: skip
    shown = [
        [
            *texts(labels.place(row), row["format"]),
            _with_aside(*row["cause"].split("; ", 1)),
            measured(row, "damage"),
            _with_aside(row["remedy"], row["best"]),
            removed(row),
            _more(row),
            Cell(row["served"] or _NOBODY),
        ]
        for row in rows
    ]
    if shown:
        yield Section(
            "Remedies",
            columns,
            shown,
            intro=f"{_windows(rows)}, with all else quantized: what keeping each unit in full "
            "precision saves, and how much of that other settings of the unit alone remove. The "
            "windows before them chose the units.",
            note=f"Two of each unit: the one that removes most at the {SAME_SIZE} of weights (up "
            f"to half a bit more), and the smallest that is {SERVED} as measured and removes half "
            "or more. Shares have intervals that hold for all remedies of a unit at once. All that "
            "was tried is in remedies.csv.",
            id="remedies",
        )


def removed(row: _Row) -> Cell:
    """The share of the damage that a remedy removes; full precision removes all of it."""
    if row["share"] is None:
        return Cell("all", value=1.0)
    value, *ends = (
        number(100 * end, digits=0) if (end := row[f"share{of}"]) is not None else ""
        for of in ("", "_low", "_high")
    )
    return Cell(f"{value}%", f"[{', '.join(ends)}]" if all(ends) else "", row["share"])


def _more(row: _Row) -> Cell:
    """Bits for each weight, and bytes of all of them."""
    aside = f"({number(row['bytes'] / 1e6)} MB)" if row["bits"] else ""
    return Cell(number(row["bits"], sign=True), aside, row["bits"])


def _with_aside(text: str, aside: str = "") -> Cell:
    return Cell(text, f"({aside})" if aside else "")


def remedy_sentences(found: Findings, place: _Row) -> Iterator[str]:
    """What was tried on a unit in a format, and what helped."""
    names = ("level", "unit", "block", "format", "precision")
    rows = list(found.remedies.where(**{name: place[name] for name in names}))
    if not rows:
        return
    yield (
        f"{_windows(rows)}, with all else quantized, keeping it in full precision saves "
        f"{interval(rows[0], 'damage')} millinats of KL."
    )
    best = {word: row for row in rows for word in row["best"].split("; ") if word}
    if SAME_SIZE in best:
        row = best[SAME_SIZE]
        yield (
            f"Of {row['tried']} remedies, at the same size {row['remedy']} removes most of that: "
            f"{removed(row)}, {_costs(row)}."
        )
    elif SERVED in best:
        yield f"Of {rows[0]['tried']} remedies, none at the same size significantly helps."
    if SERVED in best and best[SERVED] is not best.get(SAME_SIZE):
        row = best[SERVED]
        yield (
            f"The smallest that an engine serves as measured, and that removes half or more: "
            f"{row['remedy']}, {removed(row)}, {_costs(row)}."
        )


def _costs(row: _Row) -> str:
    more = f"{number(row['bits'], sign=True, digits=2)} bits a weight"
    size = f"{number(row['bytes'] / 1e6, sign=True, digits=2)} MB"
    who = {"": "no engine serves that as measured", EVERYWHERE: "every engine serves that"}
    served = row["served"]
    return f"{more}, {size}; {who.get(served, f'served by {served}')}"


def _windows(rows: Sequence[_Row]) -> str:
    return f"On {rows[0]['windows']} windows that did not choose the units"
