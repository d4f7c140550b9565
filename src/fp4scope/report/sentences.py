"""What a study found, in sentences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp4scope.ledger import Results
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import interval, number, percent
from fp4scope.report.resolution import resolution
from fp4scope.report.selection import groups, is_measured, lowering, sole_operands, swept
from fp4scope.stats import MIN_WINDOWS, neighbour_correlation, significant, undecided
from fp4scope.table import Table

_WIDENED = 1.1
"""From here on a reader is told by how much intervals are wider because neighbours are alike."""
MEANING = {"restore": "saved by keeping it in full precision", "isolate": "lost by quantizing it"}
"""Of a difference, by direction."""
LOWER_LOSS = (
    "A lower loss on this text does not make a model closer to the one in full precision; how "
    "close it is, KL says."
)
ESTIMATE = "estimate (first order)"
ESTIMATES_MEAN = (
    "Estimates are first order: one forward and one backward pass for each window and point, "
    "<gradient, move of the linear's output>, no curvature and no interplay of errors. Their "
    "intervals are over windows and do not contain how far an estimate is from what a run with "
    "--method exact would measure."
)


def headlines(diagnosis: Findings, *, short: bool = False) -> list[str]:
    """What the study found, one sentence each; `short`: all cells in one.

    Operands are named where units were measured under several.
    """
    cells = [
        f"{group['direction'].capitalize()}, {group['format']} ({group['operands']}): "
        f"{cells_found(rows)}."
        for group, rows in _tested(diagnosis.cells)
    ]
    lines = [
        *_format_lines(diagnosis),
        *_operand_lines(diagnosis),
        *_rule_lines(diagnosis),
        *_component_lines(diagnosis),
        *(_cells_told(diagnosis) if short else cells),
    ]
    only = sole_operands(diagnosis)
    return [line.replace(f" ({only})", "") for line in lines] if only else lines


def _format_lines(diagnosis: Findings) -> list[str]:
    """What each format costs; those of which only that was measured stand in their table."""
    reference, *_ = diagnosis.baselines
    return [
        f"{row['format']} ({row['operands']}) costs {interval(row)} millinats per token"
        f"{_undecided(row)}: perplexity {number(reference['ppl'])} becomes {number(row['ppl'])}, "
        f"and {percent(1 - row['top1'])} of the most likely next tokens change."
        for row in swept(diagnosis)
    ]


def _operand_lines(diagnosis: Findings) -> list[str]:
    """What activations add to the cost of each swept format, where weights alone were measured."""
    costs = {(row["format"], row["operands"]): row for row in diagnosis.baselines}
    chosen = {(row["format"], row["operands"]) for row in swept(diagnosis)}
    return [
        f"Under {row['format']}, weights alone cost {interval(costs[row['format'], 'weights'])} "
        f"millinats; quantizing activations too adds {interval(row)}{_undecided(row)}."
        for row in diagnosis.operands
        if row["against"] == "weights" and (row["format"], row["operands"]) in chosen
    ]


def _rule_lines(diagnosis: Findings) -> list[str]:
    """Where another scale rule of a swept format is cheaper."""
    chosen = {(row["format"], row["operands"]) for row in swept(diagnosis)}
    return [
        f"{row['against']}, another scale rule, is cheaper than {row['format']} "
        f"({row['operands']}) by {interval(row)} millinats."
        for row in diagnosis.formats
        if row["rules"]
        and (row["format"], row["operands"]) in chosen
        and (row["delta_nll_low"] or 0) > 0
    ]


def _component_lines(diagnosis: Findings) -> list[str]:
    """What keeping a component saves most under each format, if that can be told."""
    found = []
    for group, rows in groups(diagnosis.components):
        if group["direction"] != "restore" or not is_measured(rows):
            continue
        under = f"Under {group['format']} ({group['operands']}), "
        told = [row for row in rows if significant(row)]
        if not told or told[0]["delta_nll"] <= 0:
            found.append(f"{under}no projection can be singled out{_short_of(diagnosis, rows)}.")
        else:
            found.append(under + _singled_out(told, rows))
    return found


def _singled_out(told: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """The most and the least costly of those that are told from zero."""
    first, *rest = told
    line = f"keeping {first['component']} in full precision saves most, {interval(first)}"
    alike = [row for row in rest if set(row["tier"] or "") & set(first["tier"] or "")]
    if alike:
        line += f" (not told apart from {', '.join(row['component'] for row in alike)})"
    if rest:
        last = rest[-1]
        line += f"; {last['component']} saves least of the {len(told)} told from zero, "
        line += interval(last)
    untold = [row["component"] for row in rows if not significant(row)]
    return f"{line}; not told from zero: {', '.join(untold)}." if untold else f"{line}."


def _short_of(diagnosis: Findings, rows: Sequence[Mapping[str, Any]]) -> str:
    """How little these units are known, and how many windows would do."""
    found = resolution(diagnosis.results, rows)
    if found is None:
        windows = rows[0]["windows"]
        return f": {windows} windows are too few for intervals ({MIN_WINDOWS} or more)"
    line = f": ±{number(found.half)} millinats on {found.windows} windows"
    if found.needed > found.windows:
        line += f"; about {found.needed:,} would give ±{found.target:g}"
    if found.needed > found.available:
        line += f" (this text has {found.available:,})"
    return line


def _cells_told(diagnosis: Findings) -> list[str]:
    """How many cells are told from zero, of all formats and directions, in one sentence."""
    tested = _tested(diagnosis.cells)
    if not tested:
        return []
    found = [
        f"{sum(map(significant, rows))} of {len(rows)} in {group['direction']} under "
        f"{group['format']} ({group['operands']})"
        for group, rows in tested
    ]
    every = [row for _, rows in tested for row in rows]
    more = "" if any(map(significant, every)) else _short_of(diagnosis, every)
    return [f"Cells told from zero (Holm, 5%): {', '.join(found)}{more}."]


def _tested(table: Table) -> list[tuple[dict[str, str], list[dict[str, Any]]]]:
    return [(group, rows) for group, rows in groups(table) if rows[0]["p_holm"] is not None]


def next_step(diagnosis: Findings, folder: Path) -> list[str]:
    """The command that most helps from here, as its words; `folder` is the study's."""
    again = ["fp4scope", "run", "--config", str(folder / "study.yaml")]
    families = [rows for _, rows in groups(diagnosis.components) if is_measured(rows)]
    if families and not any(significant(row) for rows in families for row in rows):
        found = [resolution(diagnosis.results, rows) for rows in families]
        needed = max((r.needed for r in found if r is not None), default=MIN_WINDOWS)
        measured = max(row["windows"] for rows in families for row in rows)
        available = max((r.available for r in found if r is not None), default=needed)
        if min(needed, available) > measured:
            windows = str(min(needed, available))
            return [*again, "--windows", windows, "-o", f"{folder}-{windows}-windows"]
    if not diagnosis.cells:
        return [*again, "--sweep", "components,cells", "-o", f"{folder}-cells"]
    return ["fp4scope", "report", str(folder), "--figures"]


def sums(diagnosis: Findings) -> list[str]:
    """What components add up to, beside what quantizing all of them costs."""
    whole = {(row["format"], row["operands"]): row["delta_nll"] for row in diagnosis.baselines}
    found: dict[str, list[str]] = {}
    for group, rows in groups(diagnosis.components):
        of_all = whole.get((group["format"], group["operands"]))
        if of_all is not None and is_measured(rows) and len(rows) > 1:
            name = f"{group['format']} ({group['operands']}), where all together cost "
            verb = "restored they save" if group["direction"] == "restore" else "alone they cost"
            total = sum(row["delta_nll"] or 0.0 for row in rows)
            sentence = f"{verb} {number(1e3 * total)} in sum"
            found.setdefault(f"{name}{number(1e3 * of_all)} millinats", []).append(sentence)
    said = [f"under {name}, {' and '.join(parts)}" for name, parts in found.items()]
    return [f"Components need not add up: {'; '.join(said)}."] if said else []


def neighbour_line(results: Results) -> str:
    """How alike windows are that stand next to each other in the text."""
    found = neighbour_correlation(results)
    if found is None:
        return ""
    line = f"Neighbouring windows correlate at {number(found.nll, digits=2)} in NLL"
    if found.difference is not None:
        line += f" and {number(found.difference, digits=2)} in paired differences (median)"
    line += f", over {found.pairs} pairs"
    if found.large is None or found.widened < _WIDENED:
        return f"{line}."
    return (
        f"{line}; in costs of whole models and components {number(found.large, digits=2)}. "
        f"Intervals allow for it (Newey-West), which makes those {found.widened:.2f} times as wide "
        "(medians)."
    )


def agreements(diagnosis: Findings) -> list[str]:
    """How well the gradient ranks the units of each family that was also measured."""
    found = []
    for row in diagnosis.agreement:
        span = number(row["rho"], digits=2)
        if row["rho_low"] is None:
            span += f" (no interval: {row['windows']} windows)"
        else:
            low, high = (number(row[f"rho_{end}"], digits=2) for end in ("low", "high"))
            span += f" ({low} to {high})"
        line = (
            f"{row['direction'].capitalize()}, {row['format']} ({row['operands']}): the gradient's "
            f"ranking of {row['units']} {row['level']} against the exact sweep's: rho {span}"
        )
        if row["rho_apart"] is not None:
            most = [number(row[name], digits=2) for name in ("ceiling", "ceiling_apart")]
            line += (
                f", on different windows {number(row['rho_apart'], digits=2)}; knowing every true "
                f"cost would give about {most[0]} and {most[1]}"
            )
        if row["top"] is not None:
            line += f"; of the {row['top']} most costly, {row['top_shared']} are the same"
        found.append(f"{line}.")
    return found


def cells_found(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many cells are told from zero, of how many, and which way."""
    found = [row for row in rows if significant(row)]
    negative = len(lowering(found))
    wrong = f", {negative} of them negative" if negative else ""
    return f"{len(found)} of {len(rows)} cells are told from zero (Holm, 5%){wrong}"


def _undecided(row: Mapping[str, Any]) -> str:
    return " (not told from zero)" if undecided(row) else ""
