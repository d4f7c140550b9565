"""The table of KL over tokens, in the words of llama.cpp's `llama-perplexity`."""

from collections.abc import Iterator, Mapping
from typing import Any

from fp4scope.report import labels
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import number, plain
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.table import Interval


def divergence(found: Findings) -> Iterator[Section]:
    """Mean, 99% and maximum of KL, and same top p; nothing where KL was not kept by token."""
    columns = [
        naming("format or recipe"), naming("precision"), Column("mean KLD", "mean KLD"),
        Column("99% KLD", "99% KLD"), Column("maximum KLD", "maximum"),
        Column("same top p", "same top p"), Column("tokens"),
    ]  # fmt: skip
    rows = [
        [
            Cell(row["name"]),
            Cell(row["precision"]),
            _spanned(row, "kl"),
            _spanned(row, "kl_p99"),
            plain(row["kl_max"]),
            _spanned(row, "top1", 100.0),
            Cell(str(row["tokens"]), value=row["tokens"]),
        ]
        for row in found.divergence
    ]
    if rows:
        yield Section(
            "KL over tokens, as llama.cpp reports it",
            columns,
            rows,
            note=f"KL(P || Q) in nats, P of the {labels.full_precision(found.results)} model. "
            "Intervals are 95% over windows; llama.cpp's ± is one standard error over tokens. It "
            "scores the second half of each window, and here all of it counts. The maximum is of "
            "these tokens: it has no interval, and grows with more of them.",
            id="divergence",
        )


def _spanned(row: Mapping[str, Any], name: str, scale: float = 1.0) -> Cell:
    """A number without a sign, with its interval, which may be open above."""
    found = Interval.of(row, name).times(scale)
    digits, unit = (None, "") if scale == 1.0 else (2, "%")
    value, low, high = (number(end, digits=digits) for end in found)
    ends = f"[{low}, {high}]" if high else f"[{low}, ∞)" if low else "(no interval)"
    return Cell(f"{value}{unit}", ends, row[name])
