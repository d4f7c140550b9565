"""Hypothesis 4, localization: does a projection's cost peak elsewhere than in the final blocks?

The p-values are those of `depth`. Supported: for one curve at least the peak is significantly
before the final third (Holm over all curves, 5%). Contradicted: of the curves whose largest layer
is significant, which must be at least half of all, every one peaks significantly in the final
third (5% each; all of them must, so nothing is adjusted).

That early blocks are sensitive has its own test, the peak in the first third. That this is so
particularly under MXFP4 has none.
"""

from typing import Any

from fp4scope.ledger import Results
from fp4scope.stats.findings.depth import ALL, DEPTH_COLUMNS, depth_table
from fp4scope.stats.findings.families import families, named
from fp4scope.stats.findings.verdicts import Column, Form, Hypothesis, Verdict
from fp4scope.stats.inference.multiple import SIGNIFICANCE, holm
from fp4scope.table import Interval, Table

_SHOWN = (
    Column("format, direction", "", Form.FAMILY),
    Column("projection", "curve"),
    Column("blocks", "blocks"),
    Column("block that costs most", "peak_block"),
    Column("millinats there", "peak_nll", Form.MILLI),
    Column("p, peak before the final third", "p_before_holm", Form.PROBABILITY),
    Column("p, peak in the first third", "p_early_holm", Form.PROBABILITY),
    Column("p, peak in the final third", "p_final", Form.PROBABILITY),
    Column("share of the first third", "share_early", Form.SHARE),
    Column("share of the final third", "share_final", Form.SHARE),
    Column("windows", "windows"),
)
_CLAIM = (
    "FP4 sensitivity does not always peak in the final blocks; early-block sensitivity can "
    "emerge, particularly under MXFP4."
)
_EXPLANATION = (
    "For each projection, and for all of a block's layers added up: the block that costs most, "
    "with what it costs, over the blocks that have it. P-values are one-sided paired tests: "
    "that a block inside the named part of the depth costs more than nothing and more than every "
    "block outside it (the largest p of these, Bonferroni over the blocks inside; the first two "
    "columns Holm over the projections' curves). Shares of the summed cost, with 95% intervals, "
    "where that sum is significantly positive. Supported: a curve that peaks before the final "
    "third at 5%. Contradicted: at least half of all curves have a largest layer that is "
    "significant, and each of these peaks in the final third at 5%."
)


def localization(results: Results) -> Hypothesis:
    depth = depth_table(results)
    curves = [row for row in depth if row["projection"] != ALL and row["p_before"] is not None]
    for name in ("before", "early"):
        adjusted = holm([row[f"p_{name}"] for row in curves])
        for row, p in zip(curves, adjusted, strict=True):
            row[f"p_{name}_holm"] = p
    rows = [row | {"curve": _curve(row)} for row in depth]
    verdict, sentence = _verdict(curves, [row for row in depth if row["projection"] == ALL])
    return Hypothesis(
        name="Block localization",
        claim=_CLAIM,
        verdict=verdict,
        sentence=f"{sentence}{_left_out(results, depth)}",
        explanation=_EXPLANATION,
        columns=_SHOWN,
        evidence=Table((*DEPTH_COLUMNS, "p_before_holm", "p_early_holm", "curve"), rows),
    )


def _curve(row: dict[str, Any]) -> str:
    return row["projection"] if row["projection"] != ALL else f"all {row['projections']}, summed"


def _verdict(curves: list[dict[str, Any]], sums: list[dict[str, Any]]) -> tuple[Verdict, str]:
    if not curves:
        return (
            Verdict.UNDECIDED,
            "This needs layers measured in every block that has the projection, on 8 windows or "
            "more, with blocks in and before the final third.",
        )
    costly = [row for row in curves if _significant(row["peak_p_holm"]) and row["peak_nll"] > 0]
    before = [row for row in curves if _significant(row["p_before_holm"])]
    early = sum(_significant(row["p_early_holm"]) for row in curves)
    final = sum(_significant(row["p_final"]) for row in costly)
    rest = f"; {early} significantly in the first third{_early_shares(sums)}. "
    rest += "Whether this is so particularly under MXFP4 is not tested."
    if before:
        strongest = sorted(before, key=lambda row: -row["peak_nll"])[:3]
        where = "; ".join(
            f"{r['projection']} at block {r['peak_block']} under {named(r)}" for r in strongest
        )
        return (
            Verdict.SUPPORTED,
            f"{len(before)} of {len(curves)} curves over depth peak significantly before the final "
            f"third of the blocks ({where}){rest}",
        )
    if final == len(costly) and 2 * len(costly) >= len(curves):
        return (
            Verdict.CONTRADICTED,
            f"All {final} curves over depth, of {len(curves)}, whose largest layer is "
            f"significant peak significantly in the final third of the blocks{rest}",
        )
    return (
        Verdict.UNDECIDED,
        f"Of {len(curves)} curves over depth {len(costly)} have a largest layer that is "
        f"significant; {final} of these peak significantly in the final third, and none before "
        f"it{rest}",
    )


def _significant(p: float | None) -> bool:
    return p is not None and p <= SIGNIFICANCE


def _early_shares(sums: list[dict[str, Any]]) -> str:
    shares = []
    for row in sums:
        ends = Interval.of(row, "share_early")
        if None not in ends:
            share, low, high = (f"{end:.0%}".replace("-", "\u2212") for end in ends)
            shares.append(f"{share} ({low} to {high}) of the summed cost under {named(row)}")
    return f"; the first third has {'; '.join(shares)}" if shares else ""


def _left_out(results: Results, depth: Table) -> str:
    """Projections with layers of which some were not measured."""
    units = [unit.name for family in families(results, "layers") for unit in family.units]
    missing = [u for u in dict.fromkeys(units) if u not in depth["projection"]]
    if not missing or not len(depth):
        return ""
    return f" Left out, as not measured in every block that has them: {', '.join(missing)}."
