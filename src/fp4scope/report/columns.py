"""The columns of tables of units: what each shows of a row, and where there is room for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fp4scope.report import labels
from fp4scope.report.labels import ESTIMATE
from fp4scope.report.numbers import measured, number, plain, relative, share
from fp4scope.report.section import Cell
from fp4scope.report.selection import is_estimated, is_measured
from fp4scope.stats import SIGNIFICANCE, TOP_K

LISTED = ("layers", "experts")
"""Levels of many units, of which the largest are shown."""
_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A column of every table of units.

    Attributes:
        key: Its name in the data of the page's charts.
        label: Its heading.
        show: A row's cell.
        short: Its heading on a terminal, if it stands there.
    """

    key: str
    label: str
    show: Callable[[_Row], Cell]
    short: str | None = None


def measures(level: str, rows: Sequence[_Row]) -> list[Measure]:
    """The columns of a level's tables, as far as these rows have anything in them."""
    found: list[Measure] = []
    if is_measured(rows):
        found = [_PERCENT, _EFFECT, _TIER, _PPL, _DELTA_PPL, _KL]
        if level in LISTED:
            found = [_PERCENT, _EFFECT, _PPL, _DELTA_PPL, _P, _KL_EFFECT, _P_KL, _KL, _TOP1]
        found.append(
            Measure("p_top", f"among the {TOP_K[level]} most costly", lambda r: share(r["p_top"]))
        )
    if is_estimated(rows):
        found.append(_ESTIMATE)
    if any(row["bytes_kept"] is not None for row in rows):
        found += [_PER_MB, _MB, _BITS]
    return found


def is_muted(row: _Row, p: str = "p_holm") -> bool:
    """Whether a unit was tested and is not significant."""
    return row[p] is not None and row[p] > SIGNIFICANCE


_PERCENT = Measure(
    "percent", "% of PPL", lambda row: relative(row, muted=is_muted(row)), "% of PPL"
)
_EFFECT = Measure(
    "nats", labels.EFFECT, lambda row: measured(row, muted=is_muted(row)), "millinats"
)
_TIER = Measure("tier", "tier", lambda row: Cell(row["tier"] or ""), "tier")
_PPL = Measure("ppl", "PPL", lambda row: plain(row["ppl"]), "PPL")
_DELTA_PPL = Measure("delta_ppl", "difference of PPL", lambda row: measured(row, "delta_ppl", 1.0))
_P = Measure("p_holm", "p (Holm)", lambda row: plain(row["p_holm"]))
_KL_EFFECT = Measure(
    "kl",
    "KL, millinats per token",
    lambda row: measured(row, "delta_kl", muted=is_muted(row, "p_holm_kl")),
)
_P_KL = Measure("p_holm_kl", "p of KL (Holm)", lambda row: plain(row["p_holm_kl"]))
_KL = Measure("kl_nats", "KL, nats", lambda row: plain(row["kl"]))
_TOP1 = Measure("top1", "top-1", lambda row: share(row["top1"]))
_PER_MB = Measure(
    "per_mb",
    "millinats for each MB",
    lambda row: _per_mb(row),
    "mnat/MB",
)
_MB = Measure("mb", "MB more if kept", lambda row: _megabytes(row["bytes_kept"]), "MB more")
_BITS = Measure(
    "bits",
    "bits of the model then",
    lambda row: Cell(number(row["bits_kept"], digits=2), value=row["bits_kept"]),
)
_ESTIMATE = Measure(
    "gradient",
    f"{ESTIMATE}, millinats",
    lambda row: measured(row, "gradient_nll"),
    f"{ESTIMATE}, millinats",
)


def _per_mb(row: _Row) -> Cell:
    saved = row["nll_per_mb"]
    shown = None if saved is None else 1e3 * saved
    return Cell(number(shown, sign=True), value=shown, muted=is_muted(row))


def _megabytes(size: float | None) -> Cell:
    return Cell() if size is None else Cell(number(size / 1e6), value=size)
