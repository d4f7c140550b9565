"""Round numbers for the ends of scales and for what a reader is told to aim at: 1, 2 and 5."""

from math import floor, log10


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
