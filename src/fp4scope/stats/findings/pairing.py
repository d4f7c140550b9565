"""What contrasts come to, window by window: the two sides of every difference.

In results the all-quantized model that a kept unit is compared with has what its replicas say of
its luck taken out (`controls`).
"""

from fp4scope.design import Contrast
from fp4scope.ledger import Ledger, Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.controls import Controls
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.series import Series, aligned
from fp4scope.study import Direction


class Pairing:
    """Finds the two sides of a contrast: what is more quantized, and what is less.

    Args:
        ledger: What was found.
        measure: What is compared: `nll`, `kl` or `top1`.
        controls: What is taken from the all-quantized model beside a kept unit; nothing.
    """

    def __init__(
        self, ledger: Ledger, measure: str = "nll", controls: Controls | None = None
    ) -> None:
        self._ledger = ledger
        self._measure = measure
        self._shifts = controls
        self._known: dict[Recipe, Series | None] = {}

    @classmethod
    def of(cls, results: Results, measure: str = "nll") -> "Pairing":
        """As results are reported: with controls, unless windows were measured until decided.

        A confidence sequence holds for values that windows measured later do not change.
        """
        controls = None if results.anytime else Controls(results, measure)
        return cls(results.ledger, measure, controls)

    def sides(self, contrast: Contrast) -> tuple[Series, Series] | None:
        """The values of the more and of the less quantized, over the windows of both.

        Returns:
            None where a side was not measured, or they share no window.
        """
        more, less = (self._series(recipe) for recipe in _terms(contrast))
        if more is None or less is None:
            return None
        windows, values = aligned([more, less])
        if not len(windows):
            return None
        more, less = (Series(windows, column) for column in values.T)
        if self._shifts is not None and contrast.family.direction is Direction.KEEP:
            shift = self._shifts.shift(contrast, windows)
            more = Series(windows, more.values - shift)
        return more, less

    def difference(self, contrast: Contrast) -> Series | None:
        """What quantizing costs in each window; None where that is not known."""
        sides = self.sides(contrast)
        return None if sides is None else difference(sides)

    def _series(self, recipe: Recipe) -> Series | None:
        if recipe not in self._known:
            self._known[recipe] = by_window(self._ledger, recipe, self._measure)
        return self._known[recipe]


def _terms(contrast: Contrast) -> tuple[Recipe, Recipe]:
    """The recipe that enters with plus, and the one with minus."""
    (more,) = (recipe for recipe, sign in contrast.terms if sign > 0)
    (less,) = (recipe for recipe, sign in contrast.terms if sign < 0)
    return more, less


def difference(sides: tuple[Series, Series]) -> Series:
    """More quantized minus less quantized, window by window."""
    more, less = sides
    return Series(more.windows, more.values - less.values)


def costs(results: Results) -> dict[Contrast, Series]:
    """What every measured contrast costs, window by window, in the order of the study."""
    pairing = Pairing.of(results)
    found = ((contrast, pairing.difference(contrast)) for contrast in results.contrasts)
    return {contrast: series for contrast, series in found if series is not None}
