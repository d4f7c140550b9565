"""How well losses that somebody serves go with each of several models that may be behind them.

A candidate predicts the loss of every token, and a second run of it, rounded in another order, says
how far two runs of one candidate are apart. If it is what is served, the served losses are one run
more. Two tests hold it to that, each paired over windows:

* the mean: served less predicted, against no more than rounding may add (`steps.room_of`);
* the spread: mean squared difference of tokens, against that of the second run. Engines round
  otherwise than this program, and by how much is not known. So it may be `ALLOWED` times as much as
  the second run and that rounding together. The rounding is measured where the engine serves the
  original, too; else it is taken to be all that is between what is served and the nearest
  candidate, which this test then never rejects.

The p-value is twice the smaller of both. The likelihood of a candidate is the predictive density of
the mean differences of n windows, d, whose variance n differences of the second run tell, e:
normal, with mean zero and Jeffreys' prior of the variance, it is proportional to
S(e)^(n/2) / (S(e) + S(d))^n, where S sums squares. A candidate that no noise explains is so less
likely than a noisy one that is as far off.

Source: Geisser, Cornfield 1963, Posterior distributions for multivariate normal parameters, JRSS B
25(2), for one dimension with a known mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fp4scope.stats.inference.intervals import Estimate, mean
from fp4scope.stats.inference.multiple import SIGNIFICANCE, holm
from fp4scope.stats.inference.steps import room_of

Floats = NDArray[np.float64]
ALLOWED = 4.0
"""In squares: twice as far."""


@dataclass(frozen=True)
class Consistency:
    """How well one candidate goes with what is served.

    Attributes:
        off: Mean served loss less the candidate's, nats per token.
        p: How often such differences come where it is served.
        p_holm: The same among all candidates.
        log10_ratio: Logarithm to base ten of its likelihood over that of the likeliest.
    """

    off: Estimate
    p: float
    p_holm: float
    log10_ratio: float

    @property
    def is_consistent(self) -> bool:
        """Whether it may be what is served."""
        return self.p_holm > SIGNIFICANCE


def consistency(
    served: Floats,
    full: Floats,
    candidates: Sequence[Floats],
    seconds: Sequence[Floats],
    rounding: Floats | None = None,
) -> list[Consistency]:
    """How well each candidate goes with what is served, in their order.

    Args:
        served: Losses, (windows, tokens), in nats.
        full: Those of full precision, as it runs here.
        candidates: Those of each candidate.
        seconds: Those of a second run of each.
        rounding: Of full precision as the same engine serves it, less `full`.
    """
    if rounding is not None:
        served = served - rounding
    shifts = [served - each for each in candidates]
    reruns = [second - each for second, each in zip(seconds, candidates, strict=True)]
    nearest = min(shifts, key=lambda each: float(np.square(each).mean()))
    floor = nearest if rounding is None else rounding
    least = min(shifts, key=lambda each: float(np.square(each.mean(1)).sum()))
    base = least if rounding is None else rounding
    ps: list[float] = []
    scores: list[float] = []
    for candidate, shift, rerun in zip(candidates, shifts, reruns, strict=True):
        own = np.square(rerun).mean(1) + np.square(floor).mean(1)
        room = room_of(float((candidate - full).mean()), float(rerun.mean()))
        both = _of_mean(shift.mean(1), room), _of_spread(np.square(shift).mean(1), own)
        ps.append(min(1.0, 2 * min(both)))
        scores.append(_log_likelihood(shift.mean(1), rerun.mean(1), base.mean(1)))
    adjusted = holm(ps)
    return [
        Consistency(mean(shift.mean(1)), p, p if own is None else own, (s - max(scores)) / log(10))
        for shift, p, own, s in zip(shifts, ps, adjusted, scores, strict=True)
    ]


def _of_mean(shifts: Floats, room: float) -> float:
    """Two-sided, against a mean within a room."""
    found = mean(shifts)
    beyond = abs(found.mean) - room
    if beyond <= 0 or found.stderr is None:
        return 1.0
    return min(1.0, 2 * _tail(beyond, found.stderr, found.n))


def _of_spread(squares: Floats, own: Floats) -> float:
    """One-sided, against squares that are `ALLOWED` times as large at most."""
    tiny = np.finfo(np.float64).tiny
    found = mean(np.log(squares + tiny) - np.log(ALLOWED * own + tiny))
    if found.mean <= 0 or found.stderr is None:
        return 1.0
    return _tail(found.mean, found.stderr, found.n)


def _tail(value: float, stderr: float, n: int) -> float:
    return float(special.stdtr(n - 1, -value / stderr)) if stderr else 0.0


def _log_likelihood(shifts: Floats, reruns: Floats, base: Floats) -> float:
    n, tiny = len(shifts), np.finfo(np.float64).tiny
    noise = float(np.square(reruns).sum() + np.square(base).sum()) + tiny
    return n / 2 * log(noise) - n * log(noise + float(np.square(shifts).sum()))


def said_ratio(log10_ratio: float) -> str:
    """A likelihood ratio to the likeliest candidate, as a table has it.

    Example:
        >>> said_ratio(0.0), said_ratio(-0.7), said_ratio(-12.34)
        ('1', '1/5', '1e-12')
    """
    if log10_ratio == 0:
        return "1"
    return f"1/{10**-log10_ratio:.0f}" if log10_ratio > -3 else f"1e{log10_ratio:.0f}"


def coarse_kl(own: Floats, their: Floats) -> Floats:
    """KL of distributions of which one is known at few places only: a lower bound, in nats.

    All other places are taken as one, which no KL grows by (the data processing inequality).

    Args:
        own: Log-probabilities at those places, (..., places), of what is known whole.
        their: The same of what is not.

    Example:
        >>> p, q = np.log([[0.5, 0.25]]), np.log([[0.5, 0.25]])
        >>> coarse_kl(p, q).tolist()
        [0.0]
    """
    p, q = np.exp(own), np.exp(their)
    rest_p, rest_q = (np.clip(1 - each.sum(-1), 1e-12, 1.0) for each in (p, q))
    found = (p * (own - their)).sum(-1) + rest_p * (np.log(rest_p) - np.log(rest_q))
    return np.maximum(found, 0.0)
