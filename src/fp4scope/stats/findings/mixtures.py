"""The tables of a designed sweep: effects, what they sum to, and pairs that interact."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fp4scope.ledger import Results
from fp4scope.recipes import Recipe
from fp4scope.stats.findings.effects import Effects, effects
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.designs import interactions
from fp4scope.stats.inference.intervals import MIN_WINDOWS, mean
from fp4scope.stats.inference.multiple import SIGNIFICANCE, holm, p_value, p_values
from fp4scope.stats.inference.sequences import anytime_p_values
from fp4scope.stats.inference.series import Series, aligned
from fp4scope.table import Table

DESIGNED = "designed"
"""What stands where other units have a direction."""
EFFECT_COLUMNS = (
    "format", "precision", "direction", "block", "projection", "parameters",
    *(
        f"{name}{end}"
        for name in ("delta_nll", "delta_kl")
        for end in ("", "_stderr", "_low", "_high")
    ),
    "p", "p_holm", "p_kl", "p_holm_kl", "drawn_kl", "runs", "windows",
)  # fmt: skip
SUM_COLUMNS = (
    "format", "precision", "measure", "groups", "runs",
    *(
        f"{name}{end}"
        for name in ("sum", "whole", "gap", "curvature")
        for end in ("", "_low", "_high")
    ),
    "missed", "windows",
)  # fmt: skip
PAIR_COLUMNS = (
    "first", "first_block", "second", "second_block", "delta_kl", "delta_kl_low", "delta_kl_high",
    "p_holm_kl", "alike", "windows",
)  # fmt: skip
_ALIKE = 0.5
"""Pairs whose runs correlate more than this cannot be told apart."""
_MOST_PAIRS = 10


def effect_table(results: Results) -> Table:
    """What quantizing each group costs, on average over what else is quantized."""
    kl, nll = effects(results, "kl"), effects(results, "nll")
    if kl is None or nll is None:
        return Table(EFFECT_COLUMNS, [])
    rows: list[dict[str, Any]] = []
    for s, setting in enumerate(kl.settings):
        family = [_row(kl, nll, g, s) for g in range(len(kl.groups))]
        for name in ("p", "p_kl"):
            adjusted = holm([row[name] for row in family])
            for row, value in zip(family, adjusted, strict=True):
                row[name.replace("p", "p_holm", 1)] = value
        labels = {"format": setting.format, "precision": setting.precision}
        rows += [labels | {"direction": DESIGNED} | row for row in family]
    return Table(EFFECT_COLUMNS, rows)


def _row(kl: Effects, nll: Effects, g: int, s: int) -> dict[str, Any]:
    group, row = kl.groups[g], {}
    for name, found, p in (("delta_nll", nll, "p"), ("delta_kl", kl, "p_kl")):
        estimate = mean(found.by_window[:, g, s], anytime=found.anytime)
        row |= estimate.columns(name) | {p: p_value(estimate, anytime=found.anytime)}
    row |= {"block": group.block, "projection": group.name, "parameters": group.parameters}
    row |= {"drawn_kl": float(kl.shrunk[g, s]), "runs": len(kl.levels)}
    return row | {"windows": len(kl.by_window)}


def sum_table(results: Results) -> Table:
    """What effects sum to, beside what the whole model costs, and the curvature between."""
    rows: list[dict[str, Any]] = []
    for measure in ("nll", "kl"):
        found = effects(results, measure)
        if found is None:
            continue
        for s, setting in enumerate(found.settings):
            total = Series(found.windows, found.by_window[:, :, s].sum(axis=1))
            row: dict[str, Any] = {
                "format": setting.format, "precision": setting.precision, "measure": measure,
                "groups": len(found.groups), "runs": len(found.levels),
                "windows": len(found.windows), "missed": found.fit.missed(total.values.mean() / 2),
            }  # fmt: skip
            series = {"sum": total.values, "curvature": found.fit.curvature}
            if whole := _whole(results, Recipe(setting), measure):
                _, columns = aligned([whole, total])
                series |= {"whole": columns[:, 0], "gap": columns[:, 1] - columns[:, 0]}
            for name, values in series.items():
                row |= mean(values, anytime=found.anytime).columns(name)
            rows.append(row)
    return Table(SUM_COLUMNS, rows)


def _whole(results: Results, recipe: Recipe, measure: str) -> Series | None:
    """What quantizing everything costs; None where more than linears is quantized."""
    found = [by_window(results.ledger, one, measure) for one in (recipe, Recipe())]
    if found[0] is None or found[1] is None:
        return None
    windows, values = aligned([one for one in found if one is not None])
    costs = values[:, 0] - (values[:, 1] if measure == "nll" else 0.0)
    return Series(windows, costs)


def pair_table(results: Results) -> Table:
    """Pairs of groups that cost significantly more or less together, of KL; Holm over all pairs."""
    found = effects(results, "kl")
    enough = found is not None and len(found.windows) >= MIN_WINDOWS
    return Table(PAIR_COLUMNS, list(_pairs(found)) if found is not None and enough else [])


def _pairs(found: Effects) -> Iterator[dict[str, Any]]:
    """The most certain first; what it explains is taken out before the next is looked for.

    Of those that look the same, the one whose effects are largest.
    """
    quantized = found.levels > 0
    signs = quantized - quantized.mean(axis=0)
    sizes = np.abs(found.shrunk).mean(axis=1)
    test = anytime_p_values if found.anytime else p_values
    residuals = found.fit.residuals
    for _ in range(_MOST_PAIRS):
        pairs, series = interactions(residuals, quantized)
        ps = holm(test(series.mean(axis=0), standard_errors(series), len(series)).tolist())
        known = [1.0 if p is None else p for p in ps]
        told = [int(i) for i in np.argsort(known, kind="stable") if known[i] <= SIGNIFICANCE]
        if not told:
            return
        products = signs[:, pairs[told]].prod(axis=2)
        products -= products.mean(axis=0)
        strongest = products[:, 0]
        lengths = np.linalg.norm(products, axis=0) * np.linalg.norm(strongest)
        alike = np.abs(strongest @ products) > _ALIKE * lengths
        same = [i for i, is_same in zip(told, alike, strict=True) if is_same]
        best = max(same, key=lambda i: float(sizes[pairs[i]].prod()))
        first, second = (found.groups[g] for g in pairs[best])
        estimate = mean(series[:, best], anytime=found.anytime)
        yield {
            "first": first.name, "first_block": first.block,
            "second": second.name, "second_block": second.block,
            "p_holm_kl": ps[best], "alike": len(same) - 1, "windows": estimate.n,
        } | estimate.columns("delta_kl")  # fmt: skip
        product = products[:, told.index(best)]
        residuals = residuals - np.outer(residuals @ product, product) / (product @ product)
