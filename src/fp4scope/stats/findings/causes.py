"""Why a unit costs what it does: by operand, against noise of the same energy, by error and gain.

Every number is of a unit that is quantized alone, in a model that is in full precision else, on the
same windows. So costs of variants are paired.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import log10
from statistics import fmean
from typing import Any

import numpy as np

from fp4scope.design import Unit
from fp4scope.design.probes import GAINS, variants
from fp4scope.formats import get_treatment_format
from fp4scope.ledger import Results
from fp4scope.stats.findings.pairing import Pairing
from fp4scope.stats.inference.intervals import Estimate, mean, ratio
from fp4scope.stats.inference.series import Floats, Integers, aligned
from fp4scope.table import Table
from fp4scope.treatments import Setting, Treatment

_UNIT = ("level", "unit", "block")
SPLIT_COLUMNS = (
    *_UNIT, "format", "precision", "measure", "both", "both_low", "both_high",
    "weights", "weights_low", "weights_high", "inputs", "inputs_low", "inputs_high",
    "interaction", "interaction_low", "interaction_high", "windows",
)  # fmt: skip
GAIN_COLUMNS = (
    *_UNIT, "format", "precision", "kl", "kl_low", "kl_high", "noise", "noise_low", "noise_high",
    "against_noise", "against_noise_low", "against_noise_high",
    "gain", "gain_low", "gain_high", "linear", "linear_low", "linear_high",
    "error", "error_db", "predicted", "over_predicted", "over_predicted_low", "over_predicted_high",
    "windows",
)  # fmt: skip

ERROR_COLUMNS = (
    "block", "projection", "operand", "format", "error", "error_db", "output_error", "output_db",
    "rounding", "clipping", "flushing", "scale", "clipped", "flushed", "kurtosis", "block_ratio",
    "top", "outlier_count", "outliers", "outliers_stable", "headroom_above", "headroom_below",
)  # fmt: skip


@dataclass
class Probed:
    """What was measured of one unit to tell its causes.

    Attributes:
        unit: It.
        costs: By setting, what quantizing it alone costs in each window, nats per token.
        windows: Numbers of the windows, which all settings have.
    """

    unit: Unit
    costs: Mapping[Setting, Floats]
    windows: Integers = field(repr=False)

    @property
    def labels(self) -> dict[str, Any]:
        """As tables name it."""
        level = "projections" if self.unit.block is None else "layers"
        return {"level": level, "unit": self.unit.name, "block": self.unit.block}

    def variants(self) -> Iterator[tuple[Setting, dict[str, Floats]]]:
        """Every setting whose variants were measured, with their costs by what they tell."""
        for setting, cost in self.costs.items():
            own = {name: self.costs.get(other) for name, other in variants(setting).items()}
            known = {name: found for name, found in own.items() if found is not None}
            if known and len(known) == len(own):
                yield setting, {"both": cost, **known}

    def gain(self, db: float) -> Floats | None:
        """Of noise of this level behind it: cost by relative energy of the noise, by window."""
        found = self.costs.get(Setting(noise=db))
        return None if found is None else found / 10 ** (db / 10)


def probed(results: Results, measure: str) -> list[Probed]:
    """Every unit of which causes were measured.

    Args:
        results: Of the study.
        measure: `nll` or `kl`.
    """
    pairing = Pairing.of(results, measure)
    by_unit: dict[Unit, dict[Setting, Any]] = {}
    for contrast in results.causes:
        series = pairing.difference(contrast)
        if contrast.unit is not None and series is not None:
            by_unit.setdefault(contrast.unit, {})[contrast.family.setting] = series
    found: list[Probed] = []
    for unit, series in by_unit.items():
        windows, values = aligned(list(series.values()))
        if len(windows):
            costs = dict(zip(series, np.ascontiguousarray(values.T), strict=True))
            found.append(Probed(unit, costs, windows))
    return found


def split_table(results: Results) -> Table:
    """What weights and inputs cost alone, both cost together, and what that is beyond their sum."""
    rows: list[dict[str, Any]] = []
    for measure in ("nll", "kl"):
        for one in probed(results, measure):
            for setting, costs in one.variants():
                row = one.labels | _named(setting) | {"measure": measure}
                costs["interaction"] = costs["both"] - costs["weights"] - costs["inputs"]
                for name in ("both", "weights", "inputs", "interaction"):
                    row |= _columns(name, mean(costs[name], anytime=results.anytime))
                rows.append(row | {"windows": len(one.windows)})
    return Table(SPLIT_COLUMNS, rows)


def gain_table(results: Results) -> Table:
    """KL of each unit against noise of the same energy, and what noise behind it costs.

    `against_noise`: KL over that with noise of the same energy in each block. `gain`: KL for each
    unit of relative energy of noise behind the unit, at the lowest level; `linear`: what it is at
    the highest level, over that. 1 says that KL is proportional to the energy. `error` is the
    relative energy of the output's error, for a projection the mean over its blocks, `predicted`
    is error times gain, and `over_predicted` what was measured over that.
    """
    rows: list[dict[str, Any]] = []
    errors = output_errors(results)
    for one in probed(results, "kl"):
        low, high = (one.gain(db) for db in (min(GAINS), max(GAINS)))
        for setting, costs in one.variants():
            row = one.labels | _named(setting) | {"windows": len(one.windows)}
            row |= _columns("kl", mean(costs["both"], anytime=results.anytime))
            row |= _columns("noise", mean(costs["noise"], anytime=results.anytime))
            row |= _columns(
                "against_noise", ratio(costs["both"], costs["noise"], anytime=results.anytime)
            )
            if low is not None and high is not None:
                row |= _columns("gain", mean(low, anytime=results.anytime))
                row |= _columns("linear", ratio(high, low, anytime=results.anytime))
            error = errors.get((one.unit.name, one.unit.block, setting.format, setting.precision))
            if error:
                row |= {"error": error, "error_db": 10 * log10(error)}
                if low is not None:
                    row["predicted"] = error * float(low.mean())
                    over = ratio(costs["both"], error * low, anytime=results.anytime)
                    row |= _columns("over_predicted", over)
            rows.append(row)
    return Table(GAIN_COLUMNS, rows)


def output_errors(results: Results) -> dict[tuple[str, int | None, str, str], float]:
    """By projection, block, format and precision; block None: the mean over blocks."""
    found: dict[tuple[str, int | None, str, str], list[float]] = {}
    for one in results.local:
        for block in (one.block, None):
            key = one.projection, block, one.format, one.precision
            found.setdefault(key, []).append(one.error)
    return {key: fmean(errors) for key, errors in found.items()}


def error_table(results: Results) -> Table:
    """The error of every operand of every layer, taken apart.

    `output_error` is that of the layer's output where only this operand is quantized.
    """
    errors = output_errors(results)
    rows: list[dict[str, Any]] = []
    for record in results.errors:
        row = {**vars(record), "outliers": " ".join(map(str, record.outliers))}
        fmt = get_treatment_format(record.format)
        own = Treatment(fmt)
        of_weight = record.operand == "weights"
        alone = (Setting(own, None) if of_weight else Setting(None, own)).precision
        output = errors.get((record.projection, record.block, record.format, alone))
        row |= {"output_error": output, "error_db": _db(record.error), "output_db": _db(output)}
        rows.append(row)
    return Table(ERROR_COLUMNS, rows)


def _db(energy: float | None) -> float | None:
    return 10 * log10(energy) if energy else None


def _named(setting: Setting) -> dict[str, Any]:
    return {"format": setting.format, "precision": setting.precision}


def _columns(name: str, found: Estimate | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
