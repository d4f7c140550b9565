"""What a study found, in words, and its numbers as a reader sees them."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fp4scope.records import Results, Table
from fp4scope.report.resolution import resolution
from fp4scope.stats import (
    MIN_WINDOWS,
    cost,
    neighbour_correlation,
    significant,
    undecided,
)

if TYPE_CHECKING:
    from fp4scope.report.diagnosis import Diagnosis

_WIDENED = 1.1
"""From here on a reader is told by how much intervals are wider because neighbours are alike."""
MINUS = "\u2212"
SMALLEST = 1e-5
"""What is closer to zero is shown as no more than that."""
CELLS_SHOWN = 10
"""Of a family, where all would be too many."""
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


def headlines(diagnosis: "Diagnosis", *, short: bool = False) -> list[str]:
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


def sole_operands(diagnosis: "Diagnosis") -> str | None:
    """The operands under which units were measured, if that is one choice."""
    found = {row["operands"] for row in _swept(diagnosis)}
    return found.pop() if len(found) == 1 else None


def _swept(diagnosis: "Diagnosis") -> list[dict[str, Any]]:
    """The baselines under which units were measured; all where none were."""
    tables = (diagnosis.components, diagnosis.blocks, diagnosis.cells, diagnosis.patterns)
    swept = {(row["format"], row["operands"]) for table in tables for row in table}
    _, *rest = diagnosis.baselines
    return [row for row in rest if (row["format"], row["operands"]) in swept] or rest


def _format_lines(diagnosis: "Diagnosis") -> list[str]:
    """What each format costs; those of which only that was measured stand in their table."""
    reference, *_ = diagnosis.baselines
    return [
        f"{row['format']} ({row['operands']}) costs {interval(row)} millinats per token"
        f"{_undecided(row)}: perplexity {number(reference['ppl'])} becomes {number(row['ppl'])}, "
        f"and {percent(1 - row['top1'])} of the most likely next tokens change."
        for row in _swept(diagnosis)
    ]


def _operand_lines(diagnosis: "Diagnosis") -> list[str]:
    """What activations add to the cost of each swept format, where weights alone were measured."""
    costs = {(row["format"], row["operands"]): row for row in diagnosis.baselines}
    swept = {(row["format"], row["operands"]) for row in _swept(diagnosis)}
    return [
        f"Under {row['format']}, weights alone cost {interval(costs[row['format'], 'weights'])} "
        f"millinats; quantizing activations too adds {interval(row)}{_undecided(row)}."
        for row in diagnosis.operands
        if row["against"] == "weights" and (row["format"], row["operands"]) in swept
    ]


def _rule_lines(diagnosis: "Diagnosis") -> list[str]:
    """Where another scale rule of a swept format is cheaper."""
    swept = {(row["format"], row["operands"]) for row in _swept(diagnosis)}
    return [
        f"{row['against']}, another scale rule, is cheaper than {row['format']} "
        f"({row['operands']}) by {interval(row)} millinats."
        for row in diagnosis.formats
        if row["rules"]
        and (row["format"], row["operands"]) in swept
        and (row["delta_nll_low"] or 0) > 0
    ]


def _component_lines(diagnosis: "Diagnosis") -> list[str]:
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


def _short_of(diagnosis: "Diagnosis", rows: Sequence[Mapping[str, Any]]) -> str:
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


def _cells_told(diagnosis: "Diagnosis") -> list[str]:
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


def next_step(diagnosis: "Diagnosis") -> list[str]:
    """The command that most helps from here, as its words; none without a folder."""
    folder = diagnosis.folder
    if folder is None:
        return []
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


def sums(diagnosis: "Diagnosis") -> list[str]:
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


def agreements(diagnosis: "Diagnosis") -> list[str]:
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


def costliest(table: Table, name: str) -> list[Any]:
    """The units of a table, those that cost most over all formats first; `name`: their column."""
    costs: dict[Any, list[float]] = {}
    for row in table:
        costs.setdefault(row[name], []).append(cost(row) or 0.0)
    return sorted(costs, key=lambda unit: -fmean(costs[unit]))


def by_cost(baselines: Table) -> Table:
    """Whole models, those of the same operands together, the cheapest first."""
    order = list(dict.fromkeys(baselines["operands"]))
    rows = sorted(
        baselines, key=lambda row: (order.index(row["operands"]), row["delta_nll"] or 0.0)
    )
    return Table(baselines.columns, rows)


def is_measured(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these rows have what the exact sweep measures."""
    return any(row["delta_nll"] is not None for row in rows)


def is_estimated(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these rows have first-order estimates."""
    return any(row["gradient_nll"] is not None for row in rows)


def cells_found(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many cells are told from zero, of how many, and which way."""
    found = [row for row in rows if significant(row)]
    negative = len(lowering(found))
    wrong = f", {negative} of them negative" if negative else ""
    return f"{len(found)} of {len(rows)} cells are told from zero (Holm, 5%){wrong}"


def lowering(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows whose quantization significantly lowers the loss, the lowest first."""
    found = [row for row in rows if significant(row) and row["delta_nll"] < 0]
    return sorted(found, key=lambda row: row["delta_nll"])


def _undecided(row: Mapping[str, Any]) -> str:
    return " (not told from zero)" if undecided(row) else ""


def groups(table: Table) -> Iterable[tuple[dict[str, str], list[dict[str, Any]]]]:
    """The rows of one format, operands and direction at a time, most costly first."""
    keys = dict.fromkeys((r["direction"], r["format"], r["operands"]) for r in table)
    for direction, fmt, operands in keys:
        chosen = table.where(direction=direction, format=fmt, operands=operands)
        rows = sorted(chosen, key=lambda r: -(cost(r) or 0.0))
        yield {"direction": direction, "format": fmt, "operands": operands}, rows


def interval(row: Mapping[str, Any], column: str = "delta_nll", scale: float = 1000.0) -> str:
    """`+1.23 [+0.45, +2.01]`; without an interval where there are too few windows for one."""
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if value is None:
        return ""
    if low is None or high is None:
        return f"{number(scale * value, sign=True)} (no interval)"
    return (
        f"{number(scale * value, sign=True)} "
        f"[{number(scale * low, sign=True)}, {number(scale * high, sign=True)}]"
    )


def noise(row: Mapping[str, Any]) -> str:
    """What rounding alone does to a mean NLL, in millinats, and between two runs, as KL."""
    if row["jitter_nll"] is None:
        return ""
    return f"{spread(1e3 * row['jitter_nll'])}, KL {number(row['jitter_kl'])}"


def spread(value: float | None) -> str:
    """`±1.23`, or `<0.00001`."""
    shown = number(value)
    return shown if shown.startswith("<") or not shown else f"±{shown}"


def number(value: float | None, sign: bool = False, digits: int | None = None) -> str:
    """A number as every part of a report shows it; the page's script has the same rules.

    Three or four significant digits, two below 0.1, and no digit of a large number lost. The minus
    is U+2212. What is below 0.00001 is called so, or 0 where a sign is wanted.

    Args:
        value: None is shown as nothing.
        sign: Whether positive numbers have a plus.
        digits: As many decimals instead.

    Example:
        >>> number(-4.256), number(0.0000123), number(1e-9), number(0.5, sign=True, digits=1)
        ('−4.26', '0.000012', '<0.00001', '+0.5')
    """  # noqa: RUF002
    if value is None:
        return ""
    text = _magnitude(value, sign) if digits is None else f"{abs(value):.{digits}f}"
    if not text.strip("0."):
        return text
    return f"{MINUS if value < 0 else '+' if sign else ''}{text}"


def _magnitude(value: float, sign: bool) -> str:
    exact = abs(value)
    size = float(f"{exact:.4g}")  # 99.996 is shown as 100.0
    if size < SMALLEST:
        return "0" if sign or not size else f"<{SMALLEST:f}".rstrip("0")
    if size < 0.1:
        return f"{Decimal(f'{exact:.2g}'):f}"
    return f"{exact:.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3}f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{number(100 * value, digits=1)}%"
