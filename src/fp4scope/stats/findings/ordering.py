"""Hypothesis 2, ordering: do projections keep their order from one format to the other?

Formats are judged against each other in one direction and with the same operands. What restoring
and what isolating a projection costs are two quantities, so their orders are reported and not
judged. A pair of projections is told apart in both formats if both paired tests say so (the larger
of the two p-values, Holm over all pairs of all comparisons that are judged, 5%). It is reversed if
the two formats then order it in opposite ways. A reversal counts if in both formats it is larger
than `TOLERANCE` of the span from the most to the least costly projection there.

Contradicted: one reversal that counts. Supported: none, and in every comparison at least half of
all pairs are told apart in both formats. P-values are those of the study, so this holds for a
study that stopped when it looked good too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from fp4scope.ledger import Results
from fp4scope.stats.findings.families import Members, families
from fp4scope.stats.findings.verdicts import Column, Form, Hypothesis, Verdict, span
from fp4scope.stats.inference.agreement import FEWEST_UNITS, agreement
from fp4scope.stats.inference.intervals import MIN_WINDOWS
from fp4scope.stats.inference.multiple import SIGNIFICANCE, holm
from fp4scope.stats.inference.series import Floats, aligned
from fp4scope.stats.inference.tiers import pair_tests
from fp4scope.table import Table

TOLERANCE = 0.05
"""Of the span of costs, up to which a reversal does not count."""
_COLUMNS = (
    "first", "second", "precision", "judged", "units", "rho", "rho_low", "rho_high", "pairs",
    "separated", "reversed", "counted", "largest_first", "largest_second", "windows",
)  # fmt: skip
_SHOWN = (
    Column("one", "first"),
    Column("other", "second"),
    Column("precision", "precision"),
    Column("judged", "judged"),
    Column("rank correlation", "rho", Form.CORRELATION),
    Column("pairs", "pairs"),
    Column("differ in both", "separated"),
    Column("of these reversed", "reversed"),
    Column("of these beyond the tolerance", "counted"),
    Column("largest reversal, millinats in the one", "largest_first", Form.MILLI),
    Column("and in the other", "largest_second", Form.MILLI),
    Column("windows", "windows"),
)
_CLAIM = (
    "When projections are isolated and quantized one at a time, their sensitivity ranking remains "
    "consistent across experiments."
)
_EXPLANATION = (
    "Two orders of the same projections, with the rank correlation and its 95% interval over "
    "windows. Of all pairs of projections: how many differ significantly both times (Holm at 5% "
    "over all pairs of all comparisons that are judged), how many of those stand in one order here "
    "and in the other there, and how many of these by more than "
    f"{TOLERANCE:.0%} of the span from the most to the least costly projection both times. Judged "
    "are two formats in one direction; keep and only measure two things. Contradicted: one "
    "reversal beyond that tolerance. Supported: none, and at least half of all pairs differ in "
    "every comparison."
)


@dataclass(frozen=True)
class _Pairs:
    """Two orders of the same projections; arrays over pairs."""

    names: tuple[tuple[str, str], ...]
    gaps: tuple[Floats, Floats]
    spans: tuple[float, float]
    p: Floats

    def significant(self, p_holm: Sequence[float | None]) -> np.ndarray:
        return np.array([p is not None and p <= SIGNIFICANCE for p in p_holm])

    @property
    def turned(self) -> np.ndarray:
        return np.sign(self.gaps[0]) != np.sign(self.gaps[1])

    @property
    def sizes(self) -> Floats:
        """The smaller of both gaps, each in parts of its span."""
        shares = [np.abs(gap) / whole for gap, whole in zip(self.gaps, self.spans, strict=True)]
        return np.minimum(*shares)


def ordering(results: Results) -> Hypothesis:
    found = [
        (judged, *compared)
        for one, other in combinations(families(results, "projections"), 2)
        if one.family.setting.operands == other.family.setting.operands
        and (compared := _compared(one, other, anytime=results.anytime))
        for judged in [_judged(one.labels, other.labels)]
    ]
    together = iter(holm([float(p) for judged, _, pairs in found if judged for p in pairs.p]))
    rows, swaps = [], []
    for judged, row, pairs in found:
        p_holm = [next(together) for _ in pairs.p] if judged else holm(pairs.p.tolist())
        counts, said = _reversals(row, pairs, p_holm)
        rows.append({**row, "judged": "yes" if judged else "no", **counts})
        swaps += said if judged else []
    verdict, sentence = _verdict([row for row in rows if row["judged"] == "yes"], swaps)
    return Hypothesis(
        name="Ordering",
        claim=_CLAIM,
        verdict=verdict,
        sentence=sentence,
        explanation=_EXPLANATION,
        columns=_SHOWN,
        evidence=Table(_COLUMNS, rows),
    )


def _judged(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Two formats in one direction are; keep and only measure two things."""
    return one["direction"] == other["direction"] and one["format"] != other["format"]


def _compared(
    one: Members, other: Members, *, anytime: bool
) -> tuple[dict[str, Any], _Pairs] | None:
    """Two families over the projections of both; None for too few of them, or of windows."""
    places = [{unit.name: i for i, unit in enumerate(side.units)} for side in (one, other)]
    names = [name for name in places[0] if name in places[1]]
    if len(names) < FEWEST_UNITS:
        return None
    sides = zip((one, other), places, strict=True)
    series = [family.series[at[name]] for family, at in sides for name in names]
    _, both = aligned(series)
    first, second = both[:, : len(names)], both[:, len(names) :]
    found = agreement(first, second) if len(both) >= MIN_WINDOWS else None
    if found is None:
        return None
    (gaps, p), (others, q) = (pair_tests(side, anytime=anytime) for side in (first, second))
    precisions = dict.fromkeys(family.labels["precision"] for family in (one, other))
    row = {"first": one.name, "second": other.name, "precision": "/".join(precisions)}
    row |= {"units": len(names), "windows": len(both), "pairs": len(p)}
    row |= found.rho.columns("rho")
    spans = [float(np.ptp(side.mean(axis=0))) for side in (first, second)]
    pairs = tuple(combinations(names, 2))
    return row, _Pairs(pairs, (gaps, others), (spans[0], spans[1]), np.maximum(p, q))


def _reversals(
    row: dict[str, Any], pairs: _Pairs, p_holm: Sequence[float | None]
) -> tuple[dict[str, Any], list[tuple[float, str]]]:
    """The counts of a row, and each reversal that counts: its size, and what it says."""
    significant = pairs.significant(p_holm)
    turned = significant & pairs.turned
    beyond = turned & (pairs.sizes > TOLERANCE)
    counts: dict[str, Any] = {"separated": int(significant.sum()), "reversed": int(turned.sum())}
    counts["counted"] = int(beyond.sum())
    if turned.any():
        largest = int(np.where(turned, pairs.sizes, -1.0).argmax())
        here, there = (float(abs(gap[largest])) for gap in pairs.gaps)
        counts |= {"largest_first": here, "largest_second": there}
    said = []
    for i in np.flatnonzero(beyond):
        more, less = pairs.names[i] if pairs.gaps[0][i] > 0 else pairs.names[i][::-1]
        here, there = (1e3 * abs(gap[i]) for gap in pairs.gaps)
        said.append(
            (
                float(pairs.sizes[i]),
                f"{more} costs {here:.3g} millinats more than {less} under {row['first']}, and "
                f"{there:.3g} less under {row['second']}",
            )
        )
    return counts, said


def _verdict(rows: list[dict[str, Any]], swaps: list[tuple[float, str]]) -> tuple[Verdict, str]:
    if not rows:
        return (
            Verdict.UNDECIDED,
            "This needs at least three projections measured in two formats in one direction.",
        )
    pairs, turned = (sum(row[name] for row in rows) for name in ("pairs", "reversed"))
    within = f"{TOLERANCE:.0%} of the span of costs"
    said = (
        f"rank correlations are {span(row['rho'] for row in rows)} over {len(rows)} "
        f"comparison{'s' if len(rows) > 1 else ''} of two formats in one direction"
    )
    if swaps:
        return (
            Verdict.CONTRADICTED,
            f"Of {pairs} pairs of projections {turned} are significantly reversed, {len(swaps)} of "
            f"them by more than {within} (the largest: {max(swaps)[1]}); {said}.",
        )
    small = f"; {turned} significant reversals are smaller" if turned else ""
    none = f"No pair of projections is significantly reversed by more than {within}{small}"
    if all(2 * row["separated"] >= row["pairs"] for row in rows):
        return Verdict.SUPPORTED, f"{none}; {said}."
    return Verdict.UNDECIDED, f"{none}, but too few pairs differ significantly; {said}."
