"""Which targets the damage is in, by position, class, frequency and confidence: table and words."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fp4scope.ledger import CLASS, POSITION, Results
from fp4scope.report import labels
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import measured, number, percent, plain, share
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.stats import Whole
from fp4scope.table import Interval
from fp4scope.treatments import operands_of

_SHOWN = 2
"""Models in the table and in words."""


def tokens(found: Findings) -> Iterator[Section]:
    """Strata by rows, models side by side; nothing where sums over strata were not kept."""
    models = shown_models(found)[:_SHOWN]
    if not models:
        return
    columns = [
        naming("by"), naming("targets"), Column("% of targets"), Column("NLL in full precision"),
    ]  # fmt: skip
    for model in models:
        columns += [
            Column(label, group=model.title)
            for label in ("millinats per token", "KL, millinats per token", "% of the KL")
        ]
    of = [found.tokens.where(name=model.name, precision=model.precision) for model in models]
    known = [{(row["by"], row["stratum"]): row for row in table} for table in of]
    rows = [
        [
            Cell(row["by"], value=place),
            Cell(row["stratum"], value=place),
            share(row["share"]),
            plain(row["nll"]),
            *(cell for own in known for cell in _costs(own.get((row["by"], row["stratum"])))),
        ]
        for place, row in enumerate(of[0])
    ]
    full = labels.full_precision(found.results)
    yield Section(
        "Where the damage is: positions and tokens",
        columns,
        rows,
        note="Position: how many tokens of the window are in front of the target. Frequency: "
        "quarters of the targets by how often their token comes in this text. Confidence: what the "
        f"{full} model gives its most likely token. With 95% intervals over windows. {labels.SIGN} "
        "All models are in tokens.csv.",
        id="tokens",
    )


def shown_models(found: Findings) -> list[Whole]:
    """Recipes, and the formats that the study asks for, by cost, where sums over strata are known.

    Of a format in several precisions, the one that quantizes most.
    """
    known = {(row["name"], row["precision"]) for row in found.tokens}
    return widest(found.wholes, found.results, known)


def widest(
    wholes: Sequence[Whole], results: Results, known: Collection[tuple[str, str]]
) -> list[Whole]:
    """Those of some whole models that are shown.

    Args:
        wholes: Models.
        results: Where they are from.
        known: Names and precisions of those that there is something to show of.
    """
    asked = results.study.get("question", {}).get("formats", ())
    most: dict[str, Whole] = {}
    for whole in wholes:
        if not whole.given and whole.name in asked:
            other = most.setdefault(whole.name, whole)
            if len(operands_of(whole.precision)) > len(operands_of(other.precision)):
                most[whole.name] = whole
    return [
        whole
        for whole in wholes
        if (whole.name, whole.precision) in known and (whole.given or whole is most.get(whole.name))
    ]


@dataclass(frozen=True)
class Line:
    """KL of a model along the window: at each stratum of positions, millinats per token.

    Attributes:
        model: It.
        strata: Names of the positions.
        spans: KL there.
    """

    model: Whole
    strata: Sequence[str]
    spans: Sequence[Interval]


def along_window(found: Findings) -> list[Line]:
    """Lines of the models that are shown; nothing where sums over strata were not kept."""
    lines: list[Line] = []
    for model in shown_models(found):
        rows = found.tokens.where(name=model.name, precision=model.precision, by=POSITION)
        spans = [Interval.of(row, "kl").times(1e3) for row in rows]
        lines.append(Line(model, rows["stratum"], spans))
    return lines


def unsigned(span: Interval) -> Cell:
    """A number that has no sign, with its interval."""
    low, high = (number(end) for end in span[1:])
    return Cell(number(span.value), f"[{low}, {high}]" if low and high else "")


def token_lines(found: Findings) -> list[str]:
    """Whether damage grows along the window, and which class of tokens has more than its share."""
    models = [model for model in shown_models(found) if not model.given]
    named = [(f"{m.name} ({m.precision})", m) for m in models[:_SHOWN]]
    return [
        line
        for name, model in named
        for line in (*_along(found, name, model), *_over_its_share(found, name, model))
    ]


def _along(found: Findings, name: str, model: Whole) -> Iterator[str]:
    same = {"name": model.name, "precision": model.precision, "measure": "kl"}
    for row in found.positions.where(**same):
        slope = Interval.of(row, "relative").times(100.0)
        if slope.value is None or slope.low is None:
            continue
        low, high = (number(end, sign=True, digits=1) for end in slope[1:])
        span = f"{number(slope.value, sign=True, digits=1)}% [{low}, {high}]"
        if slope.holds_zero:
            change = "does not change significantly along the window"
        else:
            change = f"{'grows' if slope.value > 0 else 'falls'} along the window"
        yield f"Under {name} KL {change}: {span} with each doubling of the position."


def _over_its_share(found: Findings, name: str, model: Whole) -> Iterator[str]:
    rows = found.tokens.where(name=model.name, precision=model.precision, by=CLASS)
    over = [row for row in rows if (row["kl_share_low"] or 0.0) > row["share"]]
    if over:
        row = max(over, key=_concentration)
        low, high = (number(100 * row[f"kl_share_{end}"], digits=1) for end in ("low", "high"))
        yield (
            f"Under {name} targets of the class “{row['stratum']}” are {percent(row['share'])} of "
            f"all, and have {percent(row['kl_share'])} [{low}, {high}] of the KL."
        )


def _concentration(row: Mapping[str, Any]) -> float:
    return row["kl_share"] / row["share"]


def _costs(row: Mapping[str, Any] | None) -> Sequence[Cell]:
    if row is None:
        return [Cell()] * 3
    part = Interval.of(row, "kl_share").times(100.0)
    low, high = (number(end, digits=1) for end in part[1:])
    ends = f"[{low}, {high}]" if low and high else ""
    return [
        measured(row),
        replace(unsigned(Interval.of(row, "kl").times(1e3)), value=row["kl"]),
        Cell(percent(row["kl_share"]), ends, row["kl_share"]),
    ]
