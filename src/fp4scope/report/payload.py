"""What the charts of `report.html` are drawn from: plain data, ready for JSON.

Every metric has a value with its interval, more quantized minus less quantized: positive means that
quantizing this costs. That is the difference of NLL (`nats`), of PPL in percent of the
baseline's (restore) or the reference's (isolate), and of KL. Only PPL is read as it is; its
interval is that of the paired difference, put around the value.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fp4scope.report.findings import Findings
from fp4scope.report.selection import is_measured
from fp4scope.stats import kind_of, only_estimated
from fp4scope.table import Table

METRICS = ("nats", "percent", "kl", "ppl")
COLUMNS = (
    "component", "block",
    *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")),
    "delta_ppl", "delta_ppl_low", "delta_ppl_high", "kl_nats", "top1", "p_holm", "p_holm_kl",
    "p_top", "windows", "gradient", "gradient_low", "gradient_high",
)  # fmt: skip
"""Those of a unit; differences of NLL and of KL and estimates are in millinats per token."""
DIGITS = 7
_ENDS = ("", "_low", "_high")


def payload(diagnosis: Findings) -> dict[str, Any]:
    """All that the page's script draws."""
    results = diagnosis.results
    components = list(
        dict.fromkeys(
            [row["component"] for row in (*diagnosis.components, *diagnosis.cells)]
            + [a.component for a in results.activations]
        )
    )
    return {
        "columns": COLUMNS,
        "components": [{"name": c, "kind": kind_of(results, c)} for c in components],
        "formats": list(dict.fromkeys(r["format"] for r in diagnosis.baselines if r["operands"])),
        "baselines": [
            {
                "format": row["format"],
                "operands": row["operands"],
                "nats": _milli(row["delta_nll"]),
                "nats_low": _milli(row["delta_nll_low"]),
                "nats_high": _milli(row["delta_nll_high"]),
            }
            for row in diagnosis.baselines
            if row["delta_nll"] is not None
        ],
        "units": {
            "components": _families(diagnosis, diagnosis.components),
            "cells": _families(diagnosis, diagnosis.cells),
        },
        "activations": [
            [a.component, a.block, _short(a.max), _short(a.p999), _short(a.ratio)]
            for a in results.activations
        ],
    }


def _families(diagnosis: Findings, table: Table) -> list[dict[str, Any]]:
    keys = dict.fromkeys((row["format"], row["operands"], row["direction"]) for row in table)
    controls = {(row["format"], row["operands"]): row for row in diagnosis.baselines}
    return [
        _family(
            table.where(format=fmt, operands=operands, direction=direction).rows,
            controls.get((fmt, operands) if direction == "restore" else ("reference", "")),
        )
        for fmt, operands, direction in keys
    ]


def _family(rows: Sequence[Mapping[str, Any]], control: Mapping[str, Any] | None) -> dict[str, Any]:
    names = {name: rows[0][name] for name in ("format", "operands", "direction")}
    return names | {
        "estimated": not is_measured(rows),
        "control": {
            "name": "baseline" if names["direction"] == "restore" else "reference",
            "ppl": control and _short(control["ppl"]),
            "kl": control and _short(control["kl"]),
        },
        "rows": [_values(row) for row in rows],
    }


def _values(row: Mapping[str, Any]) -> list[Any]:
    """One unit's values, in the order of `COLUMNS`."""
    estimate = [_milli(row[f"gradient_nll{end}"]) for end in _ENDS]
    nats = [_milli(row[f"delta_nll{end}"]) for end in _ENDS]
    delta_ppl = [row[f"delta_ppl{end}"] for end in _ENDS]
    restored = row["direction"] == "restore"
    found = [row["component"], row.get("block")]
    found += estimate if only_estimated(row) else nats
    found += _percent(row["ppl"], delta_ppl, restored)
    found += [_milli(row[f"delta_kl{end}"]) for end in _ENDS]
    found += _around(row["ppl"], delta_ppl, restored)
    found += [_short(value) for value in (*delta_ppl, row["kl"], row["top1"])]
    found += [_short(row[name]) for name in ("p_holm", "p_holm_kl", "p_top")]
    return [*found, row["windows"], *estimate]


def _around(
    value: float | None, difference: Sequence[float | None], restored: bool
) -> list[float | None]:
    """A raw value, and the interval of its difference around it."""
    delta, low, high = difference
    if value is None or delta is None or low is None or high is None:
        return [_short(value), None, None]
    ends = (delta - high, delta - low) if restored else (low - delta, high - delta)
    return [_short(value), *(_short(value + end) for end in ends)]


def _percent(
    ppl: float | None, difference: Sequence[float | None], restored: bool
) -> list[float | None]:
    """A difference of PPL in percent of the baseline's or the reference's, same windows."""
    delta, *_ = difference
    if ppl is None or delta is None:
        return [None] * 3
    control = ppl + (delta if restored else -delta)
    return [None if end is None else _short(100 * end / control) for end in difference]


def _milli(value: float | None) -> float | None:
    return None if value is None else _short(1e3 * value)


def _short(value: float | None) -> float | None:
    """With as many digits as are read; what is not finite is left out."""
    if value is None or value != value or abs(value) == float("inf"):
        return None
    return float(f"{value:.{DIGITS}g}")
