"""Whether two results order the same units alike: projections, layers, and the depth of a model.

Spearman's rho with an interval over windows (`agreement`). Noise lowers it, so beside it
stands how well each order repeats on other text (`own`: one half of a result's windows against the
other): where that is low too, a low rho says little of the models. The interval is over windows,
not over projections: those are all there are.

The interval is that of `agreement`. In a simulation (40 and 30 windows of other text, 60 studies,
heavy-tailed costs that correlate at 0, 0.7 or 0.97, the noise of a mean 0.1, 0.3 or 0.6 of their
spread; `benchmarks/intervals.py --ranks`) it held the rank correlation without noise in

| units | 4 | 7 | 28 | 100 |
| --- | --- | --- | --- | --- |
| noise 0.1 | 97-100% | 97-98% | 95-98% | 95-100% |
| noise 0.3 | 98-100% | 92-97% | 90-97% | 90-97% |
| noise 0.6 | 95-100% | 88-93% | 60-90% | 23-92% |
| mirrored quantiles alone, any noise | 58-87% | 65-85% | 60-97% | 23-98% |

so where an order hardly repeats, as that of layers on little text, it is too narrow, and too low.

Of projections the pairs are counted besides. A pair is `same` if both results tell its two members
apart and agree which costs more, `reversed` if they tell them apart and disagree, else `open`
(the larger of the two p-values, Holm over all pairs, 5%). Whether model size changes the order is
decided by `reversed` pairs; `open` ones decide nothing.

**Depth.** Models of as many blocks are compared layer by layer. Else each block covers its share of
the depth from 0 to 1, the depth is cut into equal parts, at most `PARTS`, and a part's cost is the
mean of its blocks that have the projection, weighted by how much of it they cover. `depth` is what
all projections of both outputs cost together in a block or part; a projection that a block does
not have adds nothing there. A projection of which not every layer was measured is in neither, nor
is one that has the same name in both and belongs to another kind of module (`fp4scope.kinds`).
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp4scope.ledger import Results
from fp4scope.stats.between.comparable import matched_formats, same_tokens
from fp4scope.stats.findings.pairing import costs
from fp4scope.stats.findings.projections import blocks_with, kind_of
from fp4scope.stats.inference.agreement import FEWEST_UNITS, agreement, rho_apart
from fp4scope.stats.inference.intervals import MIN_WINDOWS
from fp4scope.stats.inference.multiple import SIGNIFICANCE, holm
from fp4scope.stats.inference.series import Floats, Series, aligned
from fp4scope.stats.inference.tiers import pair_tests
from fp4scope.table import Table

PARTS = 10
ORDER_COLUMNS = (
    "format", "format_other", "precision", "direction", "level", "units", "parts",
    "rho", "rho_low", "rho_high", "rho_apart", "own_one", "own_other",
    "same", "reversed", "open", "paired", "windows_one", "windows_other",
)  # fmt: skip

_Places = dict[tuple[str, int | None], Series]
"""Costs of the units of a family, by unit and block."""


def order_table(one: Results, other: Results) -> Table:
    """A row for each format, precision, direction and level that both have measured."""
    pair, anytime = same_tokens(one, other), one.anytime or other.anytime
    unlike = _unlike(one, other)
    formats, theirs = matched_formats(one, other), _families(other, unlike)
    models = _Model.of(one), _Model.of(other)
    rows: list[dict[str, Any]] = []
    for (fmt, precision, direction), levels in _families(one, unlike).items():
        opposite = theirs.get((formats.get(fmt, ""), precision, direction), {})
        names = {"format": fmt, "format_other": formats.get(fmt)}
        names |= {"precision": precision, "direction": direction}
        for level in (name for name in levels if name in opposite):
            for lists in _lists(level, levels[level], opposite[level], models, pair):
                row = _row(lists, pair, anytime)
                if row is not None:
                    rows.append(names | row)
    return Table(ORDER_COLUMNS, rows)


def _unlike(one: Results, other: Results) -> set[str]:
    """Projections of one name that are known to be of different kinds."""
    names = set(one.sites.projections) & set(other.sites.projections)
    kinds = {name: {kind_of(one, name), kind_of(other, name)} - {None} for name in names}
    return {name for name, known in kinds.items() if len(known) > 1}


def _families(
    results: Results, without: Set[str]
) -> dict[tuple[str, str, str], dict[str, _Places]]:
    """By format, precision and direction, then by level; without some projections."""
    found: dict[tuple[str, str, str], dict[str, _Places]] = {}
    for contrast, series in costs(results).items():
        unit, labels = contrast.unit, contrast.labels
        if unit is not None and unit.name not in without:
            name = labels["format"], labels["precision"], labels["direction"]
            levels = found.setdefault(name, {})
            levels.setdefault(unit.level, {})[unit.name, unit.block] = series
    return found


@dataclass(frozen=True)
class _Lists:
    """The costs of the same units in two results, each windows by units."""

    level: str
    one: Floats
    other: Floats
    parts: int | None = None
    """Of the depth; None where units are compared as they are."""


@dataclass(frozen=True)
class _Model:
    """How many blocks a model has, and which of them have each projection."""

    depth: int
    blocks: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, results: Results) -> "_Model":
        return cls(results.model.get("blocks") or 0, blocks_with(results))

    def measured(self, unit: str, places: _Places) -> list[int]:
        """The blocks that have a unit, in order; none where not all of them were measured."""
        found = sorted(block for of, block in places if of == unit and block is not None)
        return found if set(found) >= self.blocks.get(unit, frozenset()) else []


def _lists(
    level: str, mine: _Places, theirs: _Places, models: tuple[_Model, _Model], pair: bool
) -> Iterator[_Lists]:
    shared = [place for place in mine if place in theirs]
    depths = models[0].depth, models[1].depth
    layered = level in ("layers", "blocks")
    if shared and (not layered or depths[0] == depths[1]):
        one, other = _matrices(mine, theirs, shared, shared, pair)
        yield _Lists(level, one, other)
    sides = list(zip(models, (mine, theirs), strict=True))
    blocks = {
        unit: [model.measured(unit, places) for model, places in sides]
        for unit in dict.fromkeys(unit for unit, _ in mine)
    }
    whole = {unit: both for unit, both in blocks.items() if all(both)}
    if not layered or not whole or not all(depths):
        return
    here, there = ([(u, b) for u, both in whole.items() for b in both[side]] for side in (0, 1))
    parts = None if depths[0] == depths[1] else min(PARTS, *depths)
    profiles = [
        _profiles(matrix, places, depth, parts or depth)
        for matrix, places, depth in zip(
            _matrices(mine, theirs, here, there, pair), (here, there), depths, strict=True
        )
    ]
    units, sums = zip(*profiles, strict=True)
    if parts is not None:
        one, other = _shared_columns(*units)
        yield _Lists(level, one, other, parts)
    if len(whole) > 1:
        one, other = _shared_columns(*sums)
        yield _Lists("depth", one, other, parts)


def _profiles(
    costs: Floats, places: Sequence[tuple[str, int]], depth: int, parts: int
) -> tuple[Floats, Floats]:
    """What each unit costs in each part of the depth, and all of them together.

    Args:
        costs: Windows by places.
        places: Unit and block of each column.
        depth: How many blocks the model has.
        parts: In how many the depth is cut.

    Returns:
        Windows by units and parts, units the slower; windows by parts. NaN where no block of a
        part has the unit, or any.
    """
    cover = depth_weights(depth, parts)
    weights = np.stack([cover[:, block] for _, block in places])
    names = list(dict.fromkeys(unit for unit, _ in places))
    units = np.array([names.index(unit) for unit, _ in places])
    by_unit = []
    with np.errstate(invalid="ignore"):
        for unit in range(len(names)):
            own = units == unit
            by_unit.append(costs[:, own] @ weights[own] / weights[own].sum(axis=0))
    total = np.where(weights.sum(axis=0) > 0, costs @ weights, np.nan)
    return np.concatenate(by_unit, axis=1), total


def _shared_columns(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """The columns that both have."""
    known = ~(np.isnan(one).any(axis=0) | np.isnan(other).any(axis=0))
    return one[:, known], other[:, known]


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
    found = agreement(one, other, paired=pair)
    if found is None:
        return None
    row: dict[str, Any] = {"level": lists.level, "units": one.shape[1], "parts": lists.parts}
    row |= found.rho.columns("rho")
    row |= {"rho_apart": found.apart, "own_one": rho_apart(one, one)}
    row |= {"own_other": rho_apart(other, other), "paired": pair}
    row |= {"windows_one": len(one), "windows_other": len(other)}
    pairs = pair_orders(one, other, anytime=anytime) if lists.level == "projections" else None
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
