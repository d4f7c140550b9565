"""Whether two results order the same units alike: components, cells, and the depth of a model.

Spearman's rho with an interval over windows (`agreement`). Noise lowers it, so beside it
stands how well each order repeats on other text (`own`: one half of a result's windows against the
other): where that is low too, a low rho says little of the models. The interval is over windows,
not over components: those are all there are.

With few units rho jumps, and the basic interval that serves for many is too narrow; with many the
draws' quantiles lie too low. So the interval here holds both. In a simulation (40 and 30 windows of
other text, 60 studies, heavy-tailed costs that correlate at 0, 0.7 or 0.97, the noise of a mean
0.1, 0.3 or 0.6 of their spread; `benchmarks/intervals.py --ranks`) it held the rank correlation
without noise in

| units | 4 | 7 | 28 | 100 |
| --- | --- | --- | --- | --- |
| noise 0.1 | 97-100% | 97-98% | 95-98% | 95-100% |
| noise 0.3 | 98-100% | 92-97% | 90-97% | 90-97% |
| noise 0.6 | 95-100% | 88-93% | 60-90% | 23-92% |
| the basic one | 58-87% | 65-85% | 60-97% | 23-98% |

so where an order hardly repeats, as that of cells on little text, it is too narrow, and too low.

Of components the pairs are counted besides. A pair is `same` if both results tell its two members
apart and agree which costs more, `reversed` if they tell them apart and disagree, else `open`
(the larger of the two p-values, Holm over all pairs, 5%). Whether model size changes the order is
decided by `reversed` pairs; `open` ones decide nothing.

**Depth.** Models of as many blocks are compared cell by cell. Else each block covers its share of
the depth from 0 to 1, the depth is cut into equal parts, at most `PARTS`, and a part's cost is the
mean of its blocks, weighted by how much of it they cover. `depth` is the mean over components.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp4scope.records import Results, Table
from fp4scope.stats.agreement import FEWEST_UNITS, agreement, rho_apart
from fp4scope.stats.comparable import matched_formats, same_tokens
from fp4scope.stats.intervals import MIN_WINDOWS
from fp4scope.stats.multiple import SIGNIFICANCE, holm
from fp4scope.stats.tiers import pair_tests
from fp4scope.stats.windows import Floats, Series, aligned, costs

PARTS = 10
ORDER_COLUMNS = (
    "format", "format_other", "operands", "direction", "level", "units", "parts",
    "rho", "rho_low", "rho_high", "rho_apart", "own_one", "own_other",
    "same", "reversed", "open", "paired", "windows_one", "windows_other",
)  # fmt: skip

_Places = dict[tuple[str, int | None], Series]
"""Costs of the units of a family, by unit and block."""


def order_table(one: Results, other: Results) -> Table:
    """A row for each format, operands, direction and level that both have measured."""
    pair, anytime = same_tokens(one, other), one.anytime or other.anytime
    formats, theirs = matched_formats(one, other), _families(other)
    depths = one.model.get("blocks", 0), other.model.get("blocks", 0)
    rows: list[dict[str, Any]] = []
    for (fmt, operands, direction), levels in _families(one).items():
        opposite = theirs.get((formats.get(fmt, ""), operands, direction), {})
        names = {"format": fmt, "format_other": formats.get(fmt)}
        names |= {"operands": operands, "direction": direction}
        for level in (name for name in levels if name in opposite):
            for lists in _lists(level, levels[level], opposite[level], depths, pair):
                row = _row(lists, pair, anytime)
                if row is not None:
                    rows.append(names | row)
    return Table(ORDER_COLUMNS, rows)


def _families(results: Results) -> dict[tuple[str, str, str], dict[str, _Places]]:
    """By format, operands and direction, then by level."""
    found: dict[tuple[str, str, str], dict[str, _Places]] = {}
    for variant, series in costs(results).items():
        if variant.is_control:
            continue
        family = found.setdefault((variant.format, variant.operands, variant.direction), {})
        family.setdefault(variant.level, {})[variant.unit, variant.block] = series
    return found


@dataclass(frozen=True)
class _Lists:
    """The costs of the same units in two results, each windows by units."""

    level: str
    one: Floats
    other: Floats
    parts: int | None = None
    """Of the depth; None where units are compared as they are."""


def _lists(
    level: str, mine: _Places, theirs: _Places, depths: tuple[int, int], pair: bool
) -> Iterator[_Lists]:
    shared = [place for place in mine if place in theirs]
    layered = level in ("cells", "blocks")
    if shared and (not layered or depths[0] == depths[1]):
        one, other = _matrices(mine, theirs, shared, shared, pair)
        yield _Lists(level, one, other)
    whole = [
        unit
        for unit in dict.fromkeys(unit for unit, _ in mine)
        if all(
            (unit, block) in side
            for side, depth in zip((mine, theirs), depths, strict=True)
            for block in range(depth)
        )
    ]
    if not layered or not whole or not all(depths):
        return
    here, there = ([(unit, block) for unit in whole for block in range(d)] for d in depths)
    parts = None if depths[0] == depths[1] else min(PARTS, *depths)
    one, other = (
        matrix.reshape(len(matrix), len(whole), depth) @ depth_weights(depth, parts or depth).T
        for matrix, depth in zip(_matrices(mine, theirs, here, there, pair), depths, strict=True)
    )
    if parts is not None:
        yield _Lists(level, one.reshape(len(one), -1), other.reshape(len(other), -1), parts)
    if len(whole) > 1:
        yield _Lists("depth", one.mean(axis=1), other.mean(axis=1), parts)


def _matrices(
    mine: _Places,
    theirs: _Places,
    my_places: Sequence[tuple[str, int | None]],
    their_places: Sequence[tuple[str, int | None]],
    pair: bool,
) -> tuple[Floats, Floats]:
    """Windows by units, of both; where windows pair, over those that all have seen."""
    one = [mine[place] for place in my_places]
    other = [theirs[place] for place in their_places]
    if not pair:
        return aligned(one)[1], aligned(other)[1]
    _, both = aligned([*one, *other])
    return both[:, : len(one)], both[:, len(one) :]


def _row(lists: _Lists, pair: bool, anytime: bool) -> dict[str, Any] | None:
    """What is known of two orders; None where there are too few units or windows for one."""
    one, other = lists.one, lists.other
    if one.shape[1] < FEWEST_UNITS or not (len(one) and len(other)):
        return None
    found = agreement(one, other, paired=pair, wide=True)
    if found is None:
        return None
    row: dict[str, Any] = {"level": lists.level, "units": one.shape[1], "parts": lists.parts}
    row |= {"rho": found.rho, "rho_low": found.low, "rho_high": found.high}
    row |= {"rho_apart": found.apart, "own_one": rho_apart(one, one)}
    row |= {"own_other": rho_apart(other, other), "paired": pair}
    row |= {"windows_one": len(one), "windows_other": len(other)}
    pairs = pair_orders(one, other, anytime=anytime) if lists.level == "components" else None
    return row | (vars(pairs) if pairs else {})


@dataclass(frozen=True)
class PairOrders:
    """How many pairs of units both results order alike, order the other way, or leave open."""

    same: int
    reversed: int
    open: int


def pair_orders(one: Floats, other: Floats, *, anytime: bool = False) -> PairOrders | None:
    """The pairs of the columns of both; None below `MIN_WINDOWS` windows."""
    if min(len(one), len(other)) < MIN_WINDOWS:
        return None
    (mine, p), (theirs, q) = (pair_tests(side, anytime=anytime) for side in (one, other))
    adjusted = np.array(holm(np.maximum(p, q).tolist()), np.float64)
    agree, decided = np.sign(mine) == np.sign(theirs), adjusted <= SIGNIFICANCE
    same, turned = int((decided & agree).sum()), int((decided & ~agree).sum())
    return PairOrders(same, turned, len(adjusted) - same - turned)


def depth_weights(blocks: int, parts: int) -> Floats:
    """How much of each part of the depth each block covers: parts by blocks, rows sum to 1.

    Example:
        >>> depth_weights(3, 2).round(2).tolist()
        [[0.67, 0.33, 0.0], [0.0, 0.33, 0.67]]
    """
    edges, cuts = np.arange(blocks + 1) / blocks, np.arange(parts + 1) / parts
    low = np.maximum(cuts[:-1, None], edges[None, :-1])
    high = np.minimum(cuts[1:, None], edges[None, 1:])
    return np.maximum(high - low, 0) * parts
