"""The luck of the all-quantized model, taken out of what keeping a unit saves.

Under quantized activations one ulp decides roundings, these decide others, and an all-quantized
model's NLL in a window is one draw of many. A kept unit is compared with that draw, so all units of
a family share its luck. Replicas of that model (perturbed by one ulp at every block) say how
lucky it was:

    d = (all-quantized - mean of its replicas) - (reference - mean of the reference's)

has mean zero in every window. Without the reference's part it would hold what the perturbation
itself costs, in any model; that is small and the same for both. So d times any number
may be taken from a difference without moving what it estimates: a control variate.

**How much.** A unit shares all roundings of the blocks before it with its all-quantized model and,
a chaotic map forgetting fast, few behind. With s the share of blocks before it, Cov(difference, d)
falls about as 1 - s, from the first block to none at the last. So units of a family have one
coefficient between them, b, and (1 - s) b each: one number from all units and windows, since one
regression for each unit would add noise of its own. A projection is in all blocks and has s = 0; so
has a pattern, which has a coefficient of its own. Averaging the replicas into the all-quantized
model would be (1
- s) b = 1: too much for late units, which share its luck.

**Which b.** That of the least squares, shrunk towards zero by how uncertain it is (James and
Stein's factor 1 - SE^2 / b^2), and between 0 and 1. For each window it is chosen on the *other*
windows: one that has seen a window's luck would take out part of the truth and leave intervals too
narrow. What is left of the windows' differences goes through the same standard error, test and
ranking as any others, so the luck that b does not explain stays in the interval.
`benchmarks/controls.py` measures what this saves and how often intervals hold.

Realisation 0 itself is not perturbed: it is the model as users run it, and what tests hold
to the model's own forward bit for bit.

Source: control variates, Owen 2013, Monte Carlo theory, methods and examples, section 8.9.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp4scope.design import NOTHING, Contrast
from fp4scope.ledger import Ledger, Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.series import Floats, Integers, Series, aligned
from fp4scope.study import Direction

FEWEST = 8
"""Windows from which on a coefficient is chosen."""


@dataclass(frozen=True)
class _Fit:
    """What is taken from the all-quantized model beside a unit in the first block, by window."""

    shift: Series
    blocks: int


class Controls:
    """What to take from what each kept unit is compared with; what is not needed is not looked at.

    Args:
        results: What was asked and found.
        measure: `nll` or `kl`; others have no controls.
    """

    def __init__(self, results: Results, measure: str) -> None:
        self._ledger, self._measure = results.ledger, measure
        self._members: dict[Any, list[Contrast]] = defaultdict(list)
        for contrast in results.contrasts:
            if contrast.family.direction is Direction.KEEP:
                self._members[_pool(contrast)].append(contrast)
        self._fits: dict[Any, _Fit | None] = {}
        self._behind = frozenset(site.name for site in results.sites.behind)

    def shift(self, contrast: Contrast, windows: Integers) -> Floats:
        """What to take in each window; zero if nothing is known."""
        pool = _pool(contrast)
        if pool not in self._fits:
            self._fits[pool] = self._fit(self._members[pool])
        fit = self._fits[pool]
        found = np.zeros(len(windows))
        if fit is not None:
            _, mine, theirs = np.intersect1d(windows, fit.shift.windows, return_indices=True)
            found[mine] = fit.shift.values[theirs] * self._reach(contrast, fit.blocks)
        return found

    def _fit(self, members: list[Contrast]) -> _Fit | None:
        whole = members[0].quantized
        luck = luck_of(self._ledger, whole, self._measure)
        own = by_window(self._ledger, whole, self._measure)
        if luck is None or own is None:
            return None
        found = [(c, by_window(self._ledger, c.own, self._measure)) for c in members]
        units = {contrast: series for contrast, series in found if series is not None}
        windows, values = aligned([luck, own, *units.values()])
        if len(windows) < FEWEST:
            return None
        blocks = 1 + max(_block(c) for c in units)
        reach = np.array([self._reach(c, blocks) for c in units])
        if not reach.any():
            return None
        pooled = (values[:, 1:2] - values[:, 2:]) @ reach / (reach @ reach)
        # Windows that not all units have seen take no part, so all the others may choose for them.
        chosen = np.full(len(luck.windows), coefficient(pooled, values[:, 0]))
        chosen[np.isin(luck.windows, windows)] = held_out(pooled, values[:, 0])
        return _Fit(Series(luck.windows, chosen * luck.values), blocks)

    def _reach(self, contrast: Contrast, blocks: int) -> float:
        """The share of blocks from the unit on; none of what is behind them all."""
        if contrast.unit is not None and contrast.unit.sites <= self._behind:
            return 0.0
        return 1 - _block(contrast) / blocks


def luck_of(ledger: Ledger, whole: Recipe, measure: str) -> Series | None:
    """What a recipe gave less the mean of its further replicas, by window; None without any.

    Less the same of the full-precision model, where that was perturbed too.
    """
    found = _less_others(ledger, whole, measure)
    smooth = _less_others(ledger, NOTHING, measure)
    if found is None or smooth is None:
        return found
    windows, values = aligned([found, smooth])
    return Series(windows, values[:, 0] - values[:, 1])


def _less_others(ledger: Ledger, subject: Recipe, measure: str) -> Series | None:
    """The replicas that count less the mean of those that do not, by window."""
    own = by_window(ledger, subject, measure)
    others = by_window(ledger, subject, measure, extra=True)
    if own is None or others is None:
        return None
    windows, values = aligned([own, others])
    return Series(windows, values[:, 0] - values[:, 1])


def held_out(costs: Floats, control: Floats) -> Floats:
    """For each window the coefficient of `control` that the other windows choose.

    Args:
        costs: What a family costs in each window, pooled over its units.
        control: The control variate in these windows.

    Returns:
        Between 0 and 1; 0 where it is no larger than its standard error.
    """
    n = len(control)
    x, y = control - control.mean(), costs - costs.mean()

    def others(products: Floats) -> Floats:
        """Sums of squares or products about the mean, without each window in turn."""
        return np.asarray(products.sum() - products * n / (n - 1))

    return _shrunk(others(x * x), others(x * y), others(y * y), n - 1)


def coefficient(costs: Floats, control: Floats) -> float:
    """The coefficient that all windows choose."""
    x, y = control - control.mean(), costs - costs.mean()
    xx, xy, yy = (np.array([(a * b).sum()]) for a, b in ((x, x), (x, y), (y, y)))
    return float(_shrunk(xx, xy, yy, len(control))[0])


def _shrunk(xx: Floats, xy: Floats, yy: Floats, n: int) -> Floats:
    """Slopes of y on x, shrunk by how uncertain they are, from sums about means of `n` values."""
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = xy / xx
        variance = np.maximum(yy - slope * xy, 0.0) / (n - 2) / xx
        shrunk = slope * np.maximum(0.0, 1 - variance / slope**2)
    return np.clip(np.nan_to_num(shrunk), 0.0, 1.0)


def _pool(contrast: Contrast) -> tuple[Any, ...]:
    """Units with one coefficient; where a pattern begins is not known, so it has its own."""
    unit, level = contrast.unit, contrast.family.level
    alone = unit.name if unit is not None and level == "patterns" else ""
    return contrast.family, alone


def _block(contrast: Contrast) -> int:
    return 0 if contrast.unit is None else contrast.unit.block or 0
