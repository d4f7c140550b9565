"""Costs over depth: in which block each projection costs most, and how sure that is.

A curve has the blocks that have its projection: hybrids, and models whose first blocks are dense,
do not have each in all. The sum of a block's layers has every projection that is there. A
projection of which not every layer was measured has no curve and is not in the sum.

**Where it peaks.** A block peaks if it costs more than each block of the other parts of the depth,
and more than nothing. Each of these is a one-sided paired test; that all of them hold has the
largest of their p-values (intersection-union). Some block of a part does, with the smallest of its
blocks' p-values times their number (Bonferroni). No draws and no ranks of means are in it: the
share of draws whose largest block lies in a part is no p-value. Where one final block tied with
sixteen others, that share was below 5% in 67% of studies (`benchmarks/hypotheses.py`).

Source: Berger 1982, Multiparameter hypothesis testing and acceptance sampling, Technometrics 24(4).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp4scope.ledger import Results
from fp4scope.stats.findings.families import Members, families
from fp4scope.stats.findings.projections import blocks_with
from fp4scope.stats.inference.dependence import drawn_means, standard_errors
from fp4scope.stats.inference.intervals import MIN_WINDOWS, mean
from fp4scope.stats.inference.multiple import SIGNIFICANCE, holm, one_sided_p_values, p_value
from fp4scope.stats.inference.ranks import DRAWS
from fp4scope.stats.inference.series import Floats, Integers
from fp4scope.table import Interval, Table

THIRDS = ("early", "middle", "final")
DEPTH_COLUMNS = (
    "format", "precision", "direction", "projection", "projections", "blocks", "peak_block",
    "peak_third", "peak_nll", "peak_p_holm", "p_before", "p_early", "p_final", "share_early",
    "share_early_low", "share_early_high", "share_final", "share_final_low", "share_final_high",
    "windows",
)  # fmt: skip
ALL = ""
"""The projection of a row that adds up all of a block's layers."""


def depth_table(results: Results) -> Table:
    """A row for every projection's curve over depth, and for all projections summed (`ALL`).

    Nothing on too few windows, or for fewer blocks than thirds.
    """
    depth, existing = results.model.get("blocks") or 0, blocks_with(results)
    rows: list[dict[str, Any]] = []
    if depth >= len(THIRDS):
        for family in families(results, "layers"):
            rows += _curves(family, existing, depth, anytime=results.anytime)
    return Table(DEPTH_COLUMNS, rows)


def _curves(
    family: Members, existing: Mapping[str, frozenset[int]], depth: int, *, anytime: bool
) -> Iterator[dict[str, Any]]:
    """A row for the sum of each block's layers, and one for each projection over depth."""
    costs = family.costs
    if len(costs) < MIN_WINDOWS:
        return
    p_holm = holm([p_value(mean(column), anytime=anytime) for column in costs.T])
    drawn = drawn_means(costs, DRAWS)
    curves = _places(family, existing)
    if not curves:
        return
    every = [place for places in curves.values() for place in places]
    for projection, places in {ALL: every, **curves}.items():
        columns, depths = np.array(places).T
        blocks, rows = np.unique(depths, return_inverse=True)
        summing = np.zeros((costs.shape[1], len(blocks)))
        summing[columns, rows] = 1
        by_block, draws = costs.mean(axis=0) @ summing, drawn @ summing
        thirds, peak = _third(blocks, depth), int(by_block.argmax())
        row = {**family.labels, "projection": projection, "windows": len(costs)}
        row |= {"projections": len(curves) if projection == ALL else 1, "blocks": len(blocks)}
        row |= {"peak_block": int(blocks[peak]), "peak_third": THIRDS[thirds[peak]]}
        row |= {"peak_nll": float(by_block[peak])}
        if projection != ALL:
            row["peak_p_holm"] = p_holm[int(summing[:, peak].argmax())]
        sums = costs @ summing
        parts = {"before": thirds < 2, "early": thirds == 0, "final": thirds == 2}
        row |= {f"p_{name}": peak_p(sums, part, anytime=anytime) for name, part in parts.items()}
        yield row | _shares(by_block, draws, thirds)


def peak_p(costs: Floats, inside: NDArray[np.bool_], *, anytime: bool = False) -> float | None:
    """The p-value of a curve's peak lying inside a part of the depth, against that it does not.

    Args:
        costs: Windows by blocks.
        inside: Which blocks are inside.
        anytime: Whether it must hold at all numbers of windows at once.

    Returns:
        None where there is no block inside, or none outside.
    """
    if inside.all() or not inside.any():
        return None
    candidates = costs[:, inside]
    others = np.concatenate([costs[:, ~inside], np.zeros((len(costs), 1))], axis=1)
    gaps = candidates[:, :, None] - others[:, None, :]
    p = one_sided_p_values(gaps.mean(axis=0), standard_errors(gaps), len(costs), anytime=anytime)
    return float(min(1.0, candidates.shape[1] * p.max(axis=1).min()))


def _places(
    family: Members, existing: Mapping[str, frozenset[int]]
) -> dict[str, list[tuple[int, int]]]:
    """Column and block of every layer, by projection; only of those measured everywhere."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, unit in enumerate(family.units):
        if unit.block is not None:
            found[unit.name].append((i, unit.block))
    return {
        projection: places
        for projection, places in found.items()
        if {block for _, block in places} >= existing.get(projection, frozenset())
    }


def _shares(by_block: Floats, draws: Floats, thirds: Integers) -> dict[str, float | None]:
    """What part of all blocks' cost the first and the last third have; none if it may be zero."""
    totals = draws.sum(axis=1)
    tail = SIGNIFICANCE / 2
    if np.quantile(totals, tail) <= 0:
        return {}
    found: dict[str, float | None] = {}
    for i, name in ((0, "early"), (2, "final")):
        shares = draws[:, thirds == i].sum(axis=1) / totals
        ends = map(float, np.quantile(shares, [tail, 1 - tail]))
        share = float(by_block[thirds == i].sum() / by_block.sum())
        found |= Interval(share, *ends).columns(f"share_{name}")
    return found


def _third(blocks: Integers, depth: int) -> Integers:
    return np.asarray(3 * blocks // depth)
