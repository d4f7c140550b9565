"""What a study found, in sentences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp4scope.ledger import Results
from fp4scope.report import labels
from fp4scope.report.findings import Findings
from fp4scope.report.labels import KEEP, direction
from fp4scope.report.numbers import interval, number, percent, relative
from fp4scope.report.resolution import available, resolution, short_of
from fp4scope.report.selection import groups, is_measured, lowering, sole_precision, swept
from fp4scope.report.tokens import token_lines
from fp4scope.stats import MIN_WINDOWS, neighbour_correlation, significant, undecided
from fp4scope.table import Interval, Table
from fp4scope.treatments import operands_of

_PART = 2 * MIN_WINDOWS
"""Windows of a part of `recommend`: with the fewest, intervals are too wide for most bars."""
_WIDENED = 1.1
"""From here on a reader is told by how much intervals are wider because neighbours are alike."""


def headlines(found: Findings, *, short: bool = False) -> list[str]:
    """What the study found, one sentence each; `short`: all layers in one.

    The precision is named where units were measured in several.
    """
    layers = [
        f"{_way(group).capitalize()}, {_under(group)}: {_layers_found(rows)}."
        for group, rows in _tested(found.layers)
    ]
    lines = [
        *_format_lines(found),
        *_operand_lines(found),
        *_rule_lines(found),
        *projection_lines(found),
        *(_significant_layers(found) if short else layers),
        *token_lines(found),
    ]
    only = sole_precision(found)
    return [line.replace(f" ({only})", "") for line in lines] if only else lines


def _under(row: Mapping[str, Any]) -> str:
    return f"{row['format']} ({row['precision']})"


def _way(row: Mapping[str, Any]) -> str:
    return row["direction"]


def _format_lines(found: Findings) -> list[str]:
    """What each format costs; those of which only that was measured stand in their table."""
    reference, *_ = found.all_quantized
    return [
        f"{_under(row)} costs {relative(row).text} of perplexity, {interval(row)} millinats per "
        f"token{_undecided(row)}: perplexity {number(reference['ppl'])} becomes "
        f"{number(row['ppl'])}, and {percent(1 - row['top1'])} of the most likely next tokens "
        "change."
        for row in swept(found)
    ]


def _operand_lines(found: Findings) -> list[str]:
    """What activations add to the cost of each swept format, where weights alone were measured."""
    costs = {(row["format"], row["precision"]): row for row in found.all_quantized}
    chosen = {(row["format"], row["precision"]) for row in swept(found)}
    return [
        f"Under {row['format']}, weights alone cost "
        f"{interval(costs[row['format'], row['against']])} millinats; quantizing activations too "
        f"adds {interval(row)}{_undecided(row)}."
        for row in found.operands
        if operands_of(row["against"]) == "W" and (row["format"], row["precision"]) in chosen
    ]


def _rule_lines(found: Findings) -> list[str]:
    """Where another scale rule of a swept format is cheaper."""
    chosen = {(row["format"], row["precision"]) for row in swept(found)}
    return [
        f"{row['against']}, another scale rule, is cheaper than {_under(row)} by "
        f"{interval(row)} millinats."
        for row in found.formats
        if row["rules"]
        and (row["format"], row["precision"]) in chosen
        and (row["delta_nll_low"] or 0) > 0
    ]


def projection_lines(found: Findings) -> list[str]:
    """Which projection saves most when it is kept under each format, if that can be told."""
    said = []
    for group, rows in groups(found.projections):
        if direction(group["direction"]) is not KEEP or not is_measured(rows):
            continue
        start = f"Under {_under(group)}, "
        known = [row for row in rows if significant(row)]
        if not known or known[0]["delta_nll"] <= 0:
            said.append(f"{start}no projection can be singled out{short_of(found.results, rows)}.")
        else:
            said.append(start + _singled_out(known, rows))
    return said


def _singled_out(known: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """The most and the least costly of those that are significant."""
    first, *rest = known
    line = f"keeping {first['projection']} in full precision saves most, {interval(first)}"
    alike = [row for row in rest if set(row["tier"] or "") & set(first["tier"] or "")]
    if alike:
        line += f" (not significantly more than {', '.join(row['projection'] for row in alike)})"
    if rest:
        last = rest[-1]
        line += f"; {last['projection']} saves least of the {len(known)} significant ones, "
        line += interval(last)
    others = [row["projection"] for row in rows if not significant(row)]
    return f"{line}; not significant: {', '.join(others)}." if others else f"{line}."


def _significant_layers(found: Findings) -> list[str]:
    """How many layers are significant, of all formats and directions, in one sentence."""
    tested = _tested(found.layers)
    if not tested:
        return []
    counts = [
        f"{sum(map(significant, rows))} of {len(rows)} ({_way(group)}, {_under(group)})"
        for group, rows in tested
    ]
    every = [row for _, rows in tested for row in rows]
    more = "" if any(map(significant, every)) else short_of(found.results, every)
    return [f"Significant layers: {', '.join(counts)}{more}."]


def _tested(table: Table) -> list[tuple[dict[str, str], list[dict[str, Any]]]]:
    return [(group, rows) for group, rows in groups(table) if rows[0]["p_holm"] is not None]


def next_step(found: Findings, folder: Path) -> list[str]:
    """The command that most helps from here, as its words; `folder` is the study's."""
    again = ["fp4scope", "run", "--config", str(folder / "study.yaml")]
    families = [rows for _, rows in groups(found.projections) if is_measured(rows)]
    if families and not any(significant(row) for rows in families for row in rows):
        known = [resolution(found.results, rows) for rows in families]
        needed = max((r.needed for r in known if r is not None), default=MIN_WINDOWS)
        measured = max(row["windows"] for rows in families for row in rows)
        there = max((r.available for r in known if r is not None), default=needed)
        if min(needed, there) > measured:
            windows = str(min(needed, there))
            return [*again, "--windows", windows, "-o", f"{folder}-{windows}-windows"]
    accept = [word for bar in _bars(found) for word in ("--accept", bar)]
    if found.front:
        return ["fp4scope", "recipe", str(folder), *accept]
    study = ["--config", str(folder / "study.yaml")]
    said = found.results.study.get("data")
    asked = said.get("windows") if isinstance(said, dict) else None
    # Each of its three parts takes intervals, and narrow ones where the text has the windows.
    wanted = max(min(available(found.results), 3 * _PART), 3 * MIN_WINDOWS)
    if isinstance(asked, int) and asked < wanted:
        study += ["--windows", str(wanted)]
    return ["fp4scope", "recommend", *study, *accept, "-o", f"{folder}-recipe"]


def then_step(words: Sequence[str]) -> list[str]:
    """What makes a checkpoint of the recipe that the next command writes; nothing of another."""
    if words[1] not in ("recipe", "recommend"):
        return []
    folder = words[-1] if words[1] == "recommend" else words[2]
    written, made = str(Path(folder) / "recipe.yaml"), f"{folder}-checkpoint"
    return ["fp4scope", "export", written, "--to", "compressed-tensors", "--checkpoint", made]


def _bars(found: Findings) -> Sequence[str]:
    """Those of the study, as they were written; without any a usual one."""
    return found.results.protocol.get("accept") or ("ppl<2%",)


def sums(found: Findings) -> list[str]:
    """What projections add up to, beside what quantizing all of them costs."""
    whole = {(row["format"], row["precision"]): row["delta_nll"] for row in found.all_quantized}
    parts: dict[str, list[str]] = {}
    for group, rows in groups(found.projections):
        of_all = whole.get((group["format"], group["precision"]))
        if of_all is not None and is_measured(rows) and len(rows) > 1:
            name = f"{_under(group)}, where all together cost {number(1e3 * of_all)} millinats"
            kept = direction(group["direction"]) is KEEP
            verb = "keeping each saves" if kept else "quantizing only each costs"
            total = sum(row["delta_nll"] or 0.0 for row in rows)
            parts.setdefault(name, []).append(f"{verb} {number(1e3 * total)} in sum")
    said = [f"under {name}, {' and '.join(verbs)}" for name, verbs in parts.items()]
    return [f"Projections need not add up: {'; '.join(said)}."] if said else []


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
        f"{line}; in costs of whole models and projections {number(found.large, digits=2)}. "
        f"Intervals allow for it (Newey-West), which makes those {found.widened:.2f} times as wide "
        "(medians)."
    )


def agreements(found: Findings) -> list[str]:
    """How well the gradient ranks the units of each family that was also measured."""
    said = []
    for row in found.agreement:
        span, low, high = (number(end, digits=2) for end in Interval.of(row, "rho"))
        span += f" ({low} to {high})" if low else f" (no interval: {row['windows']} windows)"
        line = (
            f"{_way(row).capitalize()}, {_under(row)}: the gradient's ranking of {row['units']} "
            f"{labels.level(row['level'])} against the exact sweep's: rho {span}"
        )
        if row["rho_apart"] is not None:
            most = [number(row[name], digits=2) for name in ("ceiling", "ceiling_apart")]
            line += (
                f", on different windows {number(row['rho_apart'], digits=2)}; knowing every true "
                f"cost would give about {most[0]} and {most[1]}"
            )
        if row["top"] is not None:
            line += f"; of the {row['top']} most costly, {row['top_shared']} are the same"
        said.append(f"{line}.")
    return said


def _layers_found(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many layers are significant, of how many, and which way."""
    known = [row for row in rows if significant(row)]
    negative = len(lowering(known))
    wrong = f", {negative} of them negative" if negative else ""
    return f"{len(known)} of {len(rows)} layers are significant{wrong}"


def _undecided(row: Mapping[str, Any]) -> str:
    return " (not significant)" if undecided(row) else ""
