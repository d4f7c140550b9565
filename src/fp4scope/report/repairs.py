"""What to keep in full precision, at what cost: savings per byte of units that engines have."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fp4scope.report.findings import Findings
from fp4scope.report.numbers import interval, number
from fp4scope.report.resolution import short_of
from fp4scope.report.selection import is_measured
from fp4scope.report.sentences import projection_lines
from fp4scope.stats import saves, sizes_known

SETTINGS = 3
"""Settings whose repairs an answer names, the cheapest ones."""
_POOR = 1 / 3
"""A unit that saves less for each byte than so much of the best one is no bargain."""
_NO_SIZES = "These results, of fp4scope 0.1, lack sizes. Measure again to see what it stores."
_Row = Mapping[str, Any]


def repairs(found: Findings) -> list[str]:
    """The cheapest repair of each setting whose units were measured, and what is none."""
    if not sizes_known(found.results):
        unknown = (
            "Sizes are not in these results, which fp4scope 0.1 wrote: measure again for them."
        )
        return [*projection_lines(found), unknown] if is_measured(found.projections.rows) else []
    by_setting: dict[tuple[str, str], list[_Row]] = {}
    for row in found.savings:
        by_setting.setdefault((row["format"], row["precision"]), []).append(row)
    order = [(whole.name, whole.precision) for whole in found.wholes]
    known = [name for name in order if name in by_setting]
    known += [name for name in by_setting if name not in order]
    return [
        f"{' '.join(name)}: {line}"
        for name in known[:SETTINGS]
        for line in _repairs(found, by_setting[name])
    ]


def _repairs(found: Findings, rows: Sequence[_Row]) -> Iterator[str]:
    good = [row for row in rows if saves(row) and not _moves_away(row)]
    measure, per_mb = "nll", "nll_per_mb"
    if not good:
        good = [row for row in rows if saves(row, "kl")]
        measure, per_mb = "kl", "kl_per_mb"
    priced = [row for row in good if row[per_mb] is not None]
    if not priced:
        yield f"no unit can be singled out{short_of(found.results, rows)}."
        return
    best = max(priced, key=lambda row: row[per_mb])
    yield f"keep {_unit(best)}: {_saved(best, measure)} for {_stored(best, measure)}."
    largest = max(priced, key=lambda row: row[f"delta_{measure}"])
    if largest[per_mb] < _POOR * best[per_mb]:
        yield (
            f"not {_unit(largest)}: {_saved(largest, measure)}, but takes "
            f"{_stored(largest, measure)}."
        )


def _moves_away(row: _Row) -> bool:
    """Whether keeping a unit moves the model away from the full-precision one."""
    return row["delta_kl_high"] is not None and row["delta_kl_high"] < 0


def _unit(row: _Row) -> str:
    where = "of all blocks" if row["block"] is None else f"of block {row['block']}"
    return f"{row['unit']} {where}"


def _saved(row: _Row, measure: str) -> str:
    saved = f"saves {interval(row, f'delta_{measure}')} millinats"
    return f"{saved} of KL" if measure == "kl" else saved


def _stored(row: _Row, measure: str) -> str:
    said = f"{number(row['bytes_kept'] / 1e6)} MB more"
    if row["bits_kept"] is not None:
        said += f" ({number(row['bits_kept'], digits=2)} bits of the model)"
    return f"{said}, {number(1e3 * row[f'{measure}_per_mb'])} millinats for each MB"
