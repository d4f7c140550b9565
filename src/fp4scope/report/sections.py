"""The tables of one study's report, made from its findings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fp4scope.report import labels
from fp4scope.report.columns import LISTED, Measure, measures
from fp4scope.report.findings import Findings
from fp4scope.report.labels import direction, precision, so_many_windows
from fp4scope.report.numbers import interval, measured, number, percent, plain, relative, share
from fp4scope.report.numbers import spread as plus_minus
from fp4scope.report.resolution import resolution, short_of
from fp4scope.report.section import Cell, Column, Section, naming, texts
from fp4scope.report.selection import (
    by_cost,
    compared_with,
    costliest,
    groups,
    is_measured,
    side_by_side,
)
from fp4scope.report.selection import lowering as lowering_of
from fp4scope.stats import Form, Hypothesis, significant
from fp4scope.table import Table

NAMED = 5
"""Layers that are named in a list of the most costly."""
_Row = Mapping[str, Any]
_ONLY_APART = ("delta_ppl", "p_top", "bits")
"""Where formats stand side by side there is no room for these."""
_UNIT = {
    "projections": ("projection",), "blocks": ("block",), "patterns": ("pattern",),
    "experts": ("block", "expert"),
}  # fmt: skip


def costs(found: Findings, *, apart: bool = False) -> Iterator[Section]:
    """What each format costs; `apart`: a section for each precision."""
    source = by_cost(found.all_quantized)
    choices = [found for found in dict.fromkeys(source["precision"]) if found]
    columns = [
        naming("format"), *([] if apart else [naming("precision")]), Column("% of PPL", "% of PPL"),
        Column(labels.EFFECT, "millinats"), Column("PPL", "PPL"), Column("NLL, nats per token"),
        Column("KL, nats per token", "KL"), Column("top-1 agreement", "top-1"),
        Column("run-to-run noise, millinats", "noise"), Column("KL of two runs"),
        Column("windows"),
    ]  # fmt: skip
    note = (
        f"From the {labels.full_precision(found.results)} model, with 95% intervals. {labels.SIGN} "
        f"Top-1 agreement: how often its most likely next token stays the most likely. "
        f"{labels.NOISE} KL of two runs: how far two such runs are apart."
    )
    if any(row["noise_nll"] is None for row in source):
        note += " Where it is empty it was not measured."
    for chosen in [[choice] for choice in choices] if apart and choices else [choices]:
        rows = [row for row in source if row["precision"] in ("", *chosen)]
        said = f", {chosen[0]}" if apart and len(choices) > 1 else ""
        shown = [_whole(found, row, apart) for row in rows]
        yield Section(f"What each format costs{said}", columns, shown, note=note, id="costs-table")


def _whole(found: Findings, row: _Row, apart: bool) -> list[Cell]:
    noise = row["noise_nll"]
    return [
        *texts(labels.format_name(row, found.results), *([] if apart else [row["precision"]])),
        _text_only(relative(row)),
        measured(row),
        plain(row["ppl"]),
        Cell(f"{row['nll']:.4f}", value=row["nll"]),
        plain(row["kl"]),
        share(row["top1"]),
        Cell("" if noise is None else plus_minus(1e3 * noise), value=noise),
        plain(row["noise_kl"]),
        Cell(str(row["windows"]), value=row["windows"]),
    ]


def _text_only(cell: Cell) -> Cell:
    """Without its interval, which stands beside it in another unit."""
    return Cell(cell.text, "", cell.value, cell.muted)


def against_each_other(found: Findings) -> Iterator[Section]:
    """Formats against the cheapest, and both operands against one; what was measured of these."""
    if pairs := _pairs(found.formats):
        known = list(dict.fromkeys(found.formats["precision"]))
        rows = [
            [*texts(fmt, other, "scale rule" if rules else "format")]
            + [measured(by[choice]) if choice in by else Cell() for choice in known]
            for (fmt, other, rules), by in pairs.items()
        ]
        columns = [naming("format"), naming("costs more than"), naming("differs in")]
        columns += [Column(f"{choice}, {labels.EFFECT}", choice) for choice in known]
        intro = (
            "Each against the cheapest of all, formats whose units were measured against each "
            "other, and scale rules against the cheapest rule of the same elements. Differences "
            "are taken window by window, so that their intervals are narrower than those of two "
            "costs suggest; they hold for all pairs together, since the cheapest is chosen from "
            "the same data."
        )
        yield Section("Formats against each other", columns, rows, intro, id="formats")
    if found.operands:
        rows = [[*texts(row["format"], row["against"]), measured(row)] for row in found.operands]
        columns = [naming("format"), naming("than only"), Column(f"costs more by, {labels.EFFECT}")]
        intro = "What quantizing both costs more than one of them, window by window."
        yield Section("Weights and activations", columns, rows, intro, id="both")


def _pairs(table: Table) -> dict[tuple[str, str, bool], dict[str, _Row]]:
    """Rows of each pair of formats by precision, the pairs of formats first."""
    found: dict[tuple[str, str, bool], dict[str, _Row]] = {}
    for row in table:
        found.setdefault((row["format"], row["against"], bool(row["rules"])), {})[
            row["precision"]
        ] = row
    return dict(sorted(found.items(), key=lambda item: item[0][2]))


def units(
    found: Findings, level: str, *, apart: bool = False, most: int | None = None
) -> Iterator[Section]:
    """Units of a level, a section for each direction and precision with its formats side by side.

    Args:
        found: The findings.
        level: `projections`, `blocks`, `layers` or `patterns`.
        apart: Whether each format has a section of its own.
        most: How many units are shown of each.
    """
    table: Table = getattr(found, level)
    for chosen in side_by_side(table):
        formats = list(dict.fromkeys(chosen["format"]))
        for together in [[fmt] for fmt in formats] if apart else [formats]:
            rows = [row for row in chosen if row["format"] in together]
            yield _unit_section(found, level, rows, together, apart=apart, most=most)


def _unit_section(
    found: Findings,
    level: str,
    rows: Sequence[_Row],
    formats: Sequence[str],
    *,
    apart: bool,
    most: int | None,
) -> Section:
    way, names = direction(rows[0]["direction"]), _UNIT.get(level, ("block", "projection"))
    by_unit: dict[tuple[Any, ...], dict[str, _Row]] = {}
    for row in rows:
        by_unit.setdefault(tuple(row[n] for n in names), {})[row["format"]] = row
    columns = [m for m in measures(level, rows) if apart or m.key not in _ONLY_APART]
    order = costliest(rows, *names)
    bits = precision(rows)
    title = f"{labels.level(level).capitalize()}, {way.name}, "
    title += f"{formats[0]}, {bits}" if apart else bits
    if most is not None and len(order) > most:
        title += f": the {most} largest of {len(order)}"
    shown = [
        [
            *(Cell(str(part), value=part if isinstance(part, int) else None) for part in unit),
            *(
                column.show(by_unit[unit][fmt]) if fmt in by_unit[unit] else Cell()
                for fmt in formats
                for column in columns
            ),
        ]
        for unit in order[:most]
    ]
    alone = level in LISTED or not is_measured(rows)
    control = [] if alone else [_control(found, rows, columns)]
    seen = so_many_windows(row["windows"] for row in rows)
    return Section(
        title,
        [
            *map(naming, names),
            *(
                Column(m.label, m.short, "" if apart else fmt)
                for fmt in formats
                for m in columns
            ),
        ],
        [*control, *shown],
        intro=f"{way.meaning[0].upper()}{way.meaning[1:]}. Over {seen}; differences are "
        f"from the {way.control}.",
        note=_told_apart(found, level, rows),
        controls=len(control),
    )  # fmt: skip


def _told_apart(found: Findings, level: str, rows: Sequence[_Row]) -> str:
    """Under a table: the smallest difference that its windows could show."""
    tested = [row for row in rows if row["p_holm"] is not None]
    if not tested:
        return ""
    if not any(map(significant, tested)):
        return f"These windows do not order the {level}{short_of(found.results, tested)}."
    known = resolution(found.results, tested)
    if known is None:
        return ""
    return f"Half the intervals are within ±{number(known.half)} millinats."


def _control(found: Findings, rows: Sequence[_Row], columns: Sequence[Measure]) -> list[Cell]:
    """What the units of each format are compared with."""
    cells = []
    for unit in {row["format"]: row for row in rows}.values():
        row = compared_with(found, unit)
        known = {} if row is None else {"ppl": plain(row["ppl"]), "kl_nats": plain(row["kl"])}
        cells += [known.get(column.key, Cell()) for column in columns]
    return [Cell(direction(rows[0]["direction"]).control.removesuffix(" model")), *cells]


def standing_out(found: Findings) -> Section:
    """What stands out among the layers of each format, precision and direction."""
    shares = found.noise_shares.where(level="layers")
    rows = []
    for group, members in groups(found.layers):
        noise = next(iter(shares.where(**group)["share"]), None)
        rows.append([Cell(labels.family(group)), *_standing_out(members, noise)])
    columns = [
        naming("direction, format"), naming("significant"), naming("most costly, millinats"),
        naming("quantizing these lowers the loss, millinats"),
    ]  # fmt: skip
    note = (
        "A layer is written block.projection. Layers that are significantly negative are no error "
        "of the measurement: with them in full precision the rest of the quantized model does "
        f"worse on this text, or quantizing them alone lowers the loss. {labels.LOWER_LOSS} "
        "Run-to-run noise is part of what differs between windows, so the intervals contain it. "
        "Between two runs the interval is wider by the square root of two. Of layers that are "
        "quantized alone it is not measured."
    )
    return Section("What stands out", columns, rows, note=note, id="standout")


def _standing_out(rows: Sequence[_Row], noise: float | None) -> list[Cell]:
    known = [row for row in rows if significant(row)]
    lower = lowering_of(rows)
    tested = any(row["p_holm"] is not None for row in rows)
    if not tested:
        why = "too few windows" if is_measured(rows) else "estimated only"
        counted = f"not tested: {why}"
    else:
        counted = f"{len(known)} of {len(rows)} layers"
        if noise is not None:
            counted += f"; {noise:.0%} of their variance over windows is run-to-run noise"
    column = "delta_nll" if is_measured(rows) else "gradient_nll"
    largest = [row for row in known if row["delta_nll"] > 0][:NAMED] if known else rows[:NAMED]
    more = [f"and {len(lower) - NAMED} more"] if len(lower) > NAMED else []
    falls = [f"{labels.place(row)} {interval(row)}" for row in lower[:NAMED]] + more
    return texts(
        counted,
        "\n".join(f"{labels.place(row)} {interval(row, column)}" for row in largest),
        "\n".join(falls) if lower or not tested else "none significant",
    )


def activations(found: Findings) -> Section:
    """What enters each projection."""
    columns = [
        naming("projection"), Column("max", "max"), Column("P99.9", "P99.9"),
        Column("max / P99.9", "max / P99.9"),
        Column("largest ratio of a block", "largest of a block"), Column("blocks"),
    ]  # fmt: skip
    rows = [
        [
            Cell(row["projection"]),
            *(plain(row[n]) for n in ("max", "p999", "ratio", "ratio_max")),
            Cell(str(row["blocks"]), value=row["blocks"]),
        ]
        for row in found.projection_activations
    ]
    note = "Means over blocks; the ratio is the mean of the blocks' ratios."
    title = "|x| entering each projection, means over blocks"
    return Section(title, columns, rows, note=note, id="activation-table")


def evidence(hypothesis: Hypothesis) -> Section:
    """The numbers behind a verdict."""
    columns = [
        Column(c.heading, c.heading, name=c.form in (Form.TEXT, Form.FAMILY))
        for c in hypothesis.columns
    ]
    rows = [
        [_evidence(column.name, column.form, row) for column in hypothesis.columns]
        for row in hypothesis.evidence
    ]
    return Section("The statistics", columns, rows, note=hypothesis.explanation)


def _evidence(column: str, form: Form, row: _Row) -> Cell:
    """A value with its interval, if it has one."""
    if form is Form.FAMILY:
        return Cell(labels.family(row))
    value, show = row[column], _WRITTEN[form]
    if value is None:
        return Cell()
    ends = [row.get(f"{column}_{end}") for end in ("low", "high")]
    bracket = "" if None in ends else f"[{', '.join(map(show, ends))}]"
    is_text = isinstance(value, str)
    return Cell(
        labels.level(value) if is_text else show(value), bracket, None if is_text else value
    )


_WRITTEN: dict[Form, Callable[[Any], str]] = {
    Form.TEXT: str,
    Form.CORRELATION: lambda rho: number(rho, digits=2),
    Form.SHARE: percent,
    Form.MILLI: lambda nats: number(1e3 * nats, sign=True),
    Form.PROBABILITY: lambda p: "<0.001" if p < 1e-3 else f"{p:.3f}",
}
