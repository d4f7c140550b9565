"""What changed between two runs in each group of targets: position, class, frequency, confidence.

A group's mean is a ratio of sums over windows. Window by window its first-order share (delta
method) makes a series, whose mean is the ratio and whose error is the ratio's. So groups are
compared as everything else is: paired where windows hold the same tokens, else by Welch's test.
The groups by confidence are of each run's own full-precision model.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fp4scope.ledger import POSITION, STRATIFICATIONS, Results, names_of
from fp4scope.stats.between.changes import adjust
from fp4scope.stats.between.comparable import matched_formats, same_tokens
from fp4scope.stats.findings.strata import StratumSums, slope_weights, stratum_sums
from fp4scope.stats.findings.wholes import Whole, wholes
from fp4scope.stats.inference.change import change
from fp4scope.stats.inference.series import Floats, Integers, Series
from fp4scope.table import Table
from fp4scope.treatments import operands_of

SLOPE = "each doubling"
"""The stratum of a row that has the slope over positions."""
STRATUM_CHANGE_COLUMNS = (
    "name", "name_before", "precision", "by", "stratum", "measure", "tokens", "tokens_before",
    "before", "after", "change", "change_stderr", "change_low", "change_high",
    "p", "p_holm", "beyond_noise", "paired", "windows", "windows_before",
)  # fmt: skip
_MEASURES = ("kl", "delta_nll")


def stratum_change_table(before: Results, after: Results) -> Table:
    """A row for every whole model, group of targets and measure that both have, nats per token.

    Positions have one more: the slope over each doubling. Each measure has an equal share of the
    error, and inside it is Holm's over all models and groups.
    """
    names = {theirs: mine for mine, theirs in matched_formats(before, after).items()}
    earlier = {_key(whole, whole.name): whole for whole in wholes(before)}
    rows: list[dict[str, Any]] = []
    for whole in wholes(after):
        old = earlier.get(_key(whole, names.get(whole.name, whole.name)))
        if old is not None and not whole.is_full_precision:
            about = {"name": whole.name, "name_before": old.name, "precision": whole.precision}
            rows += [about | row for row in _rows(before, old, after, whole)]
    adjust(rows, "measure")
    return Table(STRATUM_CHANGE_COLUMNS, rows)


def _key(whole: Whole, name: str) -> tuple[str, str, bool]:
    return name, operands_of(whole.precision), whole.given


def _rows(before: Results, old: Whole, after: Results, new: Whole) -> Iterator[dict[str, Any]]:
    conditions = {
        "pair": same_tokens(before, after),
        "anytime": before.anytime or after.anytime,
    }
    for place, by in enumerate(STRATIFICATIONS):
        pairs = zip(stratum_sums(before, old, place), stratum_sums(after, new, place), strict=False)
        for both in pairs:
            ways = [
                {name: stratum for stratum, name in enumerate(names_of(by, _targets(each)))}
                for each in both
            ]
            for name in (name for name in ways[1] if name in ways[0]):
                strata = ways[0][name], ways[1][name]
                if all(s < each.tokens.shape[1] for s, each in zip(strata, both, strict=True)):
                    yield from _changes(both, strata, {"by": by, "stratum": name}, conditions)
            if by == POSITION:
                yield from _slopes(both, conditions)


def _targets(sums: StratumSums) -> int:
    return int(sums.tokens[0].sum())


def _changes(
    both: tuple[StratumSums, StratumSums],
    strata: tuple[int, int],
    about: dict[str, Any],
    conditions: dict[str, bool],
) -> Iterator[dict[str, Any]]:
    """Of one group, by each measure; nothing where one has no targets of it."""
    tokens = [each.tokens[:, stratum] for each, stratum in zip(both, strata, strict=True)]
    held = [each.windows[own > 0] for each, own in zip(both, tokens, strict=True)]
    if conditions["pair"]:
        held = [np.intersect1d(held[0], held[1])] * 2
    if not all(map(len, held)):
        return
    at = [np.isin(each.windows, own) for each, own in zip(both, held, strict=True)]
    for measure in _MEASURES:
        sides = [
            _share(held[i], getattr(both[i], measure)[at[i], strata[i]], tokens[i][at[i]])
            for i in range(2)
        ]
        counts = [int(own[mask].sum()) for own, mask in zip(tokens, at, strict=True)]
        yield from _row(sides, about | {"measure": measure}, conditions, counts)


def _slopes(
    both: tuple[StratumSums, StratumSums], conditions: dict[str, bool]
) -> Iterator[dict[str, Any]]:
    weights = [slope_weights(each) for each in both]
    for measure in _MEASURES:
        sides = [
            Series(each.windows, getattr(each, measure) @ own)
            for each, own in zip(both, weights, strict=True)
            if own is not None
        ]
        if len(sides) == 2:
            about = {"by": POSITION, "stratum": SLOPE, "measure": measure}
            counts = [int(each.tokens.sum()) for each in both]
            yield from _row(sides, about, conditions, counts)


def _share(windows: Integers, of: Floats, to: Floats) -> Series:
    """Each window's share of the ratio of two sums, whose mean is the ratio."""
    found = of.sum() / to.sum()
    return Series(windows, found + (of - found * to) / to.mean())


def _row(
    sides: list[Series], about: dict[str, Any], conditions: dict[str, bool], counts: list[int]
) -> Iterator[dict[str, Any]]:
    found = change(*sides, **conditions)
    if found is not None:
        windows = dict(zip(("windows_before", "windows"), found.windows, strict=True))
        tokens = dict(zip(("tokens_before", "tokens"), counts, strict=True))
        yield about | tokens | found.columns | windows
