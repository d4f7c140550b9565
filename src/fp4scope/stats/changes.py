"""What changed between two runs, unit by unit, and whether it is beyond noise.

A change is *beyond noise* if it is both

- told from none among all that are compared (`p_holm` at most 5%). Two runs have one error: the
  chance that any change is called so where none is, in any format, direction or level, is at most
  5%. Each level that was compared (baselines, components, cells, ...) has an equal share of it, and
  inside a level it is Holm's; so a few baselines keep their power beside hundreds of cells.
- larger than what rounding alone does to it in 95 of 100 reruns (`noise`), from the jitter
  controls of both runs. The p-value has that noise in it already; this asks besides that the size
  be more than that. For `isolate` the controls are those of the reference, a lower bound.

A run without jitter controls is taken to be as noisy as the other; where neither has them nothing
is called beyond noise or within it. Changes below `RESOLUTION` are within noise in any case: two
machines agree on nothing finer, even where the controls do.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from fp4scope.records import REFERENCE, Results, Table, Variant, baseline
from fp4scope.stats.comparable import matched_formats, same_tokens
from fp4scope.stats.contrasts import Contrast, contrast
from fp4scope.stats.intervals import CONFIDENCE
from fp4scope.stats.multiple import holm, significant
from fp4scope.stats.noise import rerun_noise
from fp4scope.stats.windows import costs

RESOLUTION = 1e-5
"""Nats per token. Sums in FP32 move a mean NLL by 1e-6 from one machine to another."""
CHANGE_COLUMNS = (
    "level", "format", "format_before", "operands", "direction", "unit", "block",
    "before", "after", "change", "change_stderr", "change_low", "change_high",
    "p", "p_holm", "noise", "beyond_noise", "paired", "windows", "windows_before",
)  # fmt: skip


def change_table(before: Results, after: Results) -> Table:
    """A row for every baseline and unit that both have measured, in the order of `after`.

    `before` and `after` are what it costs in each; they may be two runs of a model, two checkpoints
    of one shape, or, where each has one format, two formats.
    """
    pair = same_tokens(before, after)
    anytime = before.anytime or after.anytime
    formats = {theirs: mine for mine, theirs in matched_formats(before, after).items()}
    earlier, noises = costs(before), (_Noise(before), _Noise(after))
    rows: list[dict[str, Any]] = []
    for variant, series in costs(after).items():
        if variant.format not in formats:
            continue
        old = _of_format(variant, formats[variant.format])
        if old not in earlier:
            continue
        found = contrast(earlier[old], series, pair=pair, anytime=anytime)
        if found is not None:
            noise = _noise(noises, (old, variant), found.windows)
            rows.append(_names(variant, old) | _values(found) | {"noise": noise})
    _adjust(rows)
    return Table(CHANGE_COLUMNS, rows)


def _adjust(rows: list[dict[str, Any]]) -> None:
    """Fill in what depends on all that is compared."""
    levels: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        levels[row["level"]].append(row)
    for members in levels.values():
        for row, p in zip(members, holm([row["p"] for row in members]), strict=True):
            row["p_holm"] = None if p is None else min(1.0, len(levels) * p)
            known = row["p_holm"] is not None and row["noise"] is not None
            row["beyond_noise"] = (
                significant(row) and abs(row["change"]) > row["noise"] if known else None
            )


class _Noise:
    """What rounding alone does to the differences of a run, each control looked at once."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._known: dict[Variant, float | None] = {}

    def variance(self, variant: Variant, windows: int) -> float | None:
        """Of a baseline's or unit's cost over so many windows; None without controls."""
        quantized = baseline(variant.format, variant.operands)
        sides = {
            "baseline": (quantized, REFERENCE),
            "restore": (quantized, quantized),
            "isolate": (REFERENCE, REFERENCE),
        }[variant.direction]
        one, other = (self._per_window(side) for side in sides)
        return None if one is None or other is None else (one + other) / windows

    def _per_window(self, control: Variant) -> float | None:
        if control not in self._known:
            self._known[control] = None
            noise, plain = rerun_noise(self._results, control), self._results.observation(control)
            if noise is not None and plain is not None:
                windows, replicas = len(set(plain.windows)), len(set(plain.replicas))
                self._known[control] = noise.nll**2 * windows / replicas
        return self._known[control]


def _noise(
    noises: tuple[_Noise, _Noise], variants: tuple[Variant, Variant], windows: tuple[int, int]
) -> float | None:
    """How far rounding alone moves a change in 95 of 100 reruns, in nats per token."""
    sides = zip(noises, variants, windows, strict=True)
    found = [noise.variance(variant, n) for noise, variant, n in sides]
    known = [value for value in found if value is not None]
    if not known:
        return None
    total = sum(known) if len(known) == 2 else 2 * known[0]
    return max(RESOLUTION, float(stats.norm.ppf(0.5 + CONFIDENCE / 2) * np.sqrt(total)))


def _names(variant: Variant, old: Variant) -> dict[str, Any]:
    return {
        "level": "baselines" if variant.is_control else variant.level,
        "format": variant.format,
        "format_before": old.format,
        "operands": variant.operands,
        "direction": variant.direction,
        "unit": variant.unit,
        "block": variant.block,
    }


def _values(found: Contrast) -> dict[str, Any]:
    return {
        "before": found.before,
        "after": found.after,
        "change": found.change,
        "change_stderr": found.stderr,
        "change_low": found.low,
        "change_high": found.high,
        "p": found.p,
        "paired": found.paired,
        "windows": found.windows[1],
        "windows_before": found.windows[0],
    }


def _of_format(variant: Variant, fmt: str) -> Variant:
    return variant if variant.format == fmt else replace(variant, format=fmt)
