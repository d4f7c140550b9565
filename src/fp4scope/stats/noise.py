"""Rerun noise: what rounding alone does to a configuration.

Quantizing activations is a discontinuous map: a perturbation of one unit in the last place flips
some roundings, and these flip more. Controls realise the reference and each baseline
again under such perturbations. How far the realisations of a window lie apart says how much of
a difference between two configurations a rerun on another machine may not show. More
windows average it out as they do the windows' own spread, and so do more replicas; unlike
that spread it is already contained in every paired interval.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fp4scope.records import Observation, Results, Table, Variant, jitter, replica
from fp4scope.stats.controls import FEWEST, baseline_luck
from fp4scope.stats.pairing import Pairing, difference, family
from fp4scope.stats.windows import Floats, aligned, by_window

SHARE_COLUMNS = ("level", "format", "operands", "direction", "units", "share", "windows")


@dataclass(frozen=True)
class RerunNoise:
    """How realisations of one configuration differ.

    `nll` is the standard deviation of one realisation's mean NLL over its windows, `kl` the mean
    KL per token from the unperturbed realisation to the others.
    """

    nll: float
    kl: float


def rerun_noise(results: Results, control: Variant) -> RerunNoise | None:
    """The noise of the reference or of a baseline; None if it was not measured.

    The variance between a window's realisations (replica 0, its jitter controls and its replicas:
    those of one number are one realisation) is averaged over the windows, then divided by how many
    windows the mean NLL is over.
    """
    plain, shaken = results.observation(control), results.observation(jitter(control))
    if plain is None or shaken is None:
        return None
    again = results.observation(replica(control))
    realisations: dict[int, dict[int, float]] = {}
    for observation in (plain, shaken, again):
        for window, number, nll in () if observation is None else _per_token(observation):
            if number == 0 or observation is not plain:
                realisations.setdefault(window, {})[number] = nll
    variances = [np.var([*r.values()], ddof=1) for r in realisations.values() if len(r) > 1]
    if not variances:
        return None
    windows = len(set(plain.windows))
    kl = by_window(shaken, "kl").values
    return RerunNoise(float(np.sqrt(np.mean(variances) / windows)), float(kl.mean()))


def noise_shares(results: Results) -> Table:
    """How much of the variance over windows is rerun noise, for baselines and restored families.

    A baseline's replicas share nothing with a unit but what they measure. So the covariance
    of a unit's cost with the baseline's luck (`controls`) is the variance that the baseline's own
    roundings add to the cost. The unit's own roundings add as much again, while a baseline's
    cost has the reference on its other side, which adds next to nothing. `share` is the sum of
    that over the units, of the sum of their variances, between 0 and 1. There is no row for
    isolated units, whose own roundings are not realised again.
    """
    pairing, rows = Pairing(results.observations), []
    for members in _families(results):
        first = members[0].variant
        luck = baseline_luck(results.observations, first, "nll")
        sides = [pairing.sides(o, by_window(o, "nll")) for o in members]
        costs = [difference(both) for both in sides if both is not None]
        if luck is None or not costs:
            continue
        windows, values = aligned([luck, *costs])
        if len(windows) < FEWEST:
            continue
        own = 1 if first.is_control else 2
        row = {"level": "baselines" if first.is_control else first.level, "units": len(costs)}
        row |= {"format": first.format, "operands": first.operands, "direction": first.direction}
        row |= {"share": _share(values[:, 1:], values[:, 0], own), "windows": len(windows)}
        rows.append(row)
    return Table(SHARE_COLUMNS, rows)


def _families(results: Results) -> Iterator[list[Observation]]:
    """Baselines one by one, then restored units by family."""
    found: dict[tuple[Any, ...], list[Observation]] = {}
    for observation in results.observations.values():
        if observation.windows and observation.variant.direction in ("baseline", "restore"):
            found.setdefault(family(observation.variant), []).append(observation)
    yield from sorted(found.values(), key=lambda members: not members[0].variant.is_control)


def _share(costs: Floats, luck: Floats, sides: int) -> float | None:
    centred = costs - costs.mean(axis=0)
    total = np.square(centred).sum()
    if not total:
        return None
    shared = (centred * (luck - luck.mean())[:, None]).sum()
    return float(np.clip(sides * shared / total, 0.0, 1.0))


def _per_token(observation: Observation) -> list[tuple[int, int, float]]:
    rows = zip(
        observation.windows,
        observation.replicas,
        observation.nll,
        observation.tokens,
        strict=True,
    )
    return [(window, replica, nll / tokens) for window, replica, nll, tokens in rows]
