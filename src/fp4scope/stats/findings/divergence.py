"""KL from the full-precision model over tokens, as llama.cpp has it: mean, 99% and maximum."""

from collections.abc import Iterator
from typing import Any

from fp4scope.design import NOTHING
from fp4scope.ledger import Results
from fp4scope.stats.findings.wholes import Whole, wholes
from fp4scope.stats.inference.intervals import mean
from fp4scope.stats.inference.tails import quantile, together
from fp4scope.table import Table

DIVERGENCE_COLUMNS = (
    "name", "precision", "kl", "kl_stderr", "kl_low", "kl_high", "kl_p99", "kl_p99_low",
    "kl_p99_high", "kl_max", "top1", "top1_stderr", "top1_low", "top1_high", "windows", "tokens",
)  # fmt: skip
_LEVEL = 0.99


def divergence_table(results: Results) -> Table:
    """Every whole model whose KL was kept by token, nats, the cheapest first.

    All columns are over the same windows, and of the models as they are: realisations that are
    perturbed are left out. `kl_p99_high` is empty where too few tokens are above to bound it. A
    maximum is of these tokens alone, and has no error.
    """
    rows = [row for whole in wholes(results) for row in _row(results, whole)]
    return Table(DIVERGENCE_COLUMNS, rows)


def _row(results: Results, whole: Whole) -> Iterator[dict[str, Any]]:
    rows = results.ledger.rows(whole.recipe)
    if rows is None or whole.recipe == NOTHING or "kl_bins" not in rows.values:
        return
    places = [row for row, counts in enumerate(rows.values["kl_bins"]) if counts is not None]
    tokens = [rows.tokens[row] for row in places]
    measured = {
        name: mean(
            [rows.values[name][row] / rows.tokens[row] for row in places], anytime=results.anytime
        )
        for name in ("kl", "top1")
    }
    largest = max(rows.values["kl_max"][row] for row in places)
    counts = together([rows.values["kl_bins"][row] for row in places])
    high = quantile(counts, _LEVEL, largest, anytime=results.anytime)
    row: dict[str, Any] = {
        "name": whole.name,
        "precision": whole.precision,
        "kl_max": largest,
        "windows": len(places),
        "tokens": sum(tokens),
    }
    for name, estimate in measured.items():
        row |= estimate.columns(name)
    yield row | high.columns("kl_p99")
