"""Rerun noise: what rounding alone does to a configuration.

Quantizing activations is a discontinuous map: a perturbation of one unit in the last place flips
some roundings, and these flip more. Jitter controls realise the reference and each baseline
again under such perturbations. How far the realisations of a window lie apart says how much of
a difference between two configurations a rerun on another machine may not show. More
windows average it out as they do the windows' own spread, and so do more replicas; unlike
that spread it is already contained in every paired interval.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from fp4scope.records import REFERENCE, Observation, Results, Variant, baseline, jitter
from fp4scope.stats.intervals import CONFIDENCE
from fp4scope.stats.windows import by_window


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

    The variance between a window's realisations (replica 0 and its jitter controls; a control
    is the replica of the same number again, so further replicas add nothing) is averaged over
    the windows, then divided by how many windows the mean NLL is over.
    """
    plain, shaken = results.observation(control), results.observation(jitter(control))
    if plain is None or shaken is None:
        return None
    realisations: dict[int, list[float]] = {}
    for window, replica, nll in _per_token(plain):
        if replica == 0:
            realisations.setdefault(window, []).append(nll)
    for window, _, nll in _per_token(shaken):
        realisations.setdefault(window, []).append(nll)
    variances = [np.var(r, ddof=1) for r in realisations.values() if len(r) > 1]
    if not variances:
        return None
    windows = len(set(plain.windows))
    kl = by_window(shaken, "kl").values
    return RerunNoise(float(np.sqrt(np.mean(variances) / windows)), float(kl.mean()))


def noise_floor(results: Results, format: str, operands: str, direction: str) -> float | None:
    """Half the width of the 95% interval that rounding alone gives to two runs' difference.

    That is of two runs that share nothing, each a mean over all windows and replicas; a cell shares
    all blocks before it with what it is compared with, so that a late one has less. For `restore`
    the noise is that of the format's baseline. For `isolate` it is that of the reference, whose
    roundings are few: a lower bound, since what one quantized unit adds is not measured.

    Returns:
        Nats per token; None without jitter controls.
    """
    control = baseline(format, operands) if direction == "restore" else REFERENCE
    noise, observation = rerun_noise(results, control), results.observation(control)
    if noise is None or observation is None:
        return None
    replicas = len(set(observation.replicas))
    return float(stats.norm.ppf(0.5 + CONFIDENCE / 2) * np.sqrt(2 / replicas) * noise.nll)


def _per_token(observation: Observation) -> list[tuple[int, int, float]]:
    rows = zip(
        observation.windows,
        observation.replicas,
        observation.nll,
        observation.tokens,
        strict=True,
    )
    return [(window, replica, nll / tokens) for window, replica, nll, tokens in rows]
