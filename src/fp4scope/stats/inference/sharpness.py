"""Whether served log-probabilities are those of a model at another temperature.

Over some tokens of a place log-probabilities are logits but for a constant, so that those of a
model at temperature T are, less their mean there, its own divided by T. Two slopes tell: of its own
on the served ones, T, and of the served ones on its own, 1 / T. Noise of either run draws both
towards 0. So none is above 1 but by a temperature, or of another model.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fp4scope.stats.inference.intervals import mean
from fp4scope.stats.inference.multiple import SIGNIFICANCE

Floats = NDArray[np.float64]
ROOM = 0.05
"""By how much a slope may be above 1: an engine's rounding and other scales move it by less."""


@dataclass(frozen=True)
class Sharpness:
    """How much flatter what is served is than a model.

    Attributes:
        temperature: At which the model would give it; nearer to 1 than it is, by noise.
        p: How often windows say so where there is none.
    """

    temperature: float
    p: float

    @property
    def is_off(self) -> bool:
        """Whether there is a temperature."""
        return self.p <= SIGNIFICANCE


def slopes(own: Floats, their: Floats) -> tuple[float, float]:
    """Of a model's log-probabilities on served ones, and of these on the model's.

    Args:
        own: Of a model, (places, tokens).
        their: What is served of the same tokens.

    Example:
        >>> own = np.log([[0.5, 0.3, 0.1], [0.6, 0.2, 0.1]])
        >>> [round(slope, 3) for slope in slopes(own, own / 1.25)]
        [1.25, 0.8]
    """
    x, y = (each - each.mean(-1, keepdims=True) for each in (own, their))
    both = float((x * y).sum())
    squares = [float(np.square(each).sum()) for each in (y, x)]
    return both / (squares[0] or 1.0), both / (squares[1] or 1.0)


def sharpness(found: Floats) -> Sharpness:
    """What slopes of windows say.

    Args:
        found: Both slopes, (2, windows).

    Example:
        >>> noise = 0.01 * np.random.default_rng(0).standard_normal((2, 12))
        >>> seen = sharpness(np.array([[1.3], [0.77]]) + noise)
        >>> round(seen.temperature, 1), seen.is_off
        (1.3, True)
        >>> sharpness(np.array([[0.9], [1.0]]) + noise).is_off
        False
    """
    flatter, sharper = (mean(each) for each in found)
    ps: list[float] = []
    for each in (flatter, sharper):
        beyond = each.mean - 1 - ROOM
        if beyond <= 0 or each.stderr is None:
            ps.append(1.0)
        else:
            ps.append(float(special.stdtr(each.n - 1, -beyond / max(each.stderr, 1e-12))))
    of = flatter.mean if flatter.mean >= sharper.mean else 1 / sharper.mean
    return Sharpness(of, min(1.0, 2 * min(ps)))


def flatter(found: Sharpness) -> str:
    """A temperature in words.

    Example:
        >>> flatter(Sharpness(1.25, 0.0))
        'flatter, as at a temperature of 1.25 or more'
    """
    way, more = ("flatter", "more") if found.temperature > 1 else ("sharper", "less")
    return f"{way}, as at a temperature of {found.temperature:.2f} or {more}"
