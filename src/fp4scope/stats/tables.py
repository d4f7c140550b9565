"""The tables of a study, derived from what its variants gave on each window.

Every difference is paired over the windows that both sides have seen and means *more
quantized minus less quantized*: positive says that quantizing this costs. So a baseline is
compared with the reference, an isolated unit with the reference, and a restored unit's
baseline with the restored unit.

Where the number of windows depended on the data (a goal other than a time), intervals and
p-values are those of confidence sequences (`sequences`).

Where a study has first-order estimates, each unit has its own beside the difference, with an
interval over the same windows (of the estimate; how far it is from the truth is not in it).

The columns `p_holm`, `tier` and `p_top` look at a unit's whole family: the units of the same level,
format, operands and direction (`multiple`, `tiers`, `ranks`). Columns that end in `_kl` are the
same tests of the difference of KL. An isolated unit's KL is compared with that of the reference,
which is zero.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from fp4scope.records import REFERENCE, ActivationRecord, Observation, Results, Table, Variant
from fp4scope.stats.agreement import estimated_series
from fp4scope.stats.intervals import Estimate, mean, paired, perplexity_difference
from fp4scope.stats.multiple import holm, p_value
from fp4scope.stats.noise import rerun_noise
from fp4scope.stats.pairing import Pairing, difference, family
from fp4scope.stats.ranks import TOP_K, top_probabilities
from fp4scope.stats.tiers import tiers
from fp4scope.stats.windows import Series, aligned, by_window

_MEASURES = ("ppl", "nll", "nll_stderr")
_DELTA = ("delta_nll", "delta_nll_stderr", "delta_nll_low", "delta_nll_high")
_DELTA_PPL = ("delta_ppl", "delta_ppl_low", "delta_ppl_high")
_DELTA_KL = ("delta_kl", "delta_kl_stderr", "delta_kl_low", "delta_kl_high")
_TESTS = ("p", "p_holm", "p_kl", "p_holm_kl")
_TOP = ("p_top", "p_top_kl")
_ESTIMATE = ("gradient_nll", "gradient_nll_stderr", "gradient_nll_low", "gradient_nll_high")
_REST = ("kl", "kl_stderr", "top1", "windows", "tokens")

_NOISE = ("jitter_nll", "jitter_kl")

BASELINE_COLUMNS = ("format", "operands", *_MEASURES, *_DELTA, *_REST, *_NOISE)
_DIFFERENCE = ("operands", *_MEASURES, *_DELTA, *_DELTA_PPL, *_DELTA_KL, *_TESTS)
_BEHIND = (*_REST, *_ESTIMATE)
UNIT_COLUMNS = {
    "components": ("format", "direction", "component", *_DIFFERENCE, "tier", *_TOP, *_BEHIND),
    "blocks": ("format", "direction", "block", *_DIFFERENCE, "tier", *_TOP, *_BEHIND),
    "cells": ("format", "direction", "component", "block", *_DIFFERENCE, *_TOP, *_BEHIND),
    "patterns": ("format", "direction", "pattern", *_DIFFERENCE, "tier", *_TOP, *_BEHIND),
}
_UNIT_NAME = {"components": "component", "cells": "component", "patterns": "pattern"}
ACTIVATION_COLUMNS = ("block", "component", "max", "p999", "ratio")
COMPONENT_ACTIVATION_COLUMNS = ("component", "max", "p999", "ratio", "ratio_max", "blocks")


def baseline_table(results: Results) -> Table:
    """The reference and every baseline: what each costs, and how much rounding alone moves it.

    Those of the same operands stand together.
    """
    pairing = Pairing.of(results)
    rows: list[dict[str, Any]] = []
    for observation in results.observations.values():
        variant = observation.variant
        if variant.direction not in ("reference", "baseline") or not observation.windows:
            continue
        nll = by_window(observation, "nll")
        row = {"format": variant.format, "operands": variant.operands}
        row |= _measures(observation, nll)
        sides = pairing.sides(observation, nll)
        if variant != REFERENCE and sides is not None:
            row |= _difference(sides, results.anytime)
        if (noise := rerun_noise(results, variant)) is not None:
            row |= {"jitter_nll": noise.nll, "jitter_kl": noise.kl}
        rows.append(row)
    order = list(dict.fromkeys(row["operands"] for row in rows))
    return Table(BASELINE_COLUMNS, sorted(rows, key=lambda row: order.index(row["operands"])))


def unit_table(results: Results, level: str) -> Table:
    """Every unit of a level (`components`, `blocks`, `cells`, `patterns`), in sweep order.

    A unit that was only estimated has nothing in the columns of what is measured.
    """
    pairings = {measure: Pairing.of(results, measure) for measure in ("nll", "kl")}
    rows: list[dict[str, Any]] = []
    families: dict[Any, list[_Member]] = defaultdict(list)
    for observation in results.observations.values():
        variant = observation.variant
        if variant.level != level or not observation.windows:
            continue
        own = {measure: by_window(observation, measure) for measure in pairings}
        row = _names(variant) | _measures(observation, own["nll"]) | _estimate(results, variant)
        rows.append(row)
        nll, kl = (pairing.sides(observation, own[name]) for name, pairing in pairings.items())
        if nll is not None and kl is not None:
            row |= _difference(nll, results.anytime) | _kl_difference(kl, results.anytime)
            member = _Member(row, difference(nll), difference(kl))
            families[family(variant)].append(member)
    for members in families.values():
        _compare(level, members, anytime=results.anytime)
    for variant in results.estimates.nats:
        observation = results.observation(variant)
        if variant.level == level and (observation is None or not observation.windows):
            of = {"windows": len(results.estimates.windows)}
            of["tokens"] = sum(results.estimates.tokens)
            rows.append(_names(variant) | of | _estimate(results, variant))
    return Table(UNIT_COLUMNS[level], rows)


@dataclass(frozen=True)
class _Member:
    """A unit of a family: its row, and what it costs by window."""

    row: dict[str, Any]
    nll: Series
    kl: Series


def _compare(level: str, members: Sequence[_Member], *, anytime: bool) -> None:
    """Fill in what depends on the whole family, over the windows that all of it has seen."""
    rows = [member.row for member in members]
    _, nll = aligned([member.nll for member in members])
    _, kl = aligned([member.kl for member in members])
    columns: dict[str, Sequence[float | str | None]] = {
        "p_holm": holm([row["p"] for row in rows]),
        "p_holm_kl": holm([row["p_kl"] for row in rows]),
        "p_top": top_probabilities(nll, TOP_K[level]),
        "p_top_kl": top_probabilities(kl, TOP_K[level]),
    }
    if "tier" in UNIT_COLUMNS[level]:
        columns["tier"] = tiers(nll, anytime=anytime)
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value


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


def cost(row: Mapping[str, Any]) -> float | None:
    """What a row says quantizing costs: measured, or else estimated."""
    return row["gradient_nll"] if row["delta_nll"] is None else row["delta_nll"]


def only_estimated(row: Mapping[str, Any]) -> bool:
    """Whether a unit's cost was estimated and not measured."""
    return row["delta_nll"] is None and row["gradient_nll"] is not None


def _names(variant: Variant) -> dict[str, Any]:
    return {
        "format": variant.format,
        "direction": variant.direction,
        "operands": variant.operands,
        "block": variant.block,
        _UNIT_NAME.get(variant.level, "unit"): variant.unit,
    }


def _estimate(results: Results, variant: Variant) -> dict[str, Any]:
    if not results.estimates.nats.get(variant):
        return {}
    found = mean(estimated_series(results, variant).values)
    return dict(zip(_ESTIMATE, _interval(found), strict=True))


def _measures(observation: Observation, by_nll: Series) -> dict[str, Any]:
    tokens = sum(observation.tokens)
    nll = mean(by_nll.values)
    kl = mean(by_window(observation, "kl").values)
    return {
        "ppl": float(np.exp(nll.mean)),
        "nll": nll.mean,
        "nll_stderr": nll.stderr,
        "kl": kl.mean,
        "kl_stderr": kl.stderr,
        "top1": sum(observation.top1) / tokens,
        "windows": nll.n,
        "tokens": tokens // len(set(observation.replicas)),
    }


def _difference(sides: tuple[Series, Series], anytime: bool) -> dict[str, Any]:
    """Paired over the windows that both have seen."""
    more, less = (side.values for side in sides)
    nll = paired(more, less, anytime=anytime)
    ppl = perplexity_difference(more, less, anytime=anytime)
    return dict(zip(_DELTA, _interval(nll), strict=True)) | {
        "delta_ppl": ppl.mean,
        "delta_ppl_low": ppl.low,
        "delta_ppl_high": ppl.high,
        "p": p_value(nll, anytime=anytime),
    }


def _kl_difference(sides: tuple[Series, Series], anytime: bool) -> dict[str, Any]:
    more, less = (side.values for side in sides)
    found = paired(more, less, anytime=anytime)
    values = dict(zip(_DELTA_KL, _interval(found), strict=True))
    return values | {"p_kl": p_value(found, anytime=anytime)}


def _interval(found: Estimate) -> tuple[float | None, ...]:
    return found.mean, found.stderr, found.low, found.high
