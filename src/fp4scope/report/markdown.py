"""`report.md`: the study in words and tables, from a template."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fp4scope.ledger import require_reported
from fp4scope.names import markdown as escaped
from fp4scope.report.figures import figure_names
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import interval, noise, number, percent
from fp4scope.report.selection import (
    CELLS_SHOWN,
    by_cost,
    groups,
    is_estimated,
    is_measured,
    lowering,
)
from fp4scope.report.sentences import (
    ESTIMATE,
    ESTIMATES_MEAN,
    LOWER_LOSS,
    agreements,
    headlines,
    neighbour_line,
)
from fp4scope.report.stopping import intervals_used, stopping_lines, windows_measured
from fp4scope.stats import MIN_WINDOWS, TOP_K, significant

_Column = Callable[[Mapping[str, Any]], str]


def markdown(diagnosis: Findings) -> str:
    """The report of a study as Markdown, with links to the figures beside it."""
    import jinja2

    require_reported(vars(diagnosis.results))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fp4scope.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        finalize=_shown,
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
        estimates_mean=ESTIMATES_MEAN if diagnosis.results.estimated else "",
        model=results.model,
        data=results.data,
        protocol=results.protocol,
        environment=results.environment,
        study=results.study,
        baselines=by_cost(diagnosis.baselines),
        component_groups=list(groups(diagnosis.components)),
        cell_groups=list(groups(diagnosis.cells)),
        block_groups=list(groups(diagnosis.blocks)),
        pattern_groups=list(groups(diagnosis.patterns)),
        figures=figure_names(diagnosis),
        neighbours=neighbour_line(results),
        stopping=stopping_lines(results),
        windows=windows_measured(results),
        intervals=intervals_used(results),
        unit_table=unit_table,
        cells_shown=CELLS_SHOWN,
        lowering=lowering,
        any_lowering=bool(lowering(diagnosis.cells)),
        lower_loss=LOWER_LOSS,
        min_windows=MIN_WINDOWS,
    )


class _Safe(str):
    """Markdown whose names are escaped already."""


def _shown(value: Any) -> Any:  # noqa: ANN401
    """What an expression of the template shows: names do not act as Markdown."""
    return escaped(value) if type(value) is str else value


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
    return _Safe("\n".join(f"| {' | '.join(line)} |" for line in lines))


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
    text = str(row[name])
    shown = escaped(text)
    if name != "pattern":
        return shown
    return f"`{text}`" if shown == text else shown.replace("*", "&#42;")
