"""Groups of tokens of two outputs side by side: what KL is in each, and where it changed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from fp4scope.report.joint import JointFindings
from fp4scope.report.numbers import measured, number
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.report.tokens import widest
from fp4scope.stats import SLOPE, wholes

_SHOWN = 2
"""Models."""
_ROWS = 10
"""Where only what changed is shown."""
_NOTE = (
    "KL in millinats per token; the row of each doubling has its slope over positions. {pairing} "
    "P is Holm's over all groups of all models. Groups by frequency and confidence are each "
    "output's own."
)

_NOTHING = (Cell(), Cell())
_Row = Mapping[str, Any]


def token_changes(comparison: JointFindings, old: str, new: str) -> Iterator[Section]:
    """Every group of tokens that both have, a block for each kind, models side by side."""
    models = _models(comparison, old, new)
    if not models:
        return
    columns = [naming("by"), naming("targets")]
    for label, _ in models:
        columns += [Column(head, group=label) for head in (f"KL, {old} → {new}", "change")]
    of = [{(row["by"], row["stratum"]): _marked(row) for row in rows} for _, rows in models]
    places = dict.fromkeys(place for rows in of for place in rows)
    order = list(dict.fromkeys(by for by, _ in places))
    body = [
        [*map(Cell, place), *(cell for rows in of for cell in rows.get(place, _NOTHING))]
        for place in sorted(places, key=lambda place: order.index(place[0]))
    ]
    yield Section(
        f"KL by position and token, from {old} to {new}",
        columns,
        body,
        note=_NOTE.format(pairing=_pairing(models[0][1])) + " With *: beyond noise.",
    )


def largest_token_changes(comparison: JointFindings, old: str, new: str) -> Iterator[Section]:
    """Groups of tokens whose KL changed beyond noise, the most of all first."""
    models = _models(comparison, old, new)
    every = [(label, row) for label, rows in models for row in rows]
    found = [each for each in every if each[1]["beyond_noise"]]
    if not found:
        return
    found.sort(key=lambda each: -abs(each[1]["change"]))
    chosen = sorted(found[:_ROWS], key=every.index)
    body = [
        [Cell(label), Cell(_place(row)), *_cells(row), Cell(number(row["p_holm"]))]
        for label, row in chosen
    ]
    columns = [
        naming("model"),
        naming("targets"),
        *(Column(label, label) for label in (f"KL, {old} → {new}", "change", "p (Holm)")),
    ]
    of = f"{len(body)} of {len(found)}" if len(found) > len(body) else f"{len(found)}"
    title = f"Tokens whose KL changed beyond noise from {old} to {new}: {of}"
    note = _NOTE.format(pairing=_pairing(models[0][1]))
    yield Section(title, columns, body, note=note)


def token_change_lines(comparison: JointFindings) -> Iterator[str]:
    """In how many groups of tokens KL changed, and where most."""
    for old, new in comparison.compared:
        for label, rows in _models(comparison, old, new):
            groups = [row for row in rows if row["stratum"] != SLOPE]
            known = [row for row in groups if row["beyond_noise"] is not None]
            beyond = [row for row in known if row["beyond_noise"]]
            said = f"From {old} to {new}, KL of {label} changed beyond noise in {len(beyond)} of "
            said += f"{len(known)} groups of tokens"
            if beyond:
                most = max(beyond, key=lambda row: abs(row["change"]))
                said += f", most at {_place(most)}: {measured(most, 'change')} millinats"
            if known:
                yield f"{said}."


def _models(
    comparison: JointFindings, old: str, new: str
) -> Sequence[tuple[str, Sequence[dict[str, Any]]]]:
    """Those that are shown, by what they are called, with their rows of KL."""
    found = comparison.strata.where(output_before=old, output=new, measure="kl")
    by_model = {
        key: list(rows)
        for key, rows in groupby(found, key=lambda row: (row["name"], row["precision"]))
    }
    shown = widest(wholes(comparison.runs[new]), comparison.runs[new], by_model)
    return [(_label(rows[0]), rows) for rows in (by_model[w.name, w.precision] for w in shown)][
        :_SHOWN
    ]


def _label(row: _Row) -> str:
    names = dict.fromkeys((row["name_before"], row["name"]))
    return f"{' → '.join(names)} {row['precision']}".rstrip()


def _place(row: _Row) -> str:
    where = row["stratum"]
    return f"{row['by']}, {where}" if where == SLOPE else f"{row['by']} {where}"


def _marked(row: _Row) -> Sequence[Cell]:
    kl, change = _cells(row)
    return [kl, replace(change, text=f"{change.text}*") if row["beyond_noise"] else change]


def _cells(row: _Row) -> Sequence[Cell]:
    before, after = (number(1e3 * row[side]) for side in ("before", "after"))
    muted = not row["beyond_noise"]
    return [Cell(f"{before} → {after}"), measured(row, "change", muted=muted)]


def _pairing(rows: Sequence[_Row]) -> str:
    if rows[0]["paired"]:
        return "Changes are paired window by window."
    return "Changes are not paired (Welch), since the windows hold other tokens."
