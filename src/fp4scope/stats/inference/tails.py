"""How a positive quantity spreads over tokens: counts in bins, and quantiles of these.

Quantiles over the tokens of all windows cannot be had from the windows' own quantiles, but counts
in bins add up. The bins are an eighth of an octave wide, so that a quantile is known to 9%, and
with many tokens in a bin far better: inside it, values are spread evenly over the logarithm.

The interval of a quantile takes the window as the unit (Woodruff, JASA 47, 1952): the share of
tokens above the quantile has an interval over windows, and the quantiles of its two ends are those
of the quantile. Where too few windows or tokens are above it to bound it, it has no upper end.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from fp4scope.stats.inference.intervals import mean
from fp4scope.table import Interval

_LOWEST, _HIGHEST, _PER_OCTAVE = -14, 8, 8
_EDGES = np.exp2(np.arange(_LOWEST * _PER_OCTAVE, _HIGHEST * _PER_OCTAVE + 1) / _PER_OCTAVE)
BINS = len(_EDGES) + 1
"""The first holds what is below all edges, zero and noise below it too; the last what is above."""


def counts_in_bins(values: ArrayLike) -> list[int]:
    """How many values are in each bin, up to the last that holds any.

    Example:
        >>> sum(counts_in_bins([0.0, 0.5, 0.5, 300.0])), len(counts_in_bins([0.0, 1e-9]))
        (4, 1)
    """
    places = np.searchsorted(_EDGES, np.asarray(values, np.float64).ravel(), side="right")
    return np.bincount(places).tolist()


def together(counts: list[list[int]]) -> Int[np.ndarray, "windows bins"]:
    """The counts of several windows, a row for each, all bins long."""
    found = np.zeros((len(counts), BINS), np.int64)
    for row, own in zip(found, counts, strict=True):
        row[: len(own)] = own
    return found


def quantile(
    counts: Int[np.ndarray, "windows bins"], level: float, largest: float, *, anytime: bool = False
) -> Interval:
    """A quantile over all tokens, with its 95% interval over windows.

    Args:
        counts: Tokens in each bin, by window; all windows have the same number.
        level: Such as 0.99.
        largest: The largest value of all.
        anytime: Whether the interval must hold at all numbers of windows at once.

    Returns:
        Without ends below `MIN_WINDOWS`, without an upper one where less than one token is above.
    """
    total = counts.sum(axis=0)
    tokens = int(total.sum())
    value = _at(total, level, largest)
    above = mean(_above(counts, value, largest) / counts.sum(axis=1), anytime=anytime)
    if above.low is None or above.high is None:
        return Interval(value, None, None)
    # Relative, for a share of a hundredth is often within its own error of zero.
    reach = np.exp((above.high - above.low) / 2 / above.mean) if above.mean > 0 else 1.0
    low = _at(total, max(0.0, 1 - (1 - level) * reach), largest)
    beyond = (1 - level) / reach
    high = None if beyond * tokens < 1 else _at(total, 1 - beyond, largest)
    return Interval(value, low, high)


def _at(total: Int[np.ndarray, " bins"], level: float, largest: float) -> float:
    """The value of this rank: 0 is the smallest, 1 the largest."""
    below = np.concatenate([[0], np.cumsum(total)])
    rank = level * (below[-1] - 1) + 0.5
    place = int(np.searchsorted(below, rank, side="left")) - 1
    place = min(max(place, 0), BINS - 1)
    low, high = _ends(place, largest)
    share = (rank - below[place]) / max(total[place], 1)
    return float(min(low * (high / low) ** share if low else high * share, largest))


def _above(
    counts: Int[np.ndarray, "windows bins"], value: float, largest: float
) -> Float[np.ndarray, " windows"]:
    """How many tokens of each window are above a value."""
    place = int(np.searchsorted(_EDGES, value, side="right"))
    low, high = _ends(place, largest)
    if high <= low:
        share = 0.0
    elif low:
        share = np.log(high / value) / np.log(high / low)
    else:
        share = 1 - value / high
    return counts[:, place + 1 :].sum(axis=1) + share * counts[:, place]


def _ends(place: int, largest: float) -> tuple[float, float]:
    """Of a bin; the last holding any value ends at the largest."""
    low = 0.0 if not place else float(_EDGES[place - 1])
    high = float(_EDGES[place]) if place < len(_EDGES) else max(largest, low)
    return low, min(high, max(largest, low))
