"""What changed between two runs, unit by unit, and whether it is beyond noise.

A change is *beyond noise* if it is significant among all that are compared (`p_holm` at most 5%)
and larger than `RESOLUTION`. Two runs have one error: the chance that any change is called so where
none is, in any format, direction or level, is at most 5%. Each level that was compared (whole
models, projections, layers, ...) has an equal share of it, and inside a level it is Holm's. So a
few whole models keep their power beside hundreds of layers.

Run-to-run noise needs no condition of its own. Every window rounds by itself in each run, so that
noise is part of what differs between windows, and the p-value has as much of it as this unit has.
Early blocks have much, late ones little.
"""

from collections import defaultdict
from typing import Any

from fp4scope.design import Contrast
from fp4scope.ledger import Results
from fp4scope.stats.between.comparable import matched_formats, same_tokens
from fp4scope.stats.findings.pairing import costs
from fp4scope.stats.inference.change import change
from fp4scope.stats.inference.multiple import holm, significant
from fp4scope.table import Table

RESOLUTION = 1e-5
"""Nats per token; two machines agree on nothing finer. Sums in FP32 move a mean NLL by 1e-6."""
CHANGE_COLUMNS = (
    "level", "format", "format_before", "precision", "direction", "unit", "block",
    "before", "after", "change", "change_stderr", "change_low", "change_high",
    "p", "p_holm", "beyond_noise", "paired", "windows", "windows_before",
)  # fmt: skip


def change_table(before: Results, after: Results) -> Table:
    """A row for every whole model and unit that both have measured, in the order of `after`.

    `before` and `after` are what it costs in each; they may be two runs of a model, two checkpoints
    of one shape, or, where each has one format, two formats.
    """
    pair = same_tokens(before, after)
    anytime = before.anytime or after.anytime
    formats = {theirs: mine for mine, theirs in matched_formats(before, after).items()}
    earlier = {_place(c, c.labels["format"]): series for c, series in costs(before).items()}
    rows: list[dict[str, Any]] = []
    for contrast, series in costs(after).items():
        old = formats.get(contrast.labels["format"])
        there = None if old is None else earlier.get(_place(contrast, old))
        if old is None or there is None:
            continue
        found = change(there, series, pair=pair, anytime=anytime)
        if found is not None:
            row = contrast.labels | {"format_before": old} | found.columns
            row["windows_before"], row["windows"] = found.windows
            rows.append(row)
    adjust(rows, "level")
    return Table(CHANGE_COLUMNS, rows)


def adjust(rows: list[dict[str, Any]], by: str) -> None:
    """Fill in what depends on all that is compared.

    Args:
        rows: With the `change` and its `p`.
        by: The column whose values have equal shares of the error.
    """
    levels: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        levels[row[by]].append(row)
    for members in levels.values():
        for row, p in zip(members, holm([row["p"] for row in members]), strict=True):
            row["p_holm"] = None if p is None else min(1.0, len(levels) * p)
            beyond = significant(row) and abs(row["change"]) > RESOLUTION
            row["beyond_noise"] = None if row["p_holm"] is None else beyond


def _place(contrast: Contrast, fmt: str) -> tuple[Any, ...]:
    """What is the same thing in two runs, in the one's own format."""
    operands = contrast.family.setting.operands
    return tuple((contrast.labels | {"format": fmt, "precision": operands}).values())
