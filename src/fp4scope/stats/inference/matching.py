"""Which of several predicted damages a served one is, token by token.

Two settings whose mean losses are alike differ at every token, and that is what tells them apart.
The served damage y (its loss less that of full precision, a value for each token) is regressed on
each candidate's x and on the loss f of full precision: y = a + b x + c f.
The candidate that is served has the highest partial correlation, and a slope b near 1, among those
whose mean it can have. Without f, what is served by mistake, of another model even, would go with
every candidate: -f is in y and in x. Rounding adds noise to x that is not in y, which draws the
slope of the right candidate below 1, too. Where quantized inputs add more noise than damage of
their own, weights alone, a part of the damage without that noise, go with y better than all of it.
Means tell these apart.

Tokens of a window are not independent. All standard errors are jackknife ones that leave out a
window at a time (Efron and Stein 1981), with t intervals of n - 1 degrees of freedom.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fp4scope.stats.inference.intervals import CONFIDENCE
from fp4scope.table import Interval

Floats = NDArray[np.float64]
FEWEST_WINDOWS = 4
"""Below it leaving one out says little of all."""


MEAN_ROOM = 0.1
"""How far a mean may be off, beyond its interval, as a share of the served damage.

Engines round otherwise than the model's own forward: vLLM 0.25.1 was off by up to 6%.
"""


@dataclass(frozen=True)
class Match:
    """How one candidate's damage goes with what is served.

    Attributes:
        near: Whether the served mean may be its mean, within `MEAN_ROOM`.
        correlation: Partial, given the loss of full precision, over all tokens.
        slope: Of the served damage on the candidate's, given the same.
        behind: By how much its correlation is below that of the best; 0 of the best. The best is
            among those that are near, if any is. Since the same numbers choose it, intervals hold
            for all pairs of candidates at once (Bonferroni).
        same: Whether it is the best, or may be: it is as near, and the interval of `behind`
            reaches 0.
    """

    near: bool
    correlation: Interval
    slope: Interval
    behind: Interval
    same: bool


def match(served: Floats, candidates: Sequence[Floats], full: Floats) -> list[Match]:
    """How each candidate's damage goes with the served one, in the order of the candidates.

    Args:
        served: Loss less that of full precision, (windows, tokens), in nats.
        candidates: The same of each candidate.
        full: Loss of full precision.

    Raises:
        ValueError: Fewer windows than `FEWEST_WINDOWS`, or other shapes.
    """
    n = len(served)
    if n < FEWEST_WINDOWS or any(x.shape != served.shape for x in (*candidates, full)):
        raise ValueError(f"at least {FEWEST_WINDOWS} windows, the same of all")
    found = [_without_each(served, x, full) for x in candidates]
    near = [_is_near(served, x) for x in candidates]
    correlations = np.stack([correlation for correlation, _ in found])
    best = best_of(near, correlations[:, 0].tolist())
    pairs = max(1, len(found) * (len(found) - 1) // 2)
    matches: list[Match] = []
    for place, (correlation, slope) in enumerate(found):
        behind = _interval(correlations[best] - correlation, pairs)
        same = place == best or behind.low is None or behind.low <= 0
        same = same and near[place] == near[best]
        matches.append(Match(near[place], _interval(correlation), _interval(slope), behind, same))
    return matches


def best_of(near: Sequence[bool], correlations: Sequence[float]) -> int:
    """The place of the highest correlation, among those that are near if any is."""
    return max(range(len(near)), key=lambda place: (near[place], correlations[place]))


def _is_near(y: Floats, x: Floats) -> bool:
    """Whether the mean of y may be that of x."""
    each = (y - x).mean(axis=1)
    n = len(each)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * each.std(ddof=1) / np.sqrt(n)
    return bool(abs(each.mean()) - half <= MEAN_ROOM * abs(y.mean()))


def _without_each(y: Floats, x: Floats, f: Floats) -> tuple[Floats, Floats]:
    """Correlation and slope of all windows, then without each in turn: (1 + windows,) each."""
    columns = np.stack([np.ones_like(x), f, x, y], axis=1)
    each = columns @ columns.transpose(0, 2, 1)  # sums of products, by window
    whole = each.sum(0)
    products = np.concatenate([whole[None], whole - each])
    for known in range(2):  # what is left beside the constant, then beside f
        products = _beside(products, known)
    xx, yy, xy = products[:, 2, 2], products[:, 3, 3], products[:, 2, 3]
    # A candidate without any damage explains nothing.
    flat = (xx <= 0) | (yy <= 0)
    correlation = np.where(flat, 0.0, xy / np.sqrt(np.where(flat, 1.0, xx * yy)))
    return correlation, np.where(flat, 0.0, xy / np.where(flat, 1.0, xx))


def _beside(products: Floats, known: int) -> Floats:
    """Sums of products of what one of the columns does not explain in the others."""
    own = products[:, known, known][:, None, None]
    beside = products[:, :, known, None] * products[:, None, known, :]
    return products - np.where(own > 0, beside / np.where(own > 0, own, 1.0), 0.0)


def _interval(values: Floats, times: int = 1) -> Interval:
    """From a value of all windows and those without each; one of so many that hold at once."""
    whole, without = float(values[0]), values[1:]
    n = len(without)
    error = float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    half = float(stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * times), n - 1)) * error
    return Interval(whole, whole - half, whole + half)
