"""Where effects add: what keeping a unit saves less what quantizing it alone costs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fp4scope.design import Contrast, Unit
from fp4scope.ledger import Results
from fp4scope.stats.findings.pairing import Pairing
from fp4scope.stats.inference.agreement import FEWEST_UNITS
from fp4scope.stats.inference.interplay import drawn_to, root_mean_square, spread
from fp4scope.stats.inference.intervals import mean
from fp4scope.stats.inference.multiple import holm, p_value
from fp4scope.stats.inference.series import Floats, Series, aligned
from fp4scope.study import Direction
from fp4scope.table import Table
from fp4scope.treatments import Setting

_LEVELS = ("projections", "blocks", "layers")
INTERACTION_COLUMNS = (
    "level", "format", "precision", "unit", "block", "keep", "only", "keep_drawn",
    "interaction", "interaction_stderr", "interaction_low", "interaction_high", "p", "p_holm",
    "windows",
)  # fmt: skip
ADDITIVITY_COLUMNS = (
    "level", "format", "precision", "measure", "units", "keep", "only", "interaction",
    "interaction_low", "interaction_high", "explained", "error", "error_drawn", "windows",
)  # fmt: skip


@dataclass(frozen=True)
class _Both:
    """The units of one level and setting in both directions; windows by units."""

    labels: dict[str, Any]
    units: tuple[Unit, ...]
    keep: Floats
    only: Floats

    @property
    def kinds(self) -> list[str]:
        """Layers of one projection are of a kind."""
        return [unit.name if unit.level == "layers" else "" for unit in self.units]


def interaction_table(results: Results) -> Table:
    """Every unit that was measured in both directions, nats per token of NLL.

    `interaction` is what keeping it saves less what quantizing it alone costs. It is positive where
    the rest of the quantized model makes the unit's damage worse. `keep_drawn` is `keep`, drawn to
    `only` by as much as the noise of both says.
    """
    rows: list[dict[str, Any]] = []
    for both in _both(results, "nll"):
        means = {"keep": both.keep.mean(axis=0), "only": both.only.mean(axis=0)}
        means["keep_drawn"] = drawn_to(both.keep, both.only, both.kinds).values
        found: list[dict[str, Any]] = []
        for place, unit in enumerate(both.units):
            one = mean(both.keep[:, place] - both.only[:, place], anytime=results.anytime)
            row = both.labels | {"unit": unit.name, "block": unit.block, "windows": one.n}
            row |= {name: float(values[place]) for name, values in means.items()}
            row |= one.columns("interaction") | {"p": p_value(one, anytime=results.anytime)}
            found.append(row)
        for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
            row["p_holm"] = p
        rows += found
    return Table(INTERACTION_COLUMNS, rows)


def additivity_table(results: Results) -> Table:
    """A row for each level, setting and measure: how far the effects of its units add.

    `keep`, `only` and `interaction` are root mean squares over the units, nats per token, without
    what noise adds. `explained`: of the variance of `keep` between units, the share that `only`
    explains. `error`: that of `keep` on half of the windows, and of `keep` drawn to `only`.
    """
    rows: list[dict[str, Any]] = []
    for measure in ("nll", "kl"):
        for both in _both(results, measure):
            if len(both.units) < FEWEST_UNITS:
                continue
            found = both.labels | {"measure": measure, "units": len(both.units)}
            found |= {"windows": len(both.keep)}
            found |= root_mean_square(both.keep - both.only).columns("interaction")
            found["keep"] = root_mean_square(both.keep).value
            found["only"] = root_mean_square(both.only).value
            if whole := spread(both.keep):
                found["explained"] = 1 - spread(both.keep - both.only) / whole
            drawn = drawn_to(both.keep, both.only, both.kinds)
            rows.append(found | {"error": drawn.error, "error_drawn": drawn.error_drawn})
    return Table(ADDITIVITY_COLUMNS, rows)


def _both(results: Results, measure: str) -> Iterator[_Both]:
    pairing = Pairing.of(results, measure)
    found: dict[tuple[str, Setting], dict[Unit, dict[Direction, Contrast]]] = {}
    for contrast in results.contrasts:
        family = contrast.family
        if contrast.unit is None or family.direction is None or family.level not in _LEVELS:
            continue
        units = found.setdefault((family.level, family.setting), {})
        units.setdefault(contrast.unit, {})[family.direction] = contrast
    for (level, setting), units in found.items():
        labels = {"level": level, "format": setting.format, "precision": setting.precision}
        sides: dict[Unit, list[Series]] = {}
        for unit, of in units.items():
            pair = [pairing.difference(of[way]) for way in Direction if way in of]
            known = [series for series in pair if series is not None]
            if len(known) == len(Direction):
                sides[unit] = known
        if not sides:
            continue
        windows, values = aligned([series for pair in sides.values() for series in pair])
        if len(windows) >= 2:
            yield _Both(labels, tuple(sides), values[:, ::2], values[:, 1::2])
