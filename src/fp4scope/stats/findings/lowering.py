"""Layers whose quantization lowers the loss: what they are.

KL decides. Where it rises, the model moves away from the one in full precision, and what it says
happens to fit this text better. Where it falls, the layer's error cancels errors of other layers.
Or they are chosen from many: noise alone lowers the loss of some. What was chosen on half of the
windows is then looked at on the other half.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fp4scope.design import Family
from fp4scope.ledger import Results
from fp4scope.stats.findings.pairing import costs
from fp4scope.stats.findings.units import unit_table
from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.intervals import MIN_WINDOWS
from fp4scope.stats.inference.multiple import SIGNIFICANCE, one_sided_p_values, significant
from fp4scope.stats.inference.series import Floats, Series, aligned
from fp4scope.table import Table

LOWERING_COLUMNS = (
    "format", "precision", "direction", "layers", "lowering", "kl_rises", "kl_falls", "kl_open",
    "uncorrected", "by_chance", "chosen", "again", "windows",
)  # fmt: skip
_ONE_SIDED = SIGNIFICANCE / 2


def lowering_table(results: Results) -> Table:
    """A row for each family of layers that was measured on enough windows.

    `lowering`: layers whose loss significantly falls, by Holm as everywhere. Of these KL
    significantly rises, falls, or is left open. `uncorrected`: layers that fall at 2.5%, one-sided
    and each by itself; `by_chance`: how many would if none did. `chosen`: layers that do on one
    half of the windows, for both halves; `again`: of these, how many are below zero on the other.
    """
    families: dict[Family, list[Series]] = {}
    for contrast, series in costs(results).items():
        if contrast.family.level == "layers":
            families.setdefault(contrast.family, []).append(series)
    table = unit_table(results, "layers")
    rows: list[dict[str, Any]] = []
    for family, members in families.items():
        labels = {n: family.labels[n] for n in ("format", "precision", "direction")}
        own = [row for row in table.where(**labels) if row["p_holm"] is not None]
        if own:
            windows, values = aligned(members)
            rows.append(
                labels
                | {"layers": len(own), "windows": len(windows), "by_chance": _ONE_SIDED * len(own)}
                | dict(_counts(own))
                | _repeated(values)
            )
    return Table(LOWERING_COLUMNS, rows)


def _counts(rows: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    known = [row for row in rows if significant(row) and row["delta_nll"] < 0]
    told = [row for row in known if (row["p_holm_kl"] or 0) <= SIGNIFICANCE]
    rises = sum(row["delta_kl"] > 0 for row in told)
    yield "lowering", len(known)
    yield "kl_rises", rises
    yield "kl_falls", len(told) - rises
    yield "kl_open", len(known) - len(told)
    yield "uncorrected", sum(row["p"] <= SIGNIFICANCE and row["delta_nll"] < 0 for row in rows)


def _repeated(values: Floats) -> dict[str, int]:
    """Layers chosen on every other window, and how many of them repeat on those between."""
    if len(values) < 2 * MIN_WINDOWS:
        return {}
    chosen = again = 0
    for half, other in ((values[::2], values[1::2]), (values[1::2], values[::2])):
        means = half.mean(axis=0)
        p = one_sided_p_values(-means, standard_errors(half), len(half))
        falls = np.asarray(p) <= _ONE_SIDED
        chosen += int(falls.sum())
        again += int((other.mean(axis=0)[falls] < 0).sum())
    return {"chosen": chosen, "again": again}
