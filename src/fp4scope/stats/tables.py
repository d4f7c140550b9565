"""The tables of a study, derived from what its variants gave on each window.

Every difference is paired over the windows that both sides have seen and means *more
quantized minus less quantized*: positive says that quantizing this costs. So a baseline is
compared with the reference, an isolated unit with the reference, and a restored unit's
baseline with the restored unit.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from fp4scope.records import REFERENCE, ActivationRecord, Observation, Results, Table, baseline
from fp4scope.stats.intervals import mean, paired, perplexity_difference

_MEASURES = ("ppl", "nll", "nll_stderr")
_DELTA = ("delta_nll", "delta_nll_stderr", "delta_nll_low", "delta_nll_high")
_DELTA_PPL = ("delta_ppl", "delta_ppl_low", "delta_ppl_high")
_REST = ("kl", "kl_stderr", "top1", "windows", "tokens")

BASELINE_COLUMNS = ("format", "operands", *_MEASURES, *_DELTA, *_REST)
_UNIT_TAIL = ("operands", *_MEASURES, *_DELTA, *_DELTA_PPL, *_REST)
UNIT_COLUMNS = {
    "components": ("format", "direction", "component", *_UNIT_TAIL),
    "blocks": ("format", "direction", "block", *_UNIT_TAIL),
    "cells": ("format", "direction", "component", "block", *_UNIT_TAIL),
    "patterns": ("format", "direction", "pattern", *_UNIT_TAIL),
}
_UNIT_NAME = {"components": "component", "cells": "component", "patterns": "pattern"}
ACTIVATION_COLUMNS = ("block", "component", "max", "p999", "ratio")
COMPONENT_ACTIVATION_COLUMNS = ("component", "max", "p999", "ratio", "ratio_max", "blocks")


def baseline_table(results: Results) -> Table:
    """The reference and every baseline, with each baseline's cost over the reference."""
    reference = results.observation(REFERENCE)
    rows: list[dict[str, Any]] = []
    for observation in results.observations.values():
        variant = observation.variant
        if not variant.is_control or variant.direction == "jitter" or not observation.windows:
            continue
        row = {"format": variant.format, "operands": variant.operands, **_measures(observation)}
        if variant != REFERENCE and reference is not None:
            row |= _difference(observation, reference)
        rows.append(row)
    return Table(BASELINE_COLUMNS, rows)


def unit_table(results: Results, level: str) -> Table:
    """Every unit of a level (`components`, `blocks`, `cells`, `patterns`), in sweep order."""
    rows: list[dict[str, Any]] = []
    for observation in results.observations.values():
        variant = observation.variant
        if variant.level != level or not observation.windows:
            continue
        row = {
            "format": variant.format,
            "direction": variant.direction,
            "operands": variant.operands,
            "block": variant.block,
            _UNIT_NAME.get(level, "unit"): variant.unit,
            **_measures(observation),
        }
        if variant.direction == "restore":
            more, less = (
                results.observation(baseline(variant.format, variant.operands)),
                observation,
            )
        else:
            more, less = observation, results.observation(REFERENCE)
        if more is not None and less is not None:
            row |= _difference(more, less)
        rows.append(row)
    return Table(UNIT_COLUMNS[level], rows)


def activation_table(activations: Sequence[ActivationRecord]) -> Table:
    """Input statistics of every cell."""
    return Table(ACTIVATION_COLUMNS, [vars(a) for a in activations])


def component_activation_table(activations: Sequence[ActivationRecord]) -> Table:
    """Per component: means over its blocks of max, P99.9 and their ratio, and the worst ratio.

    The ratio is the mean of the blocks' ratios, not the ratio of the means (as in table 1 of
    arXiv 2603.08747), which lets one block's outliers show.
    """
    groups: dict[str, list[ActivationRecord]] = defaultdict(list)
    for record in activations:
        groups[record.component].append(record)
    rows: list[dict[str, Any]] = [
        {
            "component": component,
            "max": fmean(a.max for a in group),
            "p999": fmean(a.p999 for a in group),
            "ratio": fmean(ratios) if (ratios := [a.ratio for a in group if a.ratio]) else None,
            "ratio_max": max(ratios, default=None),
            "blocks": len(group),
        }
        for component, group in groups.items()
    ]
    rows.sort(key=lambda row: -(row["ratio"] or 0.0))
    return Table(COMPONENT_ACTIVATION_COLUMNS, rows)


def undecided(row: Mapping[str, Any]) -> bool:
    """Whether a row's interval holds zero: its difference is not told from none."""
    low, high = row["delta_nll_low"], row["delta_nll_high"]
    return low is not None and low <= 0 <= high


def _measures(observation: Observation) -> dict[str, Any]:
    tokens = np.asarray(observation.tokens, np.float64)
    nll = mean([*_by_window(observation, "nll").values()])
    kl = mean([*_by_window(observation, "kl").values()])
    return {
        "ppl": float(np.exp(nll.mean)),
        "nll": nll.mean,
        "nll_stderr": nll.stderr,
        "kl": kl.mean,
        "kl_stderr": kl.stderr,
        "top1": float(np.sum(observation.top1) / tokens.sum()),
        "windows": nll.n,
        "tokens": int(tokens.sum()) // len(set(observation.replicas)),
    }


def _difference(more: Observation, less: Observation) -> dict[str, Any]:
    """Paired over the windows that both have seen; nothing where there is none."""
    a, b = _by_window(more, "nll"), _by_window(less, "nll")
    common = sorted(a.keys() & b.keys())
    if not common:
        return {}
    x, y = [a[w] for w in common], [b[w] for w in common]
    nll, ppl = paired(x, y), perplexity_difference(x, y)
    return {
        "delta_nll": nll.mean,
        "delta_nll_stderr": nll.stderr,
        "delta_nll_low": nll.low,
        "delta_nll_high": nll.high,
        "delta_ppl": ppl.mean,
        "delta_ppl_low": ppl.low,
        "delta_ppl_high": ppl.high,
    }


def _by_window(observation: Observation, column: str) -> dict[int, float]:
    """Per token, the mean over replicas."""
    sums: dict[int, list[float]] = defaultdict(list)
    rows = zip(observation.windows, getattr(observation, column), observation.tokens, strict=True)
    for window, value, tokens in rows:
        sums[window].append(value / tokens)
    return {window: fmean(values) for window, values in sums.items()}
