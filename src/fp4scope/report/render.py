"""Sections as Markdown and as HTML. No name in them acts as either."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from fp4scope.names import markdown as escaped
from fp4scope.names import visible
from fp4scope.report.section import Cell, Column, Section


def as_markdown(section: Section, depth: int = 3) -> str:
    """A section under a heading of this depth."""
    heads = [f"{c.group}: {c.label}" if c.group else c.label for c in section.columns]
    lines = [f"{'#' * depth} {escaped(section.title)}", ""]
    lines += [escaped(section.intro), ""] if section.intro else []
    lines += [_line(map(escaped, heads)), _line(["---"] * len(heads))]
    lines += [_line(map(_in_markdown, section.columns, row)) for row in section.rows]
    lines += ["", escaped(section.note)] if section.note else []
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_markdown(column: Column, cell: Cell) -> str:
    text = str(cell).replace("\n", "; ")
    if not (column.name and "*" in text):
        return escaped(text)
    return f"`{text}`" if escaped(text) == text else escaped(text).replace("*", "&#42;")


def as_html(section: Section) -> str:
    """A section as a table that sorts and scrolls, under its title and intro."""
    caption = f"<strong>{shown(section.title)}</strong>"
    caption += f". {shown(section.intro)}" if section.intro else ""
    note = f'<p class="note">{shown(section.note)}</p>\n' if section.note else ""
    known = f' id="{section.id}"' if section.id else ""
    return (
        f'<figure class="table">\n<figcaption>{caption}</figcaption>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{shown(section.title)}">\n'
        f'<table class="sortable"{known}>\n<thead>{_heads(section.columns)}</thead>\n'
        f"{_body(section, section.rows[: section.controls], ' class=fixed')}"
        f"{_body(section, section.rows[section.controls :])}"
        f"</table>\n</div>\n</figure>\n{note}"
    )


def shown(text: str) -> str:
    return escape(visible(text))


def _heads(columns: Sequence[Column]) -> str:
    groups = [(group, len(list(of))) for group, of in groupby(columns, lambda c: c.group)]
    above = "".join(
        f'<th colspan="{count}" scope="colgroup">{shown(group)}</th>'
        if group
        else f'<td colspan="{count}"></td>'
        for group, count in groups
    )
    heads = "".join(f'<th scope="col"{_kind(c)}>{shown(c.label)}</th>' for c in columns)
    first = f"<tr>{above}</tr>\n" if len(groups) > 1 else ""
    return f"{first}<tr>{heads}</tr>"


def _body(section: Section, rows: Sequence[Sequence[Cell]], attributes: str = "") -> str:
    if not rows and attributes:
        return ""
    lines = [
        f"<tr>{''.join(_place(i, column, cell) for i, (column, cell) in enumerate(places))}</tr>\n"
        for places in (list(zip(section.columns, row, strict=True)) for row in rows)
    ]
    return f"<tbody{attributes}>\n{''.join(lines)}</tbody>\n"


def _place(index: int, column: Column, cell: Cell) -> str:
    tag, scope = ("td", "") if index else ("th", ' scope="row"')
    value = cell.text if cell.value is None else cell.value
    text = "<br>".join(map(shown, cell.text.split("\n")))
    if cell.aside:
        text += f' <span class="ci">{shown(cell.aside)}</span>'
    return f'<{tag}{scope}{_kind(column, cell)} data-v="{shown(str(value))}">{text}</{tag}>'


def _kind(column: Column, cell: Cell | None = None) -> str:
    kinds = [*(["name"] if column.name else []), *(["muted"] if cell and cell.muted else [])]
    return f' class="{" ".join(kinds)}"' if kinds else ""
