"""Effects of what engines fuse, from layers that were switched one at a time.

The effect of a layer is the mean of what keeping it saves and what quantizing only it costs, as far
as both were measured; that of a group is the sum over its layers. Where effects of pairs are the
only interactions, this mean is the effect in the middle, where recipes live. Effects of a designed
sweep predict better at the same cost.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fp4scope.groups import Group, fused_groups
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.pairing import Pairing
from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.designs import shrunk
from fp4scope.stats.inference.intervals import Estimate, mean
from fp4scope.stats.inference.series import Series, aligned
from fp4scope.treatments import Setting

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SingleEffects:
    """What quantizing each group costs, from layers one at a time.

    Attributes:
        groups: In the order of the model.
        settings: In which all of them were measured.
        by_window: Windows by groups by settings, nats per token.
        measure: `nll` or `kl`.
        directions: Which were measured: `keep`, `only`, or both.
    """

    groups: tuple[Group, ...]
    settings: tuple[Setting, ...]
    by_window: Floats
    measure: str
    directions: tuple[str, ...] = ()

    def resampled(self, windows: NDArray[np.int64]) -> Floats:
        """Groups by settings: means over these windows, shrunk toward those of their projection."""
        means, errors = self.by_window[windows].mean(axis=0), self._errors
        columns = [shrunk(m, e, self._kinds) for m, e in zip(means.T, errors.T, strict=True)]
        return np.stack(columns, axis=1)

    @cached_property
    def _kinds(self) -> list[str]:
        return [group.name for group in self.groups]

    @cached_property
    def _errors(self) -> Floats:
        return standard_errors(self.by_window)

    def predict(self, recipe: Recipe) -> Estimate:
        """What a recipe costs if effects add up; its interval knows of the spread of windows only.

        Raises:
            KeyError: The recipe has a setting that was not measured.
        """
        total = np.zeros(len(self.by_window))
        for place, group in enumerate(self.groups):
            setting = recipe.at(group.sites[0].key)
            if setting is not None:
                total += self.by_window[:, place, self.settings.index(setting)]
        return mean(total)


def single_effects(results: Results, measure: str = "kl") -> SingleEffects | None:
    """Effects of groups from a study that swept layers; None where it did not.

    Args:
        results: Of the study.
        measure: `kl` or `nll`.
    """
    groups = fused_groups(results.sites)
    pairing = Pairing.of(results, measure)
    place = {name: g for g, group in enumerate(groups) for name in group.names}
    found: dict[Setting, dict[int, dict[str, list[Series]]]] = {}
    for contrast in results.contrasts:
        unit, direction = contrast.unit, contrast.family.direction
        if contrast.family.level != "layers" or unit is None or direction is None:
            continue
        series, at = pairing.difference(contrast), place.get(min(unit.sites))
        if series is not None and at is not None:
            by_group = found.setdefault(contrast.family.setting, {})
            by_group.setdefault(at, {}).setdefault(direction.value, []).append(series)
    layers = [len({(s.projection, s.block) for s in group.sites}) for group in groups]
    whole = {
        setting: by_group
        for setting, by_group in found.items()
        if all(
            any(len(of) == layers[g] for of in by_group.get(g, {}).values())
            for g in range(len(groups))
        )
    }
    if not whole or not groups:
        return None
    columns = [
        _column(by_group[g], layers[g]) for g in range(len(groups)) for by_group in whole.values()
    ]
    _, values = aligned(columns)
    directions = sorted({d for by_group in whole.values() for of in by_group.values() for d in of})
    return SingleEffects(
        groups,
        tuple(whole),
        values.reshape(len(values), len(groups), len(whole)),
        measure,
        tuple(directions),
    )


def _column(by_direction: dict[str, list[Series]], layers: int) -> Series:
    """The mean over directions of the sum over layers."""
    sums: list[Series] = []
    for series in by_direction.values():
        if len(series) == layers:
            windows, values = aligned(series)
            sums.append(Series(windows, values.sum(axis=1)))
    windows, values = aligned(sums)
    return Series(windows, values.mean(axis=1))
