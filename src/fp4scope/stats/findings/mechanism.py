"""Hypothesis 1, mechanism: do heavy-tailed inputs order costs, or does being in the MLP?

Seven projections have few distinct tails: q, k and v share an input, gate and up do. The tail
nearly repeats the kind (`fp4scope.kinds`: attention, an MLP, in hybrids and mixtures also others;
experts count as MLP). So a rank correlation of costs with either says little, however narrow its
interval over windows: of all orders of the seven with a Qwen model's tails, 26% go better with the
tail and 67% with the kind. What can be tested is whether, within MLP and within attention,
projections with heavier tails cost more. If tails said nothing beyond the kind, each order within
the kinds would be as likely as any other: an exact permutation test, whatever the costs' noise.

Supported: at most 5% of the orders within kinds fit the tails as well as the one measured, in every
format and direction. Contradicted: at most 5% fit them as badly. Else the projections cannot tell.

The layers of one projection say more, and no verdict: neighbouring blocks are alike, so their order
is no random one. Their rank correlation within projections stands in the evidence.
"""

from collections import defaultdict
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np

from fp4scope.design import Unit
from fp4scope.kinds import FEED_FORWARD
from fp4scope.ledger import Results
from fp4scope.stats.findings.families import Members, families
from fp4scope.stats.findings.projections import kind_of
from fp4scope.stats.findings.verdicts import Column, Form, Hypothesis, Verdict, span
from fp4scope.stats.inference.agreement import DRAWS, FEWEST_UNITS, interval_of_draws
from fp4scope.stats.inference.dependence import drawn_means
from fp4scope.stats.inference.intervals import MIN_WINDOWS
from fp4scope.stats.inference.multiple import SIGNIFICANCE
from fp4scope.stats.inference.permutations import permutation_test, rank_fit
from fp4scope.stats.inference.series import Floats, Integers, Series, aligned
from fp4scope.table import Interval, Table

_COLUMNS = (
    "format", "precision", "direction", "level", "units", "rho_tail", "rho_tail_low",
    "rho_tail_high", "rho_mlp", "rho_mlp_low", "rho_mlp_high", "rho_within", "rho_within_low",
    "rho_within_high", "p_more", "p_less", "p_least", "orders", "windows",
)  # fmt: skip
_SHOWN = (
    Column("format, direction", "", Form.FAMILY),
    Column("level", "level"),
    Column("units", "units"),
    Column("with max / P99.9", "rho_tail", Form.CORRELATION),
    Column("with being in the MLP", "rho_mlp", Form.CORRELATION),
    Column("with max / P99.9, within", "rho_within", Form.CORRELATION),
    Column("p, tails cost more", "p_more", Form.PROBABILITY),
    Column("p, tails cost less", "p_less", Form.PROBABILITY),
    Column("least p there can be", "p_least", Form.PROBABILITY),
    Column("windows", "windows"),
)
_CLAIM = (
    "Projection sensitivity to FP4 is primarily determined by activation tail-heaviness rather "
    "than by whether the projection belongs to MLP or attention."
)
_EXPLANATION = (
    "Rank correlations of the measured costs with max / P99.9 of the input (for a projection the "
    "mean over its blocks), with whether the unit is in an MLP or expert, and again with max / "
    "P99.9, within: projections among those of their kind, layers among those of their projection. "
    "Each is divided by the most that its ties allow, so that 1 is an order that fits. 95% "
    "intervals are over windows and say nothing of other projections. P: the share of all orders "
    "of projections within their kinds (MLP, attention and others) that fit max / P99.9 as well, "
    "or as badly (an exact permutation test). Supported: at most 5% fit as well in every format "
    "and direction. Contradicted: at most 5% fit as badly in every one. Layers have no p, since "
    "neighbouring blocks are alike."
)


def mechanism(results: Results) -> Hypothesis:
    tail = _tails(results)
    rows = [
        {**family.labels, "level": level, **found}
        for level in ("projections", "layers")
        for family in families(results, level)
        if (found := _row(results, family, level, tail))
    ]
    projections, layers = (
        [r for r in rows if r["level"] == of] for of in ("projections", "layers")
    )
    verdict, sentence = _verdict(
        projections, layers, _within_kinds(results), bool(results.activations)
    )
    return Hypothesis(
        name="Mechanism",
        claim=_CLAIM,
        verdict=verdict,
        sentence=f"{sentence}{_left_out(results)}",
        explanation=_EXPLANATION,
        columns=_SHOWN,
        evidence=Table(_COLUMNS, rows),
    )


def _tails(results: Results) -> Callable[[Unit], float | None]:
    """Max / P99.9 of what enters a layer, or of a projection the mean over its blocks."""
    by_layer = {(a.projection, a.block): a.ratio for a in results.activations if a.ratio}
    by_projection: dict[str, list[float]] = defaultdict(list)
    for (projection, _), ratio in by_layer.items():
        by_projection[projection].append(ratio)

    def tail(unit: Unit) -> float | None:
        if unit.block is not None:
            return by_layer.get((unit.name, unit.block))
        found = by_projection.get(unit.name)
        return fmean(found) if found else None

    return tail


def _row(
    results: Results, family: Members, level: str, tail: Callable[[Unit], float | None]
) -> dict[str, Any] | None:
    """How the costs of a family go with tails and kinds; None where that cannot be said."""
    known: list[tuple[Series, float, str, str | None]] = []
    for unit, series in zip(family.units, family.series, strict=True):
        ratio, kind = tail(unit), kind_of(results, unit.name)
        if ratio is not None and (kind is not None or level == "layers"):
            known.append((series, ratio, unit.name, kind))
    if len(known) < FEWEST_UNITS:
        return None
    series, ratios, names, kinds = zip(*known, strict=True)
    costs = aligned(series)[1]
    if len(costs) < MIN_WINDOWS:
        return None
    tails = np.array(ratios)
    everyone, strata = (
        np.zeros(len(known), np.int64),
        _numbered(names if level == "layers" else kinds),
    )
    row = {"units": len(known), "windows": len(costs)}
    row |= _fit(costs, "rho_tail", tails, everyone) | _fit(costs, "rho_within", tails, strata)
    if "rho_tail" not in row:
        return None
    if None not in kinds:
        row |= _fit(costs, "rho_mlp", np.array([float(k in FEED_FORWARD) for k in kinds]), everyone)
    if level == "projections":
        row |= vars(permutation_test(costs.mean(axis=0), tails, strata))
    return row


def _fit(costs: Floats, name: str, x: Floats, strata: Integers) -> dict[str, float | None]:
    """A rank correlation with its interval; nothing where `x` does not vary within strata."""
    rho = float(rank_fit(costs.mean(axis=0), x, strata))
    if np.isnan(rho):
        return {}
    ends = interval_of_draws(rho, rank_fit(drawn_means(costs, DRAWS), x, strata))
    return Interval(rho, *ends).columns(name)


def _numbered(names: tuple[str | None, ...]) -> Integers:
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names])


def _verdict(
    rows: list[dict[str, Any]],
    layers: list[dict[str, Any]],
    within_kinds: str,
    activations: bool,
) -> tuple[Verdict, str]:
    if not rows:
        missing = "projections in their kinds" if activations else "activation statistics"
        return Verdict.UNDECIDED, f"This needs measured projections and {missing}."
    within = [row["rho_within"] for row in layers if "rho_within" in row]
    beside = f" Among the layers of one projection it is {span(within)}." if within else ""
    tail = span(row["rho_tail"] for row in rows)
    said = f"The rank correlation of costs with max / P99.9 is {tail}.{beside}"
    for verdict, name, way in (
        (Verdict.SUPPORTED, "p_more", "more"),
        (Verdict.CONTRADICTED, "p_less", "less"),
    ):
        most = max(row[name] for row in rows)
        if most <= SIGNIFICANCE:
            return verdict, (
                f"Within {within_kinds}, projections with heavier tails cost {way} in every format "
                f"and direction (p at most {most:.2g}). {said}"
            )
    first = rows[0]
    fits = span((100 * row["p_more"] for row in rows), 0)
    return Verdict.UNDECIDED, (
        f"{first['units']} projections cannot tell: within {within_kinds} they have "
        f"{first['orders']:,} orders, and {fits}% of these fit max / P99.9 as well as the measured "
        f"one. At most 5% would decide; the order that fits best has "
        f"{100 * first['p_least']:.2g}%. {said}"
    )


def _left_out(results: Results) -> str:
    """The projections of no kind that is known."""
    unknown = [name for name, kind in _kinds(results).items() if kind is None]
    return f" Left out, as of no known kind: {', '.join(unknown)}." if unknown else ""


def _within_kinds(results: Results) -> str:
    """Such as `MLP and within attention`."""
    found = dict.fromkeys(kind for kind in _kinds(results).values() if kind is not None)
    return " and within ".join(sorted(found))


def _kinds(results: Results) -> dict[str, str | None]:
    """Of every projection that was measured."""
    units = [unit.name for family in families(results, "projections") for unit in family.units]
    return {name: kind_of(results, name) for name in units}
