"""What the charts of `report.html` are drawn from: plain data, ready for JSON.

The script draws and decides nothing: each number comes with its text, each chart with the ends and
the ticks of its axis and the sentence above it. A *family* is the units of one format, precision
and direction; a *view* is what the page's controls choose, one family or those of all formats.

Every metric has a value with its interval; positive means that quantizing this costs. That is the
difference of NLL (`nats`), that of PPL in percent, and that of KL. Only PPL is read as it is; its
interval is that of the paired difference, put around the value.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fp4scope.report import axes, labels
from fp4scope.report.columns import Measure, is_muted, measures
from fp4scope.report.findings import Findings
from fp4scope.report.labels import KEEP, direction
from fp4scope.report.numbers import in_percent, interval, number
from fp4scope.report.pareto import pareto_points
from fp4scope.report.selection import compared_with, is_measured
from fp4scope.report.tokens import along_window, unsigned
from fp4scope.stats import kind_of, only_estimated, sizes_known
from fp4scope.table import Interval, Table
from fp4scope.treatments import operands_of

_ENDS = ("", "_low", "_high")
METRICS: dict[str, dict[str, Any]] = {
    "nats": {
        "short": "millinats", "label": labels.EFFECT, "unit": "millinats", "what": "loss",
        "signed": True, "log": True,
    },
    "percent": {
        "short": "% of PPL", "label": "% of PPL", "unit": "of PPL", "what": "loss",
        "signed": True, "log": False,
    },
    "kl": {
        "short": "KL", "label": "KL, millinats per token", "unit": "millinats of KL",
        "what": "KL", "signed": True, "log": True,
    },
    "ppl": {
        "short": "PPL", "label": "PPL", "unit": "PPL", "what": "loss", "signed": False,
        "log": False,
    },
}  # fmt: skip
COLUMNS = (
    "projection", "block",
    *(f"{metric}{end}" for metric in METRICS for end in _ENDS),
    "delta_ppl", "muted", "muted_kl", "texts",
)  # fmt: skip
"""Those of a unit. Differences are in millinats per token or percent; `texts` go with `heads`."""
DIGITS = 7
_Row = Mapping[str, Any]
_Family = dict[str, Any]


def payload(found: Findings) -> dict[str, Any]:
    """All that the page's script draws."""
    results = found.results
    columns = measures("layers", [*found.projections, *found.layers])
    units = {
        "projections": _families(found, found.projections, columns),
        "layers": _families(found, found.layers, columns),
    }
    named = [row["projection"] for row in (*found.projections, *found.layers)]
    names = dict.fromkeys([*named, *(a.projection for a in results.activations)])
    formats = dict.fromkeys(r["format"] for r in found.all_quantized if r["precision"])
    return {
        "metrics": METRICS,
        "columns": COLUMNS,
        "projections": [{"name": c, "kind": kind_of(results, c)} for c in names],
        "layer_types": results.model.get("layer_types") or [],
        "formats": list(formats),
        "all_quantized": _all_quantized(found),
        "pareto": _pareto(found),
        "paths": _paths(found),
        "units": units,
        "heads": [[column.key, column.label] for column in columns],
        "views": {name: dict(_views(families)) for name, families in units.items()},
        "activations": _activations(found),
        "positions": _positions(found),
    }


def _positions(found: Findings) -> dict[str, Any] | None:
    """KL along the window, a line for each model, on a logarithmic axis."""
    lines = along_window(found)
    if not lines:
        return None
    spans = [span for line in lines for span in line.spans]
    values = [end for span in spans for end in (span.value, span.high) if end and end > 0]
    low, high = min(values, default=1.0) / 1.5, max(values, default=1.0) * 1.5
    return {
        "names": max((line.strata for line in lines), key=len),
        "lines": [
            [line.model.title, [_on_log(span, low) for span in line.spans]] for line in lines
        ],
        "axis": {"low": low, "high": high, "ticks": _ticks(axes.decades(low, high))},
    }


def _on_log(span: Interval, lowest: float) -> list[Any]:
    """A value with its interval, no lower than an axis goes; and both in words."""
    ends = [None if end is None else _short(max(end, lowest)) for end in span]
    return [*ends, str(unsigned(span))]


def _all_quantized(found: Findings) -> dict[str, Any] | None:
    """What whole models cost, a line for each format or recipe, the cheapest first."""
    wholes = [whole for whole in found.wholes if not whole.is_full_precision]
    if not wholes:
        return None
    choices = list(dict.fromkeys(whole.precision for whole in wholes if whole.precision))
    several = len(set(map(operands_of, choices))) > 1
    lines: dict[str, list[dict[str, Any]]] = {}
    for whole in wholes:
        span = Interval.of(whole.row, "delta_nll").times(1e3)
        mark = {
            "precision": whole.precision or "recipe",
            "text": f"{whole.title}: {interval(whole.row)} millinats",
        }
        lines.setdefault(whole.name, []).append(mark | Interval(*map(_short, span))._asdict())
    ends = [mark[end] for of in lines.values() for mark in of for end in ("value", "low", "high")]
    return {
        "title": "What quantizing everything costs"
        + ("" if several or not choices else f", {'/'.join(choices)}"),
        "precisions": list(dict.fromkeys(m["precision"] for of in lines.values() for m in of)),
        "rows": [{"format": name, "marks": marks} for name, marks in lines.items()],
        "axis": _linear(ends, zero=0.0),
    }


def _pareto(found: Findings) -> dict[str, Any] | None:
    """Bits of the model against KL: formats, recipes, and recipes that are predicted."""
    points = pareto_points(found)
    if not points:
        return None
    bits, costs = [p.bits for p in points], [1e3 * p.kl for p in points]
    low, high = axes.extent(bits, margin=0.05)
    bottom, top = min(costs) / 1.5, max(costs) * 1.5
    return {
        "points": [
            {"kind": p.kind, "name": p.name, "x": _short(p.bits), "y": _short(1e3 * p.kl),
             "text": p.text}
            for p in points
        ],
        "x": {"low": low, "high": high, "ticks": _ticks(axes.linear_ticks(low, high, 4))},
        "y": {"low": bottom, "high": top, "ticks": _ticks(axes.decades(bottom, top))},
    }  # fmt: skip


def _paths(found: Findings) -> dict[str, str]:
    """Module names of layers, as ignore lists take them, by block and projection."""
    if not sizes_known(found.results):
        return {}
    swept = {(row["block"], row["projection"]) for row in found.layers}
    return {
        f"{site.block}|{site.projection}": site.name
        for site in found.results.sites
        if (site.block, site.projection) in swept
    }


def _families(found: Findings, table: Table, columns: Sequence[Measure]) -> list[_Family]:
    families = []
    for group in dict.fromkeys((r["format"], r["precision"], r["direction"]) for r in table):
        names = dict(zip(("format", "precision", "direction"), group, strict=True))
        rows, way = table.where(**names).rows, direction(names["direction"])
        control = compared_with(found, rows[0])
        families.append(
            {
                **names,
                "estimated": not is_measured(rows),
                "control": {
                    "name": way.control,
                    "ppl": control and _short(control["ppl"]),
                },
                "rows": [[*_values(row), [str(c.show(row)) for c in columns]] for row in rows],
            }
        )
    return families


def _values(row: _Row) -> list[Any]:
    """One unit's values, in the order of `COLUMNS`."""
    return [
        row["projection"],
        row.get("block"),
        *_milli(row, "gradient_nll" if only_estimated(row) else "delta_nll"),
        *map(_short, in_percent(row)),
        *_milli(row, "delta_kl"),
        *map(_short, _around(row)),
        _short(row["delta_ppl"]),
        is_muted(row),
        is_muted(row, "p_holm_kl"),
    ]


def _around(row: _Row) -> Interval:
    """Perplexity, and the interval of its difference around it."""
    value, sign = row["ppl"], -1.0 if direction(row["direction"]) is KEEP else 1.0
    delta, low, high = Interval.of(row, "delta_ppl").times(sign)
    if value is None or delta is None or low is None or high is None:
        return Interval(value, None, None)
    return Interval(value, value + low - delta, value + high - delta)


def _views(families: Sequence[_Family]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every choice of direction, precision and format (or all of them), by metric."""
    for way, precision in dict.fromkeys((f["direction"], f["precision"]) for f in families):
        chosen = [f for f in families if (f["direction"], f["precision"]) == (way, precision)]
        for fmt in ("", *(f["format"] for f in chosen)):
            members = [f for f in chosen if fmt in ("", f["format"])]
            yield (
                "|".join((way, precision, fmt)),
                {m: view for m in METRICS if (view := _view(members, m)) is not None},
            )


def _view(families: Sequence[_Family], metric: str) -> dict[str, Any] | None:
    """A sentence, an axis for values, one for values over depth, and a scale of colours."""
    about = METRICS[metric]
    rows = [dict(zip(COLUMNS, row, strict=True)) for f in families for row in f["rows"]]
    ends = [row[f"{metric}{end}"] for row in rows for end in _ENDS]
    costs = [row["delta_ppl" if metric == "ppl" else metric] for row in rows]
    costs = [value for value in costs if value is not None]
    if not costs:
        return None
    zero = 0.0 if about["signed"] else families[0]["control"]["ppl"]
    view = {"said": _said(families, metric), "zero": zero, "axis": _linear(ends, zero)}
    view["depth"] = _symlog(ends, costs) if about["log"] else _linear(ends, zero, count=4)
    linear = axes.linear_threshold(costs)
    peak = axes.step_above(max(map(abs, costs)) or 1.0)
    steps = axes.steps_of_colour(peak, linear)
    shown = [*(-s for s in steps), 0.0, *reversed(steps)]
    view["colours"] = {"linear": linear, "peak": peak, "ticks": _ticks(shown, sign=True)}
    return view


def _linear(values: Iterable[float | None], zero: float | None, count: int = 5) -> dict[str, Any]:
    low, high = axes.extent([*values, zero], margin=0.05)
    ticks = axes.linear_ticks(low, high, count)
    return {"low": _short(low), "high": _short(high), "ticks": _ticks(ticks)}


def _symlog(values: Iterable[float | None], costs: Sequence[float]) -> dict[str, Any]:
    low, high = axes.extent([*values, 0.0])
    linear = axes.linear_threshold(costs)
    ticks = axes.log_ticks(low, high, linear)
    return {"low": low, "high": high, "linear": linear, "ticks": _ticks(ticks)}


def _ticks(values: Iterable[float], *, sign: bool = False) -> list[tuple[float, str]]:
    return [(value, axes.tick(value, sign)) for value in values]


def _said(families: Sequence[_Family], metric: str) -> str:
    """What a chart shows."""
    way = direction(families[0]["direction"])
    kept = way is KEEP
    shown = {
        "nats": "the difference of the loss",
        "percent": f"the difference of the perplexity, in percent of the {way.control}'s",
        "kl": "the difference of KL from the full-precision model",
        "ppl": "perplexity itself, with the interval of its paired difference around it",
    }[metric]
    said = f"{way.name.capitalize()}: {way.meaning}. Shown is {shown}"
    if metric != "ppl":
        verb = "keeping the unit saves" if kept else "quantizing the unit costs"
        said += f"; positive: {verb} that much"
    estimated = any(f["estimated"] for f in families)
    return f"{said}.{' These are first-order estimates, not measured.' if estimated else ''}"


def _activations(found: Findings) -> dict[str, Any]:
    """What enters each layer: in words, and as curves over depth, one for each distinct input."""
    records = found.results.activations
    ratios = sorted((a.ratio for a in records if a.ratio), reverse=True)
    said = {
        f"{a.block}|{a.projection}": f"max |x| {number(a.max)}, P99.9 {number(a.p999)}"
        + (
            f", max / P99.9 {number(a.ratio)} (number {1 + ratios.index(a.ratio)} of {len(ratios)} "
            "layers, the largest first)"
            if a.ratio
            else ""
        )
        for a in records
    }
    curves: dict[str, list[tuple[int, float, str]]] = {}
    for a in records:
        if a.ratio:
            point = (a.block, float(f"{a.ratio:.{DIGITS}g}"), number(a.ratio))
            curves.setdefault(a.projection, []).append(point)
    inputs: dict[tuple[Any, ...], list[str]] = {}
    for projection, points in curves.items():
        inputs.setdefault(tuple(points), []).append(projection)
    low, high = (min(1.0, ratios[-1]), 1.2 * ratios[0]) if ratios else (1.0, 1.0)
    powers = [10.0**i for i in range(20) if 10.0**i <= high]
    return {
        "said": said,
        "curves": [[", ".join(names), list(points)] for points, names in inputs.items()],
        "axis": {"low": low, "high": high, "ticks": _ticks(powers)},
    }


def _milli(row: _Row, name: str) -> Interval:
    return Interval(*map(_short, Interval.of(row, name).times(1e3)))


def _short(value: float | None) -> float | None:
    """With as many digits as are read; what is not finite is left out."""
    if value is None or value != value or abs(value) == float("inf"):
        return None
    return float(f"{value:.{DIGITS}g}")
