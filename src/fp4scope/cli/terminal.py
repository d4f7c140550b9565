"""What is printed: text that wraps at spaces, tables that fold between numbers, commands.

A terminal breaks a line wherever its edge is, in the middle of a number or a name. So text and
tables are laid out here for its width. In a pipe or a file nothing is: a paragraph is one line,
and so is a row.
"""

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fp4scope.names import visible

if TYPE_CHECKING:  # a message about bad input waits for no report
    from fp4scope.report.section import Section

_GLUE = "\N{NO-BREAK SPACE}"
_BRACKETS = r"\[[^\[\]]{,40}\]"
_INTERVAL = re.compile(rf"(\S+ )?{_BRACKETS}")
_UNBROKEN = re.compile(rf"{_BRACKETS}|\S+")
_PADDING = 2
"""Of a column."""


class _Console(Console):
    """Shows control characters instead of sending them to the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401
        return super().render_str("\n".join(map(visible, text.split("\n"))), **options)


def console(stderr: bool = False) -> Console:
    """A console that prints names and paths as text: nothing in them is markup or obeyed."""
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def say(out: Console, text: str = "", style: str | None = None, hang: str = "") -> None:
    """Print text. On a terminal it wraps at spaces, not within `[low, high]` or a word.

    Args:
        out: Where to.
        text: Paragraphs, one a line.
        style: As rich has it.
        hang: What begins all lines of a paragraph but its first.
    """
    if out.is_terminal:
        text = "\n".join(_wrapped(line, out.width, hang) for line in text.split("\n"))
    out.print(text, style=style, soft_wrap=True)


def _wrapped(line: str, width: int, hang: str) -> str:
    glued = _INTERVAL.sub(lambda found: found[0].replace(" ", _GLUE), line)
    filled = textwrap.fill(
        glued, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace(_GLUE, " ")


def show(out: Console, *parts: "Grid | Group | Table") -> None:
    """Print tables; what cannot be narrower than the terminal is not cut."""
    for part in parts:
        out.print(part, crop=False, soft_wrap=not out.is_terminal)


def command(out: Console, name: str, words: Sequence[str]) -> None:
    """Print a command that can be copied: on a terminal, lines go on after a backslash."""
    room = out.width - len(name) - 3 if out.is_terminal else 0
    lines = [""]
    for word in map(shlex.quote, words):
        if room and lines[-1] and len(lines[-1]) + len(word) > room:
            lines.append("")
        lines[-1] += f"{word} "
    indent = f"\\\n{' ' * (len(name) + 1)}"
    out.print(f"{name} {indent.join(lines)}".rstrip(), soft_wrap=True)


class Grid:
    """A table of names and numbers that no width breaks in the middle of one.

    Where its columns do not fit beside each other, intervals go below their values; where that
    does not help, further columns go into a table below, after the names again.

    Args:
        names: Headings of the first columns, which name a row.
        values: Headings of the columns of numbers.
    """

    def __init__(self, names: Iterable[str], values: Iterable[str]) -> None:
        self._names, self._values = tuple(map(visible, names)), tuple(map(visible, values))
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        self._rows.append(tuple(map(visible, cells)))

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Segment | Text]:
        heads = [*self._names, *self._values]
        columns = [[head, *cells] for head, *cells in zip(heads, *self._rows, strict=True)]
        natural = [max(map(cell_len, column)) for column in columns]
        room = options.max_width if console.is_terminal else _total(natural)
        least = [max(map(_longest, column)) for column in columns]
        fits = _total(natural) <= room
        chunks = [list(range(len(heads)))] if fits else self._chunks(least, room)
        for i, chosen in enumerate(chunks):
            if i:
                yield Text()
            widths = _spread([least[c] for c in chosen], [natural[c] for c in chosen], room)
            yield from self._drawn(console, options, chosen, widths)

    def _chunks(self, least: Sequence[int], room: int) -> Iterator[list[int]]:
        """Which columns stand together: the names, and as many others as fit."""
        names = list(range(len(self._names)))
        chosen = list(names)
        for column in range(len(names), len(least)):
            wider = _total([least[c] for c in (*chosen, column)])
            if wider > room and len(chosen) > len(names):
                yield chosen
                chosen = list(names)
            chosen.append(column)
        yield chosen

    def _drawn(
        self, out: Console, options: ConsoleOptions, chosen: Sequence[int], widths: Sequence[int]
    ) -> Iterator[Segment]:
        table = Table(box=None, pad_edge=False)
        heads = (*self._names, *self._values)
        for column, width in zip(chosen, widths, strict=True):
            justify = "left" if column < len(self._names) else "right"
            table.add_column(Text(heads[column]), justify=justify, width=width)
        for row in self._rows:
            cells = zip((row[c] for c in chosen), widths, strict=True)
            table.add_row(*(Text(_folded(cell, width)) for cell, width in cells))
        yield from out.render(table, options.update(width=_total(widths)))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _PADDING * len(widths)


def _longest(text: str) -> int:
    return max((cell_len(word) for word in _UNBROKEN.findall(text)), default=0)


def _folded(cell: str, width: int) -> str:
    """An interval that does not fit beside its value stands below it."""
    return cell if cell_len(cell) <= width else cell.replace(" [", "\n[")


def _spread(least: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
    """Widths of at least `least`; what is left of the room goes where little is missing first."""
    widths = list(least)
    for i in sorted(range(len(least)), key=lambda i: natural[i] - least[i]):
        spare = room - _total(widths)
        widths[i] += max(0, min(natural[i] - least[i], spare))
    return widths


def in_grid(section: "Section") -> Group:
    """A section under its title, with the columns for which a terminal has room."""
    chosen = [i for i, column in enumerate(section.columns) if column.short is not None]
    heads = {i: section.columns[i].short or "" for i in chosen}
    names = [i for i in chosen if section.columns[i].name]
    grid = Grid([heads[i] for i in names], [heads[i] for i in chosen if i not in names])
    for row in section.rows[section.controls :]:
        grid.add_row(*(str(row[i]) for i in chosen))
    return titled(section.title, grid)


def titled(title: str, body: "Grid | Table") -> Group:
    """A table under its title."""
    return Group(Text(visible(title), style="bold"), body)


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` within the hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
