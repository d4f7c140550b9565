"""A comparison as one HTML page that works offline: a headline, costs by size, orders, changes."""

from itertools import combinations

from fp4scope.report.joint import JointFindings
from fp4scope.report.numbers import number
from fp4scope.report.page import document
from fp4scope.report.render import as_html, shown
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.report.side_by_side import findings, headline, sections


def page(comparison: JointFindings) -> str:
    """The comparison as HTML."""
    title = " · ".join(comparison.runs)
    lines = "".join(f"<li>{shown(line)}</li>" for line in findings(comparison))
    warned = "".join(f"<li>{shown(line)}</li>" for line in comparison.warnings)
    tables = "".join(map(as_html, [*matrices(comparison), *sections(comparison)]))
    distrust = (
        f'<div class="warning"><strong>Not the same in all</strong><ul>{warned}</ul></div>'
        if warned
        else ""
    )
    header = f'<h1>{shown(title)}</h1>\n<p class="lead">{shown(headline(comparison))}</p>'
    main = (
        f"{distrust}\n{tables}\n"
        f"<details><summary>Every finding in words</summary><ul>{lines}</ul></details>"
    )
    return document(title, header, main)


def matrices(comparison: JointFindings) -> list[Section]:
    """How alike each two of several outputs order projections: a matrix for each format and way."""
    rows = comparison.agreement.where(level="projections")
    names = list(comparison.runs)
    if len(names) < 3:  # one number of each, which the table of pairs has
        return []
    found: list[Section] = []
    for family in dict.fromkeys((r["format"], r["precision"], r["direction"]) for r in rows):
        fmt, precision, way = family
        rho = {
            frozenset((row["one"], row["other"])): row["rho"]
            for row in rows.where(format=fmt, precision=precision, direction=way)
        }
        if not any(frozenset(pair) in rho for pair in combinations(names, 2)):
            continue
        columns = [naming("output"), *(Column(name, name) for name in names)]
        body = [
            [Cell(one), *(_rho(rho.get(frozenset((one, other)))) for other in names)]
            for one in names
        ]
        found.append(
            Section(
                f"Same order of projections? {fmt}, {precision}, {way}",
                columns,
                body,
                note="Spearman's rank correlation: 1 is the same order, 0 none.",
            )
        )
    return found


def _rho(value: float | None) -> Cell:
    return Cell() if value is None else Cell(number(value, digits=2), value=value)
