"""Do statistics predict damage? What is cheap to know, held against what quantizing costs.

Costs are those of units that are quantized alone. Predictors: the tail and the kurtosis of what
enters, the local error of the output, the first-order estimate of a gradient, and error times gain.
Layers are compared all together, and within their projection; projections with each other.
"""

from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

import numpy as np

from fp4scope.design import Unit
from fp4scope.design.probes import GAINS
from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.causes import output_errors, probed
from fp4scope.stats.findings.pairing import Pairing
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.agreement import FEWEST_UNITS
from fp4scope.stats.inference.prediction import prediction
from fp4scope.stats.inference.series import Integers, Series, aligned
from fp4scope.study import Direction
from fp4scope.table import Table
from fp4scope.treatments import Setting

PREDICTOR_COLUMNS = (
    "measure", "format", "precision", "among", "predictor", "units", "rho", "rho_low", "rho_high",
    "ceiling", "windows",
)  # fmt: skip
ALL, WITHIN, PROJECTIONS = "layers", "layers of a projection", "projections"
_Known = Series | float | None
"""By window, or one number; None where it is not known."""


def predictor_table(results: Results) -> Table:
    """A row for each predictor, format and kind of comparison: its rank correlation with costs."""
    rows: list[dict[str, Any]] = []
    for measure in ("kl", "nll"):
        for (level, setting), costs in _costs(results, measure).items():
            labels = {"measure": measure, "format": setting.format, "precision": setting.precision}
            for name, known in _predictors(results, setting).items():
                for row in _predicted(level, costs, known):
                    rows.append(labels | {"predictor": name} | row)
    return Table(PREDICTOR_COLUMNS, rows)


def _costs(results: Results, measure: str) -> dict[tuple[str, Setting], dict[Unit, Series]]:
    """What each unit costs alone, by level and setting."""
    pairing = Pairing.of(results, measure)
    found: dict[tuple[str, Setting], dict[Unit, Series]] = {}
    for contrast in results.contrasts:
        family, unit = contrast.family, contrast.unit
        if unit is None or family.direction is not Direction.ONLY:
            continue
        series = pairing.difference(contrast) if family.level in (ALL, PROJECTIONS) else None
        if series is not None:
            found.setdefault((family.level, family.setting), {})[unit] = series
    return found


def _predicted(
    level: str, costs: Mapping[Unit, Series], known: Callable[[Unit], _Known]
) -> Iterator[dict[str, Any]]:
    pairs = [(u, s, value) for u, s in costs.items() if (value := known(u)) is not None]
    if len(pairs) < FEWEST_UNITS:
        return
    units, series, values = zip(*pairs, strict=True)
    if all(isinstance(value, Series) for value in values):
        _, both = aligned([*series, *values])
        of, predicted = both[:, : len(units)], both[:, len(units) :]
    else:
        of = aligned(series)[1]
        means = [v.values.mean() if isinstance(v, Series) else v for v in values]
        predicted = np.array([means])
    if len(of) < 2:
        return
    together = np.zeros(len(units), np.int64)
    ways = {PROJECTIONS: together}
    if level == ALL:
        ways = {ALL: together, WITHIN: _numbered([unit.name for unit in units])}
    for among, strata in ways.items():
        found = prediction(of, predicted, strata)
        if found is not None:
            row = {"among": among, "units": len(units), "windows": len(of)}
            yield row | found.rho.columns("rho") | {"ceiling": found.ceiling}


def _numbered(names: list[str]) -> Integers:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _predictors(results: Results, setting: Setting) -> dict[str, Callable[[Unit], _Known]]:
    """What is known of units by name, under one setting."""
    tails = {(a.projection, a.block): a.ratio for a in results.activations if a.ratio}
    kurtosis = {
        (e.projection, e.block): e.kurtosis
        for e in results.errors
        if e.operand == "inputs" and e.kurtosis and e.format in setting.format.split("/")
    }
    errors = output_errors(results)
    gains = {
        (one.unit.name, one.unit.block): Series(one.windows, gain)
        for one in probed(results, "kl")
        if (gain := one.gain(min(GAINS))) is not None
    }

    def error(unit: Unit) -> float | None:
        return errors.get((unit.name, unit.block, setting.format, setting.precision))

    def product(unit: Unit) -> _Known:
        gain, own = gains.get((unit.name, unit.block)), error(unit)
        return None if gain is None or own is None else Series(gain.windows, own * gain.values)

    def gradient(unit: Unit) -> _Known:
        return by_window(results.ledger, Recipe(None, ((unit.sites, setting),)), "gradient")

    return {
        "max / P99.9 of inputs": lambda unit: _at(tails, unit),
        "kurtosis of inputs": lambda unit: _at(kurtosis, unit),
        "local error": error,
        "gain": lambda unit: gains.get((unit.name, unit.block)),
        "error x gain": product,
        "gradient": gradient,
    }


def _at(by_layer: Mapping[tuple[str, int], float], unit: Unit) -> float | None:
    """Of a layer, or of a projection the mean over its blocks."""
    if unit.block is not None:
        return by_layer.get((unit.name, unit.block))
    own = [value for (name, _), value in by_layer.items() if name == unit.name]
    return fmean(own) if own else None
