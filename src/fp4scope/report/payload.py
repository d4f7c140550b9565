"""What the charts of `report.html` are drawn from: plain data, ready for JSON.

Every metric has a value with its interval, as it is read, and the `cost`: more quantized minus
less quantized, which colours it. PPL and KL are read as they are, and their interval is
that of the paired difference from the baseline (restore) or the reference (isolate), put
around the value. Percent is the change of PPL from the same, so that an improvement is negative, as
in arXiv 2603.08747.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fp4scope.records import Table
from fp4scope.report.words import is_measured
from fp4scope.stats import kind_of, only_estimated

if TYPE_CHECKING:
    from fp4scope.report.diagnosis import Diagnosis

METRICS = ("nats", "ppl", "percent", "kl")
COLUMNS = (
    "component", "block",
    *(f"{metric}{part}" for metric in METRICS for part in ("", "_low", "_high", "_cost")),
    "delta_ppl", "delta_ppl_low", "delta_ppl_high", "top1", "p_holm", "p_top", "windows",
    "gradient", "gradient_low", "gradient_high",
)  # fmt: skip
"""Those of a unit; differences of NLL and estimates are in millinats per token."""
DIGITS = 7


def payload(diagnosis: "Diagnosis") -> dict[str, Any]:
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


def _families(diagnosis: "Diagnosis", table: Table) -> list[dict[str, Any]]:
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
    estimate = [_milli(row[f"gradient_nll{end}"]) for end in ("", "_low", "_high")]
    if only_estimated(row):
        nats = [*estimate, estimate[0]]
    else:
        nats = [_milli(row[f"delta_nll{end}"]) for end in ("", "_low", "_high", "")]
    restored = row["direction"] == "restore"
    found = [row["component"], row.get("block"), *nats]
    found += _around(row, "ppl", restored)
    found += _percent(row, restored)
    found += _around(row, "kl", restored)
    found += [_short(row[f"delta_ppl{end}"]) for end in ("", "_low", "_high")]
    found += [_short(row[name]) for name in ("top1", "p_holm", "p_top")]
    return [*found, row["windows"], *estimate]


def _around(row: Mapping[str, Any], name: str, restored: bool) -> list[float | None]:
    """A raw value, the interval of its difference around it, and the difference."""
    value = row[name]
    delta, low, high = (row[f"delta_{name}{end}"] for end in ("", "_low", "_high"))
    if delta is None:
        return [_short(value), None, None, None]
    if low is None:
        return [_short(value), None, None, _short(delta)]
    ends = (delta - high, delta - low) if restored else (low - delta, high - delta)
    return [_short(value), *(_short(value + end) for end in ends), _short(delta)]


def _percent(row: Mapping[str, Any], restored: bool) -> list[float | None]:
    """The change of PPL in percent of the baseline's or the reference's over the same windows."""
    if row["delta_ppl"] is None:
        return [None] * 4
    control = row["ppl"] + (row["delta_ppl"] if restored else -row["delta_ppl"])
    value, low, high = (
        None if row[f"delta_ppl{end}"] is None else 100 * row[f"delta_ppl{end}"] / control
        for end in ("", "_low", "_high")
    )
    if restored:
        shown = [None if v is None else -v for v in (value, high, low)]
    else:
        shown = [value, low, high]
    return [*(_short(v) for v in shown), _short(value)]


def _milli(value: float | None) -> float | None:
    return None if value is None else _short(1e3 * value)


def _short(value: float | None) -> float | None:
    """With as many digits as are read; what is not finite is left out."""
    if value is None or value != value or abs(value) == float("inf"):
        return None
    return float(f"{value:.{DIGITS}g}")
