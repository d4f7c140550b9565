"""How well losses that somebody serves go with each of several models that may be behind them.

A candidate predicts the loss of every token, and a second run of it, rounded in another order, says
how far two runs of one candidate are apart. If it is what is served, the served losses are one run
more. Tests hold it to that, each paired over windows:

* the mean: served less predicted, against no more than rounding may add (`steps.room_of`);
* the spread: mean squared difference of tokens, against that of the second run. Engines round
  otherwise than this program, and by how much is not known. So it may be `ALLOWED` times as much as
  the second run and that rounding together. The rounding is measured where the engine serves the
  original, too; else it is taken to be all that is between what is served and the nearest
  candidate, but no more than a quarter of what is between what is served and full precision, or a
  constant. So a candidate has to be nearer than these, but for what its second run explains;
* KL, where more tokens of each place were served: the same of lower bounds of it (`coarse_kl`);
* the temperature, likewise (`sharpness`).

The p-value is the smallest, times their number. The likelihood of a candidate is the predictive
density of the mean differences of n windows, d, whose variance n differences of the second run
tell, e: normal, with mean zero and Jeffreys' prior of the variance, it is proportional to
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
from fp4scope.stats.inference.sharpness import sharpness
from fp4scope.stats.inference.steps import room_of

Floats = NDArray[np.float64]
ALLOWED = 4.0
"""In squares: twice as far."""
_REST = 1e-4
"""A probability."""


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


@dataclass(frozen=True)
class Divergences:
    """Lower bounds of KL by window, in nats per token.

    Attributes:
        served: From each candidate to what is served.
        seconds: From each candidate to its second run, at the same places.
        full: From full precision to what is served.
        rounding: From full precision to what the same engine gives for it, where that is known.
        slopes: By which each is flatter or sharper than what is served (`sharpness`), (2, windows).
    """

    served: Sequence[Floats]
    seconds: Sequence[Floats]
    full: Floats
    rounding: Floats | None = None
    slopes: Sequence[Floats] = ()


def consistency(
    served: Floats,
    full: Floats,
    candidates: Sequence[Floats],
    seconds: Sequence[Floats],
    rounding: Floats | None = None,
    kl: Divergences | None = None,
) -> list[Consistency]:
    """How well each candidate goes with what is served, in their order.

    Args:
        served: Losses, (windows, tokens), in nats.
        full: Those of full precision, as it runs here.
        candidates: Those of each candidate.
        seconds: Those of a second run of each.
        rounding: Of full precision as the same engine serves it, less `full`.
        kl: Where more tokens of each place were served.
    """
    if rounding is not None:
        served = served - rounding
    shifts = [served - each for each in candidates]
    reruns = [second - each for second, each in zip(seconds, candidates, strict=True)]
    spreads = [np.square(each).mean(1) for each in shifts]
    again = [np.square(each).mean(1) for each in reruns]
    known = None if rounding is None else np.square(rounding).mean(1)
    guesses = full, np.full_like(full, served.mean())
    nothing = [np.square(served - each).mean(1) for each in guesses]
    tests = [_of_spreads(spreads, again, known, _least(nothing))]
    if kl is not None:
        tests.append(_of_spreads(kl.served, kl.seconds, kl.rounding, kl.full))
        if kl.slopes:
            tests.append([sharpness(each).p for each in kl.slopes])
    least = min(shifts, key=lambda each: float(np.square(each.mean(1)).sum()))
    base = least if rounding is None else rounding
    ps: list[float] = []
    scores: list[float] = []
    for candidate, shift, rerun, *more in zip(candidates, shifts, reruns, *tests, strict=True):
        room = room_of(float((candidate - full).mean()), float(rerun.mean()))
        found = (_of_mean(shift.mean(1), room), *more)
        ps.append(min(1.0, len(found) * min(found)))
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


def _of_spreads(
    spreads: Sequence[Floats], again: Sequence[Floats], rounding: Floats | None, nothing: Floats
) -> list[float]:
    """Of each candidate, whether it is farther from what is served than noise explains.

    Args:
        spreads: How far each is, by window, in squares or nats.
        again: How far its second run is from it.
        rounding: How far the engine is from it by rounding alone, where that is known.
        nothing: How far what is served is from what knows nothing of the candidates.
    """
    if rounding is None:
        rounding = np.minimum(_least(spreads), nothing / ALLOWED)
    pairs = zip(spreads, again, strict=True)
    return [_of_spread(spread, second + rounding) for spread, second in pairs]


def _least(spreads: Sequence[Floats]) -> Floats:
    return min(spreads, key=lambda each: float(each.mean()))


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

    All other places are taken as one, which no KL grows by (the data processing inequality). What
    is left to them is known no better than to `_REST`: that of numbers as servers round them.

    Args:
        own: Log-probabilities at those places, (..., places), of what is known whole.
        their: The same of what is not.

    Example:
        >>> p, q = np.log([[0.5, 0.25]]), np.log([[0.5, 0.25]])
        >>> coarse_kl(p, q).tolist()
        [0.0]
    """
    p, q = np.exp(own), np.exp(their)
    rest_p, rest_q = (
        np.clip(1 - each.sum(-1), least, 1.0) for each, least in ((p, 1e-12), (q, _REST))
    )
    found = (p * (own - their)).sum(-1) + rest_p * (np.log(rest_p) - np.log(rest_q))
    return np.maximum(found, 0.0)
