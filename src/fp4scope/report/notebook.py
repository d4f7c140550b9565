"""What a notebook shows of a `Diagnosis`: the findings, and two of its tables."""

from html import escape

from fp4scope.names import visible
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import interval, number, percent
from fp4scope.report.selection import by_cost
from fp4scope.report.sentences import headlines
from fp4scope.table import Table


def summary(diagnosis: Findings) -> str:
    """An HTML fragment: one sentence for each finding, the formats, the components."""
    name = escape(visible(str(diagnosis.results.model.get("name"))))
    lines = "".join(f"<li>{escape(visible(line))}</li>" for line in headlines(diagnosis))
    tables = [("What each format costs", _formats(diagnosis)), ("Components", _units(diagnosis))]
    shown = "".join(f"<h4>{title}</h4>{table._repr_html_()}" for title, table in tables if table)
    return (
        f"<h3>FP4 sensitivity of {name}</h3><ul>{lines}</ul>{shown}"
        "<p>Differences in millinats per token, more quantized minus less quantized, with 95% "
        "intervals over windows.</p>"
    )


def _formats(diagnosis: Findings) -> Table:
    rows = [
        {
            "format": row["format"],
            "operands": row["operands"],
            "PPL": number(row["ppl"]),
            "cost": interval(row),
            "KL": number(row["kl"]),
            "top-1": percent(row["top1"]),
            "windows": row["windows"],
        }
        for row in by_cost(diagnosis.baselines)
    ]
    return Table(("format", "operands", "PPL", "cost", "KL", "top-1", "windows"), rows)


def _units(diagnosis: Findings) -> Table:
    rows = [
        {name: row[name] for name in ("format", "direction", "operands", "component", "tier")}
        | {
            "PPL": number(row["ppl"]),
            "difference": interval(row),
            "estimate": interval(row, "gradient_nll"),
            "windows": row["windows"],
        }
        for row in diagnosis.components
    ]
    names = ["format", "direction", "operands", "component", "PPL", "difference", "tier"]
    if any(row["estimate"] for row in rows):
        names.append("estimate")
    return Table([*names, "windows"], rows)
