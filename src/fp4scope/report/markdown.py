"""`report.md`: the study in words and tables, from a template."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fp4scope.records import Table
from fp4scope.report.figures import figure_names
from fp4scope.report.stopping import intervals_used, stopping_lines, windows_measured
from fp4scope.stats import (
    MIN_WINDOWS,
    TOP_K,
    cost,
    neighbour_correlation,
    significant,
    undecided,
)

if TYPE_CHECKING:
    from fp4scope.report.diagnosis import Diagnosis

ESTIMATE = "estimate (first order)"
ESTIMATES_MEAN = (
    "Estimates are first order: one forward and one backward pass for each window and point, "
    "<gradient, move of the linear's output>, no curvature and no interplay of errors. Their "
    "intervals are over windows and do not contain how far an estimate is from what a run with "
    "--method exact would measure."
)


_Column = Callable[[Mapping[str, Any]], str]


def markdown(diagnosis: "Diagnosis") -> str:
    """The report of a study as Markdown, with links to the figures beside it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fp4scope.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    environment.filters |= {
        "interval": interval,
        "noise": noise,
        "number": number,
        "percent": percent,
    }
    environment.tests["significant"] = significant
    environment.tests["measured"] = is_measured
    environment.tests["estimated"] = is_estimated
    results = diagnosis.results
    return environment.get_template("report.md.j2").render(
        d=diagnosis,
        results=results,
        headlines=headlines(diagnosis),
        agreements=agreements(diagnosis),
        estimate=ESTIMATE,
        estimates_mean=ESTIMATES_MEAN if diagnosis.results.estimates.windows else "",
        model=results.model,
        data=results.data,
        protocol=results.protocol,
        environment=results.environment,
        study=results.study,
        baselines=diagnosis.baselines,
        component_groups=list(groups(diagnosis.components)),
        cell_groups=list(groups(diagnosis.cells)),
        block_groups=list(groups(diagnosis.blocks)),
        pattern_groups=list(groups(diagnosis.patterns)),
        figures=figure_names(diagnosis),
        neighbours=neighbour_correlation(results),
        stopping=stopping_lines(results),
        windows=windows_measured(results),
        intervals=intervals_used(results),
        unit_table=unit_table,
        min_windows=MIN_WINDOWS,
    )


def unit_table(level: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Units of a level in Markdown: what was measured of them, what was estimated, or both."""
    names = {"cells": ("block", "component"), "patterns": ("pattern",)}.get(level, (level[:-1],))
    columns: dict[str, _Column] = {name: partial(_name, name) for name in names}
    if is_measured(rows):
        columns |= _measured_columns(level)
    if is_estimated(rows):
        columns[f"{ESTIMATE} (millinats/token)"] = lambda row: interval(row, "gradient_nll")
    lines = [columns, ["---"] * len(columns)]
    lines += [[show(row) for show in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured_columns(level: str) -> dict[str, _Column]:
    ppl: dict[str, _Column] = {"PPL": lambda row: number(row["ppl"])}
    delta: dict[str, _Column] = {"difference (millinats/token)": interval}
    top: dict[str, _Column] = {
        f"among the {TOP_K[level]} most costly": lambda row: percent(row["p_top"])
    }
    if level == "cells":
        return ppl | delta | {"p (Holm)": lambda row: number(row["p_holm"])} | top
    if level != "components":
        return ppl | delta
    return {
        "tier": lambda row: row["tier"] or "",
        **ppl,
        "difference of PPL": lambda row: interval(row, "delta_ppl", 1.0),
        **delta,
        **top,
        "KL (nats/token)": lambda row: number(row["kl"]),
    }


def _name(name: str, row: Mapping[str, Any]) -> str:
    return f"`{row[name]}`" if name == "pattern" else str(row[name])


def headlines(diagnosis: "Diagnosis") -> list[str]:
    """What the study found, one sentence each."""
    reference, *rest = diagnosis.baselines
    found = [
        f"{row['format']} ({row['operands']}) costs {interval(row)} millinats per token"
        f"{_undecided(row)}: perplexity {number(reference['ppl'])} becomes {number(row['ppl'])}, "
        f"and {percent(1 - row['top1'])} of the most likely next tokens change."
        for row in rest
    ]
    for group, rows in groups(diagnosis.components):
        if group["direction"] == "restore" and is_measured(rows):
            first, last = rows[0], rows[-1]
            found.append(
                f"Under {group['format']} ({group['operands']}), keeping {first['component']} in "
                f"full precision saves most, {interval(first)}{_undecided(first)}; "
                f"{last['component']} saves least, {interval(last)}{_undecided(last)}."
            )
    found += [
        f"{group['direction'].capitalize()}, {group['format']} ({group['operands']}): "
        f"{cells_found(rows)}."
        for group, rows in groups(diagnosis.cells)
        if rows[0]["p_holm"] is not None
    ]
    return found


def agreements(diagnosis: "Diagnosis") -> list[str]:
    """How well the gradient ranks the units of each family that was also measured."""
    found = []
    for row in diagnosis.agreement:
        span = f"{row['rho']:.2f}"
        if row["rho_low"] is None:
            span += f" (no interval: {row['windows']} windows)"
        else:
            span += f" ({row['rho_low']:.2f} to {row['rho_high']:.2f})"
        line = (
            f"{row['direction'].capitalize()}, {row['format']} ({row['operands']}): the gradient's "
            f"ranking of {row['units']} {row['level']} against the exact sweep's: rho {span}"
        )
        if row["rho_apart"] is not None:
            line += f", on different windows {row['rho_apart']:.2f}"
        if row["top"] is not None:
            line += f"; of the {row['top']} most costly, {row['top_shared']} are the same"
        found.append(f"{line}.")
    return found


def is_measured(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these rows have what the exact sweep measures."""
    return any(row["delta_nll"] is not None for row in rows)


def is_estimated(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these rows have first-order estimates."""
    return any(row["gradient_nll"] is not None for row in rows)


def cells_found(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many cells are told from zero, of how many, and which way."""
    found = [row for row in rows if significant(row)]
    negative = sum(row["delta_nll"] < 0 for row in found)
    wrong = f", {negative} of them negative" if negative else ""
    return f"{len(found)} of {len(rows)} cells are told from zero (Holm, 5%){wrong}"


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
    return f"±{number(1e3 * row['jitter_nll'])}, KL {number(row['jitter_kl'])}"


def number(value: float | None, sign: bool = False) -> str:
    """Three or four significant digits, two below 0.1, and no digit of a large number lost."""
    if value is None:
        return ""
    size = abs(value)
    if size < 1e-5:
        return f"{value:{'+' if sign else ''}.0e}" if value else "0"
    if size < 0.1:
        return f"{value:{'+' if sign else ''}.2g}"
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{value:{'+' if sign else ''}.{digits}f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"
