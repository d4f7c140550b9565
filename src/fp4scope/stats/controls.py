"""The luck of a baseline, taken out of what its restored units save.

Under quantized activations one ulp decides roundings, these decide others, and a baseline's NLL in
a window is one draw of many. A restored unit is compared with that draw, so all units of a family
share its luck. Replicas of the baseline (perturbed by one ulp at every block) say how lucky it was:

    d = (baseline - mean of its replicas) - (reference - mean of the reference's)

has mean zero in every window. Without the reference's part it would hold what the perturbation
itself costs, in any model; that is small and the same for both. So d times any number
may be taken from a difference without moving what it estimates: a control variate.

**How much.** A unit shares all roundings of the blocks before it with its baseline and, a chaotic
map forgetting fast, few behind. With s the share of blocks before it, Cov(difference, d) falls
about as 1 - s, from the first block to none at the last. So units of a family have
one coefficient between them, b, and (1 - s) b each: one number from all units
and windows, since one regression for each unit would add noise of its own. A component is in
all blocks and has s = 0; so has a pattern, which has a coefficient of its own. Averaging the
replicas into the baseline would be (1 - s) b = 1: too much for late units, which share its luck.

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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp4scope.records import REFERENCE, Observation, Variant, baseline, jitter, replica
from fp4scope.stats.windows import Floats, Integers, Series, aligned, by_window

FEWEST = 8
"""Windows from which on a coefficient is chosen."""


@dataclass(frozen=True)
class _Fit:
    """What is taken from the baseline of a unit in the first block, window by window."""

    shift: Series
    blocks: int


class Controls:
    """What to take from the baseline of each restored unit; what is not needed is not looked at.

    Args:
        observations: By key of their variants.
        column: `nll` or `kl`; others have no controls.
    """

    def __init__(self, observations: Mapping[str, Observation], column: str) -> None:
        self._observations = observations
        self._column = column
        self._members: dict[Any, list[Variant]] = defaultdict(list)
        for observation in observations.values():
            if observation.variant.direction == "restore" and observation.windows:
                self._members[_pool(observation.variant)].append(observation.variant)
        self._fits: dict[Any, _Fit | None] = {}

    def shift(self, variant: Variant, windows: Integers) -> Floats:
        """What to take from a restored unit's baseline in each window; zero if nothing is known."""
        pool = _pool(variant)
        if pool not in self._fits:
            self._fits[pool] = self._fit(self._members[pool])
        fit = self._fits[pool]
        found = np.zeros(len(windows))
        if fit is not None:
            _, mine, theirs = np.intersect1d(windows, fit.shift.windows, return_indices=True)
            found[mine] = fit.shift.values[theirs] * _reach(variant, fit.blocks)
        return found

    def _fit(self, members: list[Variant]) -> _Fit | None:
        luck = baseline_luck(self._observations, members[0], self._column)
        if luck is None:
            return None
        whole = self._observations[baseline(members[0].format, members[0].operands).key]
        units = [by_window(self._observations[v.key], self._column) for v in members]
        windows, values = aligned([luck, by_window(whole, self._column), *units])
        if len(windows) < FEWEST:
            return None
        blocks = 1 + max(v.block or 0 for v in members)
        reach = np.array([_reach(v, blocks) for v in members])
        pooled = (values[:, 1:2] - values[:, 2:]) @ reach / (reach @ reach)
        # Windows that not all units have seen take no part, so all the others may choose for them.
        chosen = np.full(len(luck.windows), coefficient(pooled, values[:, 0]))
        chosen[np.isin(luck.windows, windows)] = held_out(pooled, values[:, 0])
        return _Fit(Series(luck.windows, chosen * luck.values), blocks)


def baseline_luck(
    observations: Mapping[str, Observation], unit: Variant, column: str
) -> Series | None:
    """What the baseline of `unit` gave less its replicas' mean, by window; None without replicas.

    Less the same of the reference, where that was perturbed too.
    """
    whole = baseline(unit.format, unit.operands)
    # A control's KL is from the baseline itself, a replica's from the reference.
    again = (replica(whole), jitter(whole)) if column == "nll" else (replica(whole),)
    found = [luck for v in again if (luck := _less_others(observations, whole, v, column))]
    if not found:
        return None
    smooth = _less_others(observations, REFERENCE, jitter(REFERENCE), column)
    if smooth is None:
        return found[0]
    windows, values = aligned([found[0], smooth])
    return Series(windows, values[:, 0] - values[:, 1])


def _less_others(
    observations: Mapping[str, Observation], own: Variant, others: Variant, column: str
) -> Series | None:
    """`own` less the mean of those realisations of `others` that are not in it, by window."""
    one, other = observations.get(own.key), observations.get(others.key)
    if one is None or other is None:
        return None
    rest = Observation(variant=others)
    mine = set(one.replicas)
    rows = zip(other.windows, other.replicas, other.tokens, other.nll, other.kl, strict=True)
    for window, number, tokens, nll, kl in rows:
        if number not in mine:
            rest.add(window, number, tokens=tokens, nll=nll, kl=kl, top1=0)
    if not rest.windows or not one.windows:
        return None
    windows, values = aligned([by_window(one, column), by_window(rest, column)])
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


def _pool(variant: Variant) -> tuple[Any, ...]:
    """Units with one coefficient; where a pattern begins is not known, so it has its own."""
    alone = variant.unit if variant.level == "patterns" else ""
    return variant.level, variant.format, variant.operands, alone


def _reach(variant: Variant, blocks: int) -> float:
    """The share of blocks from the unit on."""
    return 1 - (variant.block or 0) / blocks
