"""Run-to-run noise: what rounding alone does to a configuration.

Quantizing activations is a discontinuous map: a perturbation of one unit in the last place flips
some roundings, and these flip more. Controls realise the reference and each all-quantized model
again under such perturbations. How far the realisations of a window lie apart says how much of
a difference between two configurations a rerun on another machine may not show. More
windows average it out as they do the windows' own spread, and so do more replicas; unlike
that spread it is already contained in every paired interval.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fp4scope.design import NOTHING, Contrast, Family
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.controls import FEWEST, luck_of
from fp4scope.stats.findings.pairing import Pairing
from fp4scope.stats.inference.series import Floats, aligned
from fp4scope.study import Direction
from fp4scope.table import Table

SHARE_COLUMNS = ("level", "format", "precision", "direction", "units", "share", "windows")


@dataclass(frozen=True)
class RerunNoise:
    """How realisations of one configuration differ.

    `nll` is the standard deviation of one realisation's mean NLL over its windows, `kl` the mean
    KL per token from the unperturbed realisation to the others.
    """

    nll: float
    kl: float


def rerun_noise(results: Results, recipe: Recipe) -> RerunNoise | None:
    """The noise of a recipe whose replicas were compared with itself; None without any.

    The variance between a window's realisations is averaged over the windows, then divided by how
    many windows the mean NLL is over.
    """
    rows = results.ledger.rows(recipe)
    columns = {} if rows is None else rows.values
    kl = columns.get("kl" if recipe == NOTHING else "rerun_kl")
    if rows is None or kl is None or "nll" not in columns:
        return None
    realisations: dict[int, list[float]] = {}
    moved: dict[int, list[float]] = {}
    values = zip(rows.indices, rows.replicas, rows.tokens, columns["nll"], kl, strict=True)
    for window, replica, tokens, nll, own_kl in sorted(values, key=lambda row: row[:2]):
        if nll is not None:
            realisations.setdefault(window, []).append(nll / tokens)
        if replica and own_kl is not None:
            moved.setdefault(window, []).append(own_kl / tokens)
    variances = [np.var(found, ddof=1) for found in realisations.values() if len(found) > 1]
    if not variances or not moved:
        return None
    kls = [np.add.reduce(found) / len(found) for found in moved.values()]
    spread = np.sqrt(np.mean(variances) / len(realisations))
    return RerunNoise(float(spread), float(np.mean(kls)))


def noise_shares(results: Results) -> Table:
    """How much of the variance over windows is run-to-run noise: of whole models, and kept units.

    Replicas of the all-quantized model share nothing with a unit but what they measure. So the
    covariance of a unit's cost with that model's luck (`controls`) is the variance that its own
    roundings add to the cost. The unit's own roundings add as much again, while an all-quantized
    model's cost has full precision on its other side, which adds next to nothing. `share` is the
    sum of that over the units, of the sum of their variances, between 0 and 1. There is no row for
    units that are quantized alone, whose own roundings are not realised again.
    """
    pairing, rows = Pairing(results.ledger), []
    for family, members in _families(results):
        luck = luck_of(results.ledger, members[0].quantized, "nll")
        costs = [d for contrast in members if (d := pairing.difference(contrast)) is not None]
        if luck is None or not costs:
            continue
        windows, values = aligned([luck, *costs])
        if len(windows) < FEWEST:
            continue
        own = 1 if family.direction is None else 2
        row = family.labels | {"units": len(costs), "windows": len(windows)}
        row |= {"share": _share(values[:, 1:], values[:, 0], own)}
        rows.append(row)
    return Table(SHARE_COLUMNS, rows)


def _families(results: Results) -> Iterator[tuple[Family, list[Contrast]]]:
    """Whole models one by one, then kept units by family."""
    found: dict[Family, list[Contrast]] = {}
    for contrast in results.contrasts:
        if contrast.family.direction is not Direction.ONLY:
            found.setdefault(contrast.family, []).append(contrast)
    yield from sorted(found.items(), key=lambda item: item[0].direction is not None)


def _share(costs: Floats, luck: Floats, sides: int) -> float | None:
    centred = costs - costs.mean(axis=0)
    total = np.square(centred).sum()
    if not total:
        return None
    shared = (centred * (luck - luck.mean())[:, None]).sum()
    return float(np.clip(sides * shared / total, 0.0, 1.0))
