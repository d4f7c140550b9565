"""Which variant is compared with which: the two sides of every difference, window by window.

A baseline and an isolated unit are compared with the reference, a restored unit with the baseline:
in results with what the baseline's replicas say of its luck taken out (`controls`).
"""

from collections.abc import Mapping
from typing import Any

from fp4scope.records import REFERENCE, Observation, Results, Variant, baseline
from fp4scope.stats.controls import Controls
from fp4scope.stats.windows import Series, aligned, by_window


class Pairing:
    """Finds the two sides of a difference: what is more quantized, and what is less.

    Args:
        observations: By key of their variants; among them the reference and the baselines.
        column: What is compared: `nll`, `kl` or `top1`.
        controls: What is taken from a restored unit's baseline; nothing.
    """

    def __init__(
        self,
        observations: Mapping[str, Observation],
        column: str = "nll",
        controls: Controls | None = None,
    ) -> None:
        self._observations = observations
        self._column = column
        self._shifts = controls
        self._controls: dict[Variant, Series | None] = {}

    @classmethod
    def of(cls, results: Results, column: str = "nll") -> "Pairing":
        """As results are reported: with controls, unless windows were measured until decided.

        A confidence sequence holds for values that windows measured later do not change.
        """
        controls = None if results.anytime else Controls(results.observations, column)
        return cls(results.observations, column, controls)

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
        if not restored:
            return own, control
        if self._shifts is not None:
            shift = self._shifts.shift(variant, windows)
            control = Series(windows, control.values - shift)
        return control, own

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
    pairing = Pairing.of(results)
    found = {}
    for observation in results.observations.values():
        variant = observation.variant
        if not observation.windows or variant.direction in ("reference", "jitter", "replica"):
            continue
        sides = pairing.sides(observation, by_window(observation, "nll"))
        if sides is not None:
            found[variant] = difference(sides)
    return found


def family(variant: Variant) -> tuple[Any, ...]:
    """What units have in common that are compared with each other."""
    return variant.level, variant.format, variant.operands, variant.direction
