"""The four hypotheses of arXiv 2603.08747, held against one study.

Each has a statistic for every format, operands and direction that was measured, and one verdict:

1. **Mechanism.** Spearman's rank correlation of the components' costs with their activations'
   Max/P99.9, divided by the largest that its ties allow, less that with being in the MLP. A
   yes-or-no over three and four components reaches 0.87 at most, and reaches it by saying less; so
   each verdict takes the reading that is against it. Supported: above zero in every family although
   the MLP's is divided by its largest too. Contradicted: below zero in every family with the MLP's
   as it is, or a correlation with Max/P99.9 below zero.
2. **Ordering.** Two components that a paired test (Holm over all pairs) puts in one order here and
   in the other order there are a reversal. One reversal contradicts; none, and at least half of
   all pairs told apart in both, with every rank correlation above zero, supports.
3. **Model scale.** One study is of one model, so it never decides this.
4. **Localization.** For every component's curve over depth, the probability that its largest cell
   lies in the last third of the blocks. Supported if for one curve, whose largest cell is
   significantly positive, that is at most 5% over the number of curves; contradicted if it is at
   least 95% for all.

Whatever lies between is not decided. The intervals of rank correlations are basic
intervals over windows (`agreement` says why), those of hypothesis 1 widened to hold together at
95% for all of its rows (Bonferroni). The probabilities are those of `ranks`. All of it speaks of
this model on text like this: a rank correlation of seven components says nothing of other models,
however narrow its interval. First-order estimates decide nothing here.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from fp4scope.records import Results, Table, Variant
from fp4scope.stats.agreement import DRAWS, FEWEST_UNITS, agreement, spearman
from fp4scope.stats.dependence import drawn_means
from fp4scope.stats.depth import ALL, depth_table
from fp4scope.stats.families import Family, families, named
from fp4scope.stats.intervals import MIN_WINDOWS
from fp4scope.stats.multiple import SIGNIFICANCE
from fp4scope.stats.projections import kind_of
from fp4scope.stats.tiers import separable
from fp4scope.stats.windows import Floats, aligned


class Verdict(str, Enum):
    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "not decided by this data"


@dataclass(frozen=True)
class Hypothesis:
    """What the paper claims, what this study says of it, and the numbers behind that."""

    name: str
    claim: str
    verdict: Verdict
    sentence: str
    evidence: Table


def hypotheses(results: Results) -> list[Hypothesis]:
    """The paper's four, in its order."""
    components = families(results, "components")
    cells = families(results, "cells")
    return [
        _mechanism(results, components, cells),
        _ordering(results, components),
        _scale(),
        _localization(results),
    ]


# 1. Mechanism

_MECHANISM = (
    "format", "operands", "direction", "level", "units", "rho_tail", "rho_tail_low",
    "rho_tail_high", "rho_mlp", "delta_rho", "delta_rho_low", "delta_rho_high", "delta_full",
    "delta_full_low", "delta_full_high", "windows",
)  # fmt: skip


def _mechanism(results: Results, components: list[Family], cells: list[Family]) -> Hypothesis:
    ratios = {(a.component, a.block): a.ratio for a in results.activations if a.ratio}
    by_component: dict[str, list[float]] = defaultdict(list)
    for (component, _), ratio in ratios.items():
        by_component[component].append(ratio)

    def tail(variant: Variant) -> float | None:
        if variant.block is not None:
            return ratios.get((variant.unit, variant.block))
        found = by_component.get(variant.unit)
        return fmean(found) if found else None

    families = [("components", f) for f in components] + [("cells", f) for f in cells]
    rows = [
        {**family.labels, "level": level, **found}
        for level, family in families
        if (found := _tail_or_kind(results, family, tail, alpha=SIGNIFICANCE / len(families)))
    ]
    return Hypothesis(
        "Mechanism",
        "Component sensitivity to FP4 is primarily determined by activation tail-heaviness rather "
        "than by whether the component belongs to MLP or attention.",
        *_mechanism_verdict([r for r in rows if r["level"] == "components"], bool(ratios)),
        Table(_MECHANISM, rows),
    )


def _tail_or_kind(
    results: Results, family: Family, tail: Callable[[Variant], float | None], alpha: float
) -> dict[str, Any] | None:
    """How the costs of a family correlate with Max/P99.9 and with being in the MLP."""
    known = [
        (series, ratio, kind_of(results, unit.unit) == "MLP")
        for unit, series in zip(family.units, family.series, strict=True)
        if (ratio := tail(unit)) is not None and kind_of(results, unit.unit) is not None
    ]
    if len(known) < FEWEST_UNITS:
        return None
    series, ratios, mlp = zip(*known, strict=True)
    costs = aligned(series)[1]
    if len(costs) < MIN_WINDOWS:
        return None
    tails, kinds = np.array(ratios), np.array(mlp, np.float64)

    def statistics(means: Floats) -> Floats:
        by_tail = spearman(means, tails) / _largest_rho(tails)
        by_kind = spearman(means, kinds)
        full = by_kind / _largest_rho(kinds)
        return np.stack([by_tail, by_kind, by_tail - by_kind, by_tail - full], axis=-1)

    if not np.isfinite(statistics(costs.mean(axis=0))).all():
        return None
    point, low, high = _basic_interval(costs, statistics, alpha)
    names = ("rho_tail", "rho_mlp", "delta_rho", "delta_full")
    row: dict[str, Any] = {"units": len(known), "windows": len(costs)}
    for i, name in enumerate(names):
        row |= {name: float(point[i]), f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    return row


def _largest_rho(x: Floats) -> Floats:
    """What values without ties that rise with `x` have as rank correlation with it."""
    return spearman(np.arange(float(len(x))), np.sort(x))


def _mechanism_verdict(rows: list[dict[str, Any]], activations: bool) -> tuple[Verdict, str]:
    if not rows:
        missing = "components in their kinds" if activations else "activation statistics"
        return Verdict.UNDECIDED, f"This needs measured components and {missing}."
    said = (
        f"the components' costs have a rank correlation of {_span(rows, 'rho_tail')} with "
        f"Max/P99.9 and of {_span(rows, 'rho_mlp')} with being in the MLP"
    )
    over = f"over {len(rows)} formats and directions" if len(rows) > 1 else "here"
    if all(r["delta_full_low"] > 0 and r["rho_tail_low"] > 0 for r in rows):
        return Verdict.SUPPORTED, f"Max/P99.9 orders components better than their kind: {said}."
    if all(r["delta_rho_high"] < 0 or r["rho_tail_high"] < 0 for r in rows):
        return (
            Verdict.CONTRADICTED,
            f"Whether a component is MLP or attention orders costs better, {over}: {said}.",
        )
    return Verdict.UNDECIDED, f"Neither explains more in all formats and directions: {said}."


# 2. Ordering

_ORDERING = (
    "first", "second", "operands", "units", "rho", "rho_low", "rho_high", "pairs", "separated",
    "reversed", "windows",
)  # fmt: skip


def _ordering(results: Results, families: list[Family]) -> Hypothesis:
    rows: list[dict[str, Any]] = []
    swaps: list[str] = []
    for one, other in combinations(families, 2):
        if one.operands != other.operands:
            continue
        row, reversals = _compare_orders(one, other, anytime=results.anytime)
        if row is not None:
            rows.append(row)
            swaps += reversals
    return Hypothesis(
        "Ordering",
        "When components are isolated and quantized one at a time, their sensitivity ranking "
        "remains consistent across experiments.",
        *_ordering_verdict(rows, swaps),
        Table(_ORDERING, rows),
    )


def _compare_orders(
    one: Family, other: Family, *, anytime: bool
) -> tuple[dict[str, Any] | None, list[str]]:
    """How two families order the components of both, and the pairs that they significantly swap."""
    names = [unit.unit for unit in one.units if unit.unit in {u.unit for u in other.units}]
    if len(names) < FEWEST_UNITS:
        return None, []
    chosen = [
        [family.series[[u.unit for u in family.units].index(name)] for name in names]
        for family in (one, other)
    ]
    _, both = aligned([*chosen[0], *chosen[1]])
    first, second = both[:, : len(names)], both[:, len(names) :]
    found = agreement(first, second) if len(both) >= MIN_WINDOWS else None
    if found is None:
        return None, []
    apart = set(separable(first, anytime=anytime)) & set(separable(second, anytime=anytime))
    gaps = [side.mean(axis=0) for side in (first, second)]
    reversals = [
        (names[i], names[j]) if gaps[0][i] > gaps[0][j] else (names[j], names[i])
        for i, j in sorted(apart)
        if (gaps[0][i] > gaps[0][j]) != (gaps[1][i] > gaps[1][j])
    ]
    row = {
        "first": one.name,
        "second": other.name,
        "operands": one.operands,
        "units": len(names),
        "rho": found.rho,
        "rho_low": found.low,
        "rho_high": found.high,
        "pairs": len(names) * (len(names) - 1) // 2,
        "separated": len(apart),
        "reversed": len(reversals),
        "windows": len(both),
    }
    said = [
        f"{more} costs more than {less} under {one.name}, and less under {other.name}"
        for more, less in reversals
    ]
    return row, said


def _ordering_verdict(rows: list[dict[str, Any]], swaps: list[str]) -> tuple[Verdict, str]:
    if not rows:
        return (
            Verdict.UNDECIDED,
            "This needs at least three components measured in two formats or directions.",
        )
    said = f"rank correlations are {_span(rows, 'rho')} over {len(rows)} comparisons"
    if swaps:
        count = sum(row["reversed"] > 0 for row in rows)
        return (
            Verdict.CONTRADICTED,
            f"In {count} of {len(rows)} comparisons the order of some components is significantly "
            f"reversed ({swaps[0]}); {said}.",
        )
    if all(row["rho_low"] > 0 and 2 * row["separated"] >= row["pairs"] for row in rows):
        return (
            Verdict.SUPPORTED,
            f"No pair of components that is told apart changes its order; {said}.",
        )
    return (
        Verdict.UNDECIDED,
        f"No pair of components significantly changes its order, but too few are told apart; "
        f"{said}.",
    )


# 3. Model scale


def _scale() -> Hypothesis:
    return Hypothesis(
        "Model scale",
        "Increasing model size mainly affects the magnitude of sensitivity, not the relative "
        "ordering of the sensitive components.",
        Verdict.UNDECIDED,
        "One model says nothing of scale: fp4scope compare takes the results of several sizes of "
        "one family.",
        Table(("model",), []),
    )


# 4. Localization


def _localization(results: Results) -> Hypothesis:
    evidence = depth_table(results)
    return Hypothesis(
        "Block localization",
        "FP4 sensitivity does not always peak in the final blocks; early-block sensitivity can "
        "emerge, particularly under MXFP4.",
        *_localization_verdict(evidence.rows),
        evidence,
    )


def _localization_verdict(rows: list[dict[str, Any]]) -> tuple[Verdict, str]:
    curves = [row for row in rows if row["component"] != ALL]
    if not curves:
        return (
            Verdict.UNDECIDED,
            "This needs cells measured in every block, on 8 windows or more.",
        )
    shares = [
        f"{_share(row, 'early')} of the summed cost under {named(row)}"
        for row in rows
        if row["component"] == ALL and row["share_early"] is not None
    ]
    early = f"; the first third has {'; '.join(shares)}" if shares else ""
    least = SIGNIFICANCE / len(curves)
    outside = [
        r for r in curves if r["p_final"] <= least and (r["peak_p_holm"] or 0.0) <= SIGNIFICANCE
        and r["peak_nll"] > 0
    ]  # fmt: skip
    if outside:
        strongest = sorted(outside, key=lambda r: -r["peak_nll"])[:3]
        where = "; ".join(
            f"{r['component']} at block {r['peak_block']} under {named(r)}" for r in strongest
        )
        return (
            Verdict.SUPPORTED,
            f"{len(outside)} of {len(curves)} curves over depth peak significantly before the "
            f"final third of the blocks ({where}){early}.",
        )
    inside = [r for r in curves if r["p_final"] >= 1 - SIGNIFICANCE]
    if len(inside) == len(curves):
        return (
            Verdict.CONTRADICTED,
            f"All {len(curves)} curves over depth peak in the final third of the blocks{early}.",
        )
    return (
        Verdict.UNDECIDED,
        f"Of {len(curves)} curves over depth {len(inside)} peak in the final third with 95% "
        f"probability, and none significantly before it{early}.",
    )


# What they share


def _basic_interval(
    costs: Floats, statistics: Callable[[Floats], Floats], alpha: float
) -> tuple[Floats, Floats, Floats]:
    """Statistics of the mean costs, with their basic interval over drawn means."""
    drawn = drawn_means(costs, 2 * DRAWS)
    point = statistics(costs.mean(axis=0))
    least, most = np.nanquantile(statistics(drawn), [alpha / 2, 1 - alpha / 2], axis=0)
    return point, np.minimum(2 * point - most, point), np.maximum(2 * point - least, point)


def _span(rows: Sequence[dict[str, Any]], column: str) -> str:
    values = sorted(row[column] for row in rows)
    if len(values) == 1 or f"{values[0]:.2f}" == f"{values[-1]:.2f}":
        return f"{values[0]:.2f}"
    return f"{values[0]:.2f} to {values[-1]:.2f}"


def _share(row: dict[str, Any], third: str) -> str:
    low, high = row[f"share_{third}_low"], row[f"share_{third}_high"]
    return f"{row[f'share_{third}']:.0%} ({low:.0%} to {high:.0%})"
