r"""What a task's score loses between two models that answer the same documents.

A document is lost or gained where the models differ, and nothing else informs the difference. So
the interval is the score interval of paired proportions: it holds every difference d that

    (b - c - n d)^2 <= t^2 n (2 q + d (1 - d))

does not reject, where b documents of n were lost, c gained, and q is the likeliest share of gained
ones if d is true. Unlike a t interval it does not shrink to nothing where no document flips.

Documents that belong to one problem are not independent. The plain variance of the difference is
compared with that over problems, and n, b and c are divided by that ratio, the design effect, where
it is above 1. Where nothing flips the design effect is unknown, and n is the number of problems.
t is Student's, of as many degrees of freedom as there are problems but one.

Graded scores between 0 and 1 count as parts of a document. A ternary difference of the same mean
parts has at least their variance, so that intervals of such scores are too wide if anything.

Source: Tango 1998, Equivalence test and confidence interval for the difference in proportions for
the paired-sample design, Statistics in Medicine 17(8); Rao, Scott 1992, A simple method for the
analysis of clustered binary data, Biometrics 48(2).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fp4scope.stats.inference.intervals import CONFIDENCE, MIN_WINDOWS, Estimate

_STEPS = 60
"""Halvings of an interval of width 2: below the precision of a double."""


@dataclass(frozen=True)
class Flips:
    """A paired difference of scores.

    Attributes:
        loss: Score of the first model less that of the second, a mean over documents, with its 95%
            interval; no interval below `MIN_WINDOWS` problems.
        lost: Documents whose score fell.
        gained: Documents whose score rose.
        problems: How many problems the documents belong to.
        design: The design effect: how many times the variance of independent documents it has.
    """

    loss: Estimate
    lost: int
    gained: int
    problems: int
    design: float

    @property
    def share(self) -> float:
        """Documents that flipped, of all."""
        return (self.lost + self.gained) / self.loss.n

    def documents_for(self, half: float) -> int | None:
        """How many documents give an interval that reaches so far to either side.

        Args:
            half: Half its width, in the unit of scores.

        Returns:
            None where nothing flipped, so that nothing is known of it.
        """
        spread = self.share - self.loss.mean**2
        point = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
        return ceil(self.design * spread * (point / half) ** 2) if spread > 0 else None


def flips(first: ArrayLike, second: ArrayLike, problems: Sequence[Hashable]) -> Flips:
    """What the second model loses.

    Args:
        first: Scores of the first model, between 0 and 1.
        second: Those of the second, for the same documents.
        problems: Which problem each document belongs to.

    Example:
        >>> found = flips([1] * 20, [0, 0] + [1] * 18, range(20))
        >>> found.lost, found.gained, round(found.loss.low, 3), round(found.loss.high, 3)
        (2, 0, -0.098, 0.318)
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) != len(problems) or not len(a):
        raise ValueError("scores and problems must be of the same documents, one or more")
    less = a - b
    n, count = len(less), len(set(problems))
    lost, gained = float(less[less > 0].sum()), float(-less[less < 0].sum())
    design, effective = _design(less, problems, lost + gained)
    mean = float(less.mean())
    spread = sqrt(max((lost + gained) / n - mean**2, 0.0) / effective)
    low = high = None
    if count >= MIN_WINDOWS:
        point = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1))
        scale = effective / n
        low, high = score_interval(scale * lost, scale * gained, effective, point)
    return Flips(
        Estimate(mean, spread, low, high, n),
        int((less > 0).sum()),
        int((less < 0).sum()),
        count,
        design,
    )


def _design(less: np.ndarray, problems: Sequence[Hashable], flipped: float) -> tuple[float, float]:
    """The design effect, and how many independent documents these are worth."""
    n, places = len(less), {name: i for i, name in enumerate(dict.fromkeys(problems))}
    count = len(places)
    if not flipped or count == 1:
        return n / count, float(count)
    if count == n:
        return 1.0, float(n)
    member = np.asarray([places[name] for name in problems])
    sizes = np.bincount(member)
    sums = np.bincount(member, weights=less) - less.mean() * sizes
    plain = n * (flipped / n - less.mean() ** 2)
    over = float(np.square(sums).sum()) * count / (count - 1)
    design = max(1.0, over / float(plain)) if plain else 1.0
    return design, n / design


def score_interval(lost: float, gained: float, n: float, point: float) -> tuple[float, float]:
    """The score interval of a share of lost documents less that of gained ones.

    Args:
        lost: How many were lost; parts of documents count as such.
        gained: How many were gained.
        n: Of how many.
        point: How many standard errors it reaches to either side.
    """
    seen = (lost - gained) / n
    return (
        -_end(gained, lost, n, point, -seen),
        _end(lost, gained, n, point, seen),
    )


def _end(lost: float, gained: float, n: float, point: float, seen: float) -> float:
    """The upper end: the largest difference that is not rejected."""
    inside, outside = seen, 1.0
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        error = sqrt(max(_variance(lost, gained, n, middle), 0.0) / n)
        if middle - seen <= point * error:
            inside = middle
        else:
            outside = middle
    return inside


def _variance(lost: float, gained: float, n: float, difference: float) -> float:
    """Of one document's difference, if its mean is this."""
    if difference < 0:
        lost, gained, difference = gained, lost, -difference
    b = (lost + gained) * (1 - difference) - 2 * difference * (n - lost)
    root = sqrt(b * b + 8 * n * gained * difference * (1 - difference))
    likeliest = (b + root) / (4 * n)
    return 2 * likeliest + difference * (1 - difference)
