"""Per-window values of observations, averaged over replicas and lined up window by window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp4scope.records import REFERENCE, Observation, Results, Variant, baseline

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Series:
    """One value for each window, in the order of the text."""

    windows: Integers
    values: Floats


def by_window(observation: Observation, column: str) -> Series:
    """`nll`, `kl` or `top1` per token, the mean over the replicas of each window."""
    order, windows, first, counts = _layout(tuple(observation.windows), tuple(observation.replicas))
    tokens = np.asarray(observation.tokens, np.float64)
    values = np.asarray(getattr(observation, column), np.float64) / tokens
    return Series(windows, np.add.reduceat(values[order], first) / counts)


@lru_cache(maxsize=16)
def _layout(windows: tuple[int, ...], replicas: tuple[int, ...]) -> tuple[Integers, ...]:
    """The rows in order, the windows, where each begins, and how many rows it has.

    Sorted down to the replica, so that the same data in another order give the same bits. Kept,
    since nearly all variants of a study have the same rows.
    """
    order = np.lexsort((np.asarray(replicas), np.asarray(windows)))
    unique, first, counts = np.unique(
        np.asarray(windows)[order], return_index=True, return_counts=True
    )
    return order, unique, first, counts


def aligned(series: Sequence[Series]) -> tuple[Integers, Floats]:
    """The windows that all have, and a matrix of the values there: a column for each series."""
    same = series[0].windows
    if all(s.windows is same or np.array_equal(s.windows, same) for s in series):
        return same, np.stack([s.values for s in series], axis=1)
    shared: Integers = reduce(np.intersect1d, [s.windows for s in series])
    values = [s.values[np.searchsorted(s.windows, shared)] for s in series]
    return shared, np.stack(values, axis=1)


class Pairing:
    """Finds the two sides of a difference: what is more quantized, and what is less.

    Args:
        observations: By key of their variants; among them the reference and the baselines.
        column: What is compared: `nll`, `kl` or `top1`.
    """

    def __init__(self, observations: Mapping[str, Observation], column: str = "nll") -> None:
        self._observations = observations
        self._column = column
        self._controls: dict[Variant, Series | None] = {}

    def sides(self, observation: Observation, own: Series) -> tuple[Series, Series] | None:
        """The values of the more and of the less quantized, over the windows of both.

        Args:
            observation: A baseline, or a unit restored or isolated.
            own: Its own values by window.

        Returns:
            None where there is nothing to compare with.
        """
        variant = observation.variant
        restored = variant.direction == "restore"
        other = self._control(baseline(variant.format, variant.operands) if restored else REFERENCE)
        if other is None:
            return None
        windows, values = aligned([own, other])
        if not len(windows):
            return None
        own, control = (Series(windows, column) for column in values.T)
        return (control, own) if restored else (own, control)

    def _control(self, variant: Variant) -> Series | None:
        if variant not in self._controls:
            found = self._observations.get(variant.key)
            self._controls[variant] = (
                by_window(found, self._column) if found and found.windows else None
            )
        return self._controls[variant]


def difference(sides: tuple[Series, Series]) -> Series:
    """More quantized minus less quantized, window by window."""
    more, less = sides
    return Series(more.windows, more.values - less.values)


def costs(results: Results) -> dict[Variant, Series]:
    """What every measured baseline and unit costs, window by window, in the order measured."""
    pairing = Pairing(results.observations)
    found = {}
    for observation in results.observations.values():
        variant = observation.variant
        if not observation.windows or variant.direction in ("reference", "jitter"):
            continue
        sides = pairing.sides(observation, by_window(observation, "nll"))
        if sides is not None:
            found[variant] = difference(sides)
    return found


def family(variant: Variant) -> tuple[Any, ...]:
    """What units have in common that are compared with each other."""
    return variant.level, variant.format, variant.operands, variant.direction
