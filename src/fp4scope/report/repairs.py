"""What to keep in full precision, at what cost: savings per byte of units that engines have."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fp4scope.report import labels
from fp4scope.report.columns import is_muted
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import interval, measured, number, plain, relative
from fp4scope.report.resolution import short_of
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.report.selection import is_measured, swept
from fp4scope.report.sentences import projection_lines
from fp4scope.stats import Estimate, Whole, saves, sizes_known

SETTINGS = 2
"""Settings whose repairs an answer names, the cheapest ones."""
LISTED = 10
"""Units that a table shows."""
_BASIS = {
    "keep": "What keeping a unit saves. That of several linears or blocks is the sum of theirs, "
    "one at a time.",
    "only": "What quantizing only a unit costs. That of several linears or blocks is the sum of "
    "theirs, one at a time.",
    "designed": "What a unit costs on average over what else is quantized.",
}
_POOR = 1 / 3
"""A unit that saves less for each byte than so much of the best one is no bargain."""
_NO_SIZES = "These results, of fp4scope 0.1, lack sizes. Measure again to see what it stores."
_Row = Mapping[str, Any]


def repairs(found: Findings) -> list[str]:
    """The cheapest repair of each setting whose units were measured, and what is none."""
    if not sizes_known(found.results):
        unknown = (
            "Sizes are not in these results, which fp4scope 0.1 wrote: measure again for them."
        )
        return [*projection_lines(found), unknown] if is_measured(found.projections.rows) else []
    by_setting: dict[tuple[str, str], list[_Row]] = {}
    for row in found.savings:
        by_setting.setdefault((row["format"], row["precision"]), []).append(row)
    order = [(whole.name, whole.precision) for whole in found.wholes]
    known = [name for name in order if name in by_setting]
    known += [name for name in by_setting if name not in order]
    said = [
        f"{' '.join(name)}: {line}"
        for name in known[:SETTINGS]
        for line in _repairs(found, by_setting[name])
    ]
    return [*said, *_measured_recipes(found)]


def _measured_recipes(found: Findings) -> Iterator[str]:
    """Of the recipes that were measured, the one that lowers KL most for each byte.

    They are held against the first format whose units were measured. Intervals of both apart:
    that is stricter than a test of the difference.
    """
    names = {(row["format"], row["precision"]) for row in swept(found)[:1]}
    for plain_one in [whole for whole in found.wholes if (whole.name, whole.precision) in names]:
        before = plain_one.costs["kl"]
        better = {
            (before.mean - whole.costs["kl"].mean) / more: (whole, more)
            for whole in found.wholes
            if whole.given
            and (more := _more_bytes(whole, plain_one)) > 0
            and _below(whole.costs["kl"], before)
        }
        if better:
            best, more = better[max(better)]
            yield (
                f"Of the recipes that were measured, {best.title} saves most for each byte: KL "
                f"{number(before.mean)} becomes {number(best.costs['kl'].mean)}, and "
                f"{relative(plain_one.row).text} of perplexity {relative(best.row).text}, for "
                f"{number(more / 1e6)} MB more."
            )


def _more_bytes(one: Whole, other: Whole) -> float:
    if one.size is None or other.size is None:
        return 0.0
    return one.size.linear_bytes - other.size.linear_bytes


def _below(one: Estimate, other: Estimate) -> bool:
    return one.high is not None and other.low is not None and one.high < other.low


def _repairs(found: Findings, rows: Sequence[_Row]) -> Iterator[str]:
    good = [row for row in rows if saves(row) and not _moves_away(row)]
    measure, per_mb = "nll", "nll_per_mb"
    if not good:
        good = [row for row in rows if saves(row, "kl")]
        measure, per_mb = "kl", "kl_per_mb"
    priced = [row for row in good if row[per_mb] is not None]
    if not priced:
        yield f"no unit can be singled out{short_of(found.results, rows)}."
        return
    best = max(priced, key=lambda row: row[per_mb])
    yield f"keep {_unit(best)}: {_saved(best, measure)} for {_stored(best, measure)}."
    largest = max(priced, key=lambda row: row[f"delta_{measure}"])
    if largest[per_mb] < _POOR * best[per_mb]:
        yield (
            f"not {_unit(largest)}: {_saved(largest, measure)}, but takes "
            f"{_stored(largest, measure)}."
        )


def _moves_away(row: _Row) -> bool:
    """Whether keeping a unit moves the model away from the full-precision one."""
    return row["delta_kl_high"] is not None and row["delta_kl_high"] < 0


def _unit(row: _Row) -> str:
    where = "of all blocks" if row["block"] is None else f"of block {row['block']}"
    return f"{row['unit']} {where}"


def _saved(row: _Row, measure: str) -> str:
    saved = f"saves {interval(row, f'delta_{measure}')} millinats"
    return f"{saved} of KL" if measure == "kl" else saved


def _stored(row: _Row, measure: str) -> str:
    said = f"{number(row['bytes_kept'] / 1e6)} MB more"
    details = [f"{number(1e3 * row[f'{measure}_per_mb'])} for each"]
    if row["bits_kept"] is not None:
        details.append(f"{number(row['bits_kept'], digits=2)} bits of the model")
    return f"{said} ({', '.join(details)})"


def benefit(found: Findings) -> Iterator[Section]:
    """Units of each format by what they save for each byte, the best of them."""
    by_family: dict[tuple[str, ...], list[_Row]] = {}
    for row in found.savings:
        by_family.setdefault((row["direction"], row["format"], row["precision"]), []).append(row)
    columns = [
        naming("unit that engines have as one"), naming("block"),
        Column("millinats for each MB", "mnat/MB"), Column(labels.EFFECT, "millinats"),
        Column("KL, millinats per token", "KL"), Column("MB more", "MB more"),
        Column("bits of the model", "bits"),
    ]  # fmt: skip
    for (way, fmt, precision), rows in by_family.items():
        shown = [_benefit(row) for row in rows[:LISTED]]
        few = f": the {LISTED} best of {len(rows)}" if len(rows) > LISTED else ""
        yield Section(
            f"{fmt}, {precision}, {way}{few}",
            columns,
            shown,
            intro=_BASIS[way],
            note=_order(found, rows),
        )


def _benefit(row: _Row) -> list[Cell]:
    return [
        Cell(row["unit"]),
        Cell("all" if row["block"] is None else str(row["block"]), value=row["block"]),
        plain(None if row["nll_per_mb"] is None else 1e3 * row["nll_per_mb"]),
        measured(row, muted=is_muted(row)),
        measured(row, "delta_kl", muted=is_muted(row, "p_holm_kl")),
        plain(row["bytes_kept"] / 1e6),
        Cell(number(row["bits_kept"], digits=2), value=row["bits_kept"]),
    ]


def _order(found: Findings, rows: Sequence[_Row]) -> str:
    """What this run could tell apart."""
    if any(saves(row) for row in rows):
        count = sum(saves(row) for row in rows)
        return f"{count} of {len(rows)} units save significantly (Holm over all of them)."
    return f"These windows do not order the units{short_of(found.results, rows)}."
