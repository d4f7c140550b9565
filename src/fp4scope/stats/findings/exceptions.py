"""Exceptions of a recipe: what each saves, what it stores more, and whether that is certain.

A recipe under the name `mine without X` is `mine` without one of its exceptions. The exception
saves what that costs more, paired over windows. Intervals hold for all exceptions of a recipe at
once.
"""

from collections.abc import Iterator
from typing import Any

from fp4scope.ledger import Results
from fp4scope.stats.findings.given import size
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.intervals import Estimate, paired, simultaneous
from fp4scope.stats.inference.series import aligned
from fp4scope.table import Table

WITHOUT = " without "
"""Between a recipe's name and its exception."""
EXCEPTION_COLUMNS = (
    "recipe", "exception", "verdict", "bits", "bytes",
    "delta_kl", "delta_kl_stderr", "delta_kl_low", "delta_kl_high",
    "delta_nll", "delta_nll_stderr", "delta_nll_low", "delta_nll_high", "windows",
)  # fmt: skip
PAYS, DOES_NOT, OPEN = "pays", "does not pay", "cannot be told"


def exception_table(results: Results) -> Table:
    """Every exception of a recipe that was measured: what it saves and stores, and a verdict.

    It pays where the interval of what it saves in KL is above zero, does not where the interval
    is below, and else cannot be told.
    """
    rows: list[dict[str, Any]] = []
    for name in results.given:
        exceptions = list(_exceptions(results, name))
        for said, without in exceptions:
            if (row := _row(results, name, without, len(exceptions))) is not None:
                rows.append({"recipe": name, "exception": said} | row)
    return Table(EXCEPTION_COLUMNS, rows)


def _exceptions(results: Results, name: str) -> Iterator[tuple[str, str]]:
    """The exceptions of a recipe, and what it is called without each."""
    for other in results.given:
        own, found, said = other.partition(WITHOUT)
        if found and own == name:
            yield said, other


def _row(results: Results, name: str, without: str, among: int) -> dict[str, Any] | None:
    """What an exception saves in nats per token, and bits and bytes that it stores more."""
    whole, less = results.given[name], results.given[without]
    found: dict[str, Estimate] = {}
    for measure in ("kl", "nll"):
        series = [by_window(results.ledger, one, measure) for one in (less, whole)]
        known = [one for one in series if one is not None]
        if len(known) < len(series):
            return None
        both = paired(*aligned(known)[1].T, anytime=results.anytime)
        found[measure] = simultaneous(both, among, anytime=results.anytime)
    kept, other = size(results, whole), size(results, less)
    return {
        "verdict": verdict(found["kl"]),
        "bits": kept.bits - other.bits,
        "bytes": kept.linear_bytes - other.linear_bytes,
        "windows": found["kl"].n,
        **found["kl"].columns("delta_kl"),
        **found["nll"].columns("delta_nll"),
    }


def verdict(saved: Estimate) -> str:
    """Whether an exception pays that saves so much."""
    if saved.low is not None and saved.low > 0:
        return PAYS
    if saved.high is not None and saved.high < 0:
        return DOES_NOT
    return OPEN
