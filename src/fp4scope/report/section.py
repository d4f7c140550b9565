"""A table of a report with what it says: made once, shown by each renderer in its own way."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One place of a table.

    Attributes:
        text: What is read.
        aside: What belongs to it and may stand smaller or below it: an interval.
        value: What it is sorted by; its text where that is None.
        muted: Whether it is tested and not significant.
    """

    text: str = ""
    aside: str = ""
    value: float | int | None = None
    muted: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.aside}".rstrip()


@dataclass(frozen=True)
class Column:
    """What stands in a column.

    Attributes:
        label: Its heading.
        short: Its heading where there is little room; it is left out there without one.
        group: A heading over it and its neighbours.
        name: Whether it names the rows, instead of measuring them.
    """

    label: str
    short: str | None = None
    group: str = ""
    name: bool = False


@dataclass(frozen=True)
class Section:
    """A table under its title.

    Attributes:
        title: What it shows.
        columns: The first ones name a row.
        rows: A cell for each column.
        intro: What the title does not say.
        note: What the columns mean.
        controls: As many rows at the top are what the others are compared with.
        id: What a page calls it.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    intro: str = ""
    note: str = ""
    controls: int = 0
    id: str = ""


def naming(label: str, group: str = "") -> Column:
    """A column of names."""
    return Column(label, label, group, name=True)


def texts(*values: object) -> list[Cell]:
    """Cells of plain text; None is an empty one."""
    return [Cell("" if value is None else str(value)) for value in values]
