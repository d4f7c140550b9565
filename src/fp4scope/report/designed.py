"""The tables of a report about a designed sweep."""

from collections.abc import Iterator
from typing import Any

from fp4scope.report import labels
from fp4scope.report.columns import is_muted
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import measured, number, plain
from fp4scope.report.section import Cell, Column, Section, naming, texts
from fp4scope.report.selection import LAYERS_SHOWN

TITLE = "What quantizing this costs, on average over what else is quantized"
_KL = "KL, millinats per token"


def about_designed(found: Findings) -> list[Section]:
    """All that a designed sweep says; nothing of a study without one."""
    return [*effects(found), *sums(found), *pairs(found)]


def effects(found: Findings) -> Iterator[Section]:
    """Groups by what they cost, formats side by side, the most costly."""
    formats = list(dict.fromkeys((row["format"], row["precision"]) for row in found.effects))
    by_group: dict[tuple[int | None, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in found.effects:
        at = by_group.setdefault((row["block"], row["projection"]), {})
        at[row["format"], row["precision"]] = row
    columns = [naming("block"), naming("group")]
    for name in formats:
        said = " ".join(name)
        columns += [Column(_KL, f"{said}, KL", said), Column(labels.EFFECT, None, said)]
    ordered = sorted(
        by_group.items(), key=lambda item: -max(row["delta_kl"] for row in item[1].values())
    )
    rows: list[list[Cell]] = []
    for (block, name), of in ordered[:LAYERS_SHOWN]:
        row = [Cell("" if block is None else str(block), value=block), Cell(name)]
        for one in formats:
            row.append(measured(of[one], "delta_kl", muted=is_muted(of[one], "p_holm_kl")))
            row.append(measured(of[one], muted=is_muted(of[one], "p_holm")))
        rows.append(row)
    if rows:
        few = f" The {len(rows)} most costly of {len(ordered)}." if len(rows) < len(ordered) else ""
        runs = found.effects[0]["runs"]
        yield Section(
            TITLE,
            columns,
            rows,
            intro=f"From {runs} runs that quantize about half of the model each: the mean of those "
            f"that quantize a group of linears less the mean of those that do not.{few} Groups are "
            "what engines hold as one.",
            note=f"With 95% intervals over windows. {labels.SIGN} Every group is in effects.csv.",
            id="effects-table",
        )


def sums(found: Findings) -> Iterator[Section]:
    """What effects sum to, beside what everything costs."""
    rows = [
        [*texts(row["format"], row["precision"], row["measure"].upper())]
        + [measured(row, name) for name in ("sum", "whole", "gap", "curvature")]
        + [Cell(number(1e3 * row["missed"]), value=row["missed"])]
        for row in found.effect_sums
    ]
    columns = [
        naming("format"), naming("precision"), naming("measure"),
        Column("sum of effects, millinats", "sum"), Column("all quantized, millinats", "all"),
        Column("difference", "difference"), Column("curvature", "curvature"),
        Column("missed in a mixture", "missed"),
    ]  # fmt: skip
    if rows:
        yield Section(
            "What the effects sum to",
            columns,
            rows,
            note="Curvature: how far what a half-quantized model costs lies below the sum of its "
            "effects. Missed: the standard deviation of what effects and curvature miss in one "
            "such model, which every prediction of a recipe allows for.",
            id="effect-sums",
        )


def pairs(found: Findings) -> Iterator[Section]:
    """Groups that interact, if any do significantly."""
    rows = [
        [
            Cell(labels.place({"block": row["first_block"], "unit": row["first"]})),
            Cell(labels.place({"block": row["second_block"], "unit": row["second"]})),
            measured(row, "delta_kl"),
            plain(row["p_holm_kl"]),
            Cell(str(row["alike"]), value=row["alike"]),
        ]
        for row in found.effect_pairs
    ]
    columns = [
        naming("group"), naming("with"), Column(_KL, "KL, millinats"), Column("p (Holm)", "p"),
        Column("pairs that look the same", "or others"),
    ]  # fmt: skip
    if rows:
        yield Section(
            "Groups that cost more, or less, together",
            columns,
            rows,
            note="Beyond the sum of both and the curvature. Several pairs may have the same runs "
            "in common: the one with the largest effects is named, and the others counted.",
            id="effect-pairs",
        )
