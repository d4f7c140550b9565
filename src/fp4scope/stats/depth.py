"""Costs over depth: in which block each component costs most, and how sure that is.

The probability that the most costly block of endless text lies in a third of the depth is the
share of draws in which it does; the draws are those of `ranks`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fp4scope.records import Results, Table
from fp4scope.stats.dependence import drawn_means
from fp4scope.stats.families import Family, families
from fp4scope.stats.intervals import MIN_WINDOWS, mean
from fp4scope.stats.multiple import SIGNIFICANCE, holm, p_value
from fp4scope.stats.ranks import DRAWS
from fp4scope.stats.windows import Floats

THIRDS = ("early", "middle", "final")
DEPTH_COLUMNS = (
    "format", "operands", "direction", "component", "peak_block", "peak_third", "peak_nll",
    "peak_p_holm", "p_early", "p_middle", "p_final", "share_early", "share_early_low",
    "share_early_high", "share_final", "share_final_low", "share_final_high", "windows",
)  # fmt: skip
ALL = ""
"""The component of a row that adds up all of a block's cells."""


def depth_table(results: Results) -> Table:
    """A row for every component's curve over depth, and for all components summed (`ALL`).

    Nothing where a block was not measured, or on too few windows.
    """
    blocks = results.model.get("blocks") or 0
    rows: list[dict[str, Any]] = []
    for family in families(results, "cells"):
        rows += _curves(family, blocks, anytime=results.anytime)
    return Table(DEPTH_COLUMNS, rows)


def _curves(family: Family, blocks: int, *, anytime: bool) -> Iterator[dict[str, Any]]:
    """A row for the sum of each block's cells, and one for each component over depth."""
    costs = family.costs
    if len(costs) < MIN_WINDOWS:
        return
    depth = np.array([unit.block for unit in family.units])
    names = [unit.unit for unit in family.units]
    p_holm = holm([p_value(mean(column), anytime=anytime) for column in costs.T])
    drawn = drawn_means(costs, DRAWS)
    whole = set(range(blocks))
    curves = {c: [i for i, name in enumerate(names) if name == c] for c in dict.fromkeys(names)}
    curves = {c: places for c, places in curves.items() if {*depth[places].tolist()} == whole}
    if blocks < len(THIRDS) or not curves:
        return
    every = [i for places in curves.values() for i in places]
    for component, places in {ALL: every, **curves}.items():
        summing = np.zeros((len(names), blocks))
        summing[places, depth[places]] = 1
        by_block, draws = costs.mean(axis=0) @ summing, drawn @ summing
        peak = int(by_block.argmax())
        row = {**family.labels, "component": component, "windows": len(costs)}
        row |= {"peak_block": peak, "peak_third": THIRDS[int(_third(peak, blocks))]}
        row |= {"peak_nll": float(by_block[peak])}
        if component != ALL:
            row["peak_p_holm"] = p_holm[next(i for i in places if depth[i] == peak)]
        where = _third(draws.argmax(axis=1), blocks)
        row |= {f"p_{name}": float((where == i).mean()) for i, name in enumerate(THIRDS)}
        yield row | _shares(by_block, draws)


def _shares(by_block: Floats, draws: Floats) -> dict[str, float]:
    """What part of all blocks' cost the first and the last third have; none if it may be zero."""
    totals = draws.sum(axis=1)
    tail = SIGNIFICANCE / 2
    if np.quantile(totals, tail) <= 0:
        return {}
    third = _third(np.arange(len(by_block)), len(by_block))
    found = {}
    for i, name in ((0, "early"), (2, "final")):
        shares = draws[:, third == i].sum(axis=1) / totals
        low, high = np.quantile(shares, [tail, 1 - tail])
        found |= {f"share_{name}": float(by_block[third == i].sum() / by_block.sum())}
        found |= {f"share_{name}_low": float(low), f"share_{name}_high": float(high)}
    return found


def _third(block: Any, blocks: int) -> Any:  # noqa: ANN401
    return 3 * block // blocks
