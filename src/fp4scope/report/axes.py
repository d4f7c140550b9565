"""Where an axis ends, where it turns logarithmic, and which numbers stand on it.

Figures and the page's charts both ask here.
"""

from collections.abc import Iterable
from math import ceil, floor, log10
from statistics import median

from fp4scope.report.numbers import MINUS


def step_above(value: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `value` (above 0).

    Example:
        >>> step_above(42.4), step_above(0.12), step_above(5.0)
        (50.0, 0.2, 5.0)
    """
    scale = 10.0 ** floor(log10(value))
    return next(k * scale for k in (1, 2, 5, 10) if k * scale >= value * (1 - 1e-9))


def step_below(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is less than `value` (above 0).

    Example:
        >>> step_below(42.4), step_below(0.12), step_below(5.0), step_below(1.0)
        (20.0, 0.1, 2.0, 0.5)
    """
    scale = 10.0 ** floor(log10(value))
    return next(k * scale for k in (5, 2, 1, 0.5) if k * scale < value * (1 - 1e-9))


def linear_threshold(values: Iterable[float]) -> float:
    """Where an axis turns from linear to logarithmic: the power of ten above the median size."""
    return 10.0 ** ceil(log10(max(median(map(abs, values)), 1e-3)))


def log_ticks(low: float, high: float, linear: float) -> list[float]:
    """Zero, and 1 and 3 of each power of ten from just inside the linear part on, of either sign.

    Example:
        >>> log_ticks(-20.0, 49.0, 10.0)
        [-10.0, -3.0, 0.0, 3.0, 10.0, 30.0]
    """
    found, place = [0.0], linear
    while place <= 10 * max(-low, high):
        found += [sign * size for size in (3 * place / 10, place) for sign in (-1, 1)]
        place *= 10
    return sorted(t for t in found if low <= t <= high)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`.

    Example:
        >>> linear_ticks(-3.0, 17.0), linear_ticks(0.0, 0.0)
        ([0.0, 5.0, 10.0, 15.0], [0.0])
    """
    if high <= low:
        return [low]
    step = 10.0 ** floor(log10((high - low) / count))
    size = next(k * step for k in (1, 2, 5, 10) if (high - low) / (k * step) <= count + 1)
    first, last = ceil(low / size - 1e-9), floor(high / size + 1e-9)
    return [float(f"{i * size:.12g}") for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten on a logarithmic axis, or powers alone where it is long.

    Example:
        >>> decades(8.0, 60.0), decades(0.5, 900.0)
        ([10.0, 20.0, 50.0], [1.0, 10.0, 100.0])
    """
    powers = [10.0**p for p in range(floor(log10(low)), ceil(log10(high)) + 1)]
    steps = (1, 2, 5) if high < 100 * low else (1,)
    return [k * p for p in powers for k in steps if low <= k * p <= high]


def extent(values: Iterable[float | None], *, margin: float = 0.0) -> tuple[float, float]:
    """The smallest and the largest, with a margin on either side, except at zero."""
    known = [v for v in values if v is not None]
    low, high = min(known), max(known)
    pad = margin * ((high - low) or abs(high) or 1.0)
    return (low - pad if low else 0.0), (high + pad if high else 0.0)


def steps_of_colour(peak: float, linear: float) -> list[float]:
    """Numbers beside a scale of colours from zero to `peak`, logarithmic beyond `linear`.

    Example:
        >>> steps_of_colour(50.0, 1.0), steps_of_colour(0.5, 1.0)
        ([50.0, 10.0, 1.0], [0.5, 0.2])
    """
    found, place = [peak], 10.0 ** floor(log10(peak))
    while place >= linear * 0.99:
        if place < 0.75 * peak:
            found.append(float(f"{place:.1g}"))
        place /= 10
    return found if len(found) > 1 else [peak, step_below(peak)]


def tick(value: float, sign: bool = False) -> str:
    """A number on an axis, with no more digits than it has.

    Example:
        >>> tick(1000.0), tick(0.30000001), tick(20.0, sign=True)
        ('1000', '0.3', '+20')
    """
    size = f"{float(f'{abs(value):.3g}'):.12g}"
    return f"{MINUS if value < 0 else '+' if sign and value else ''}{size}"
