"""Formats against each other, and operands of one format, with everything quantized both ways.

Two all-quantized models are compared window by window, so that what makes windows differ cancels:
their difference is surer than either's difference from the reference suggests.

Which format is the cheapest is seen in the same data. Of formats that cost the same, the one that
seems cheapest is so by luck, and with five of them an ordinary interval of some difference from it
leaves zero out in one study of four. So intervals of formats hold together for all pairs of formats
with the same operands (Bonferroni): whichever pairs the data pick, they cover in 95 of 100 studies.
"""

from collections.abc import Iterator, Mapping, Set
from itertools import permutations
from math import comb
from typing import Any

from fp4scope.design import Contrast
from fp4scope.ledger import Results
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.intervals import paired, simultaneous
from fp4scope.stats.inference.series import Series, aligned
from fp4scope.table import Table
from fp4scope.treatments import operands_of

COMPARISON_COLUMNS = (
    "precision", "format", "against", "rules", "delta_nll", "delta_nll_low", "delta_nll_high",
    "windows",
)  # fmt: skip
OPERAND_COLUMNS = (
    "format", "precision", "against", "delta_nll", "delta_nll_low", "delta_nll_high", "windows",
)  # fmt: skip


def format_table(results: Results) -> Table:
    """All-quantized models of the same operands against each other, nats per token.

    Every format against the cheapest of all and the cheapest of those whose units were measured,
    and every scale rule against the cheapest rule of its format (`rules`). `delta_nll` is the
    format less `against`: what it costs more, with an interval that holds for all pairs together.
    """
    swept = {
        contrast.family.setting.format
        for contrast in results.contrasts
        if contrast.unit is not None and by_window(results.ledger, contrast.own, "nll")
    }
    by_operands: dict[str, dict[str, Series]] = {}
    precisions: dict[tuple[str, str], str] = {}
    for contrast, series in _wholes(results):
        setting = contrast.family.setting
        by_operands.setdefault(setting.operands, {})[setting.format] = series
        precisions[setting.operands, setting.format] = setting.precision
    rows: list[dict[str, Any]] = []
    for operands, by_format in by_operands.items():
        among = comb(len(by_format), 2)
        for name, against in _pairs(by_format, swept):
            row = {"precision": precisions[operands, name], "format": name, "against": against}
            row |= {"rules": _element(name) == _element(against)}
            rows += _compared(row, by_format[name], by_format[against], results, among)
    return Table(COMPARISON_COLUMNS, rows)


def operand_table(results: Results) -> Table:
    """What quantizing both operands costs more than one of them, for every format with both.

    `delta_nll`, in nats per token, is the cost under `precision` less that under `against`.
    """
    by_format: dict[str, dict[str, Series]] = {}
    for contrast, series in _wholes(results):
        setting = contrast.family.setting
        by_format.setdefault(setting.format, {})[setting.precision] = series
    rows: list[dict[str, Any]] = []
    for name, of in by_format.items():
        for precision, against in permutations(of, 2):
            if set(operands_of(precision)) > set(operands_of(against)):
                row = {"format": name, "precision": precision, "against": against}
                rows += _compared(row, of[precision], of[against], results)
    return Table(OPERAND_COLUMNS, rows)


def _wholes(results: Results) -> Iterator[tuple[Contrast, Series]]:
    """Every all-quantized model's own NLL."""
    for contrast in results.contrasts:
        series = by_window(results.ledger, contrast.own, "nll")
        if contrast.unit is None and series is not None:
            yield contrast, series


def _compared(
    row: dict[str, Any], more: Series, less: Series, results: Results, among: int = 1
) -> Iterator[dict[str, Any]]:
    """The row with its difference, if the two share windows."""
    windows, values = aligned([more, less])
    if len(windows):
        delta = paired(values[:, 0], values[:, 1], anytime=results.anytime)
        delta = simultaneous(delta, among, anytime=results.anytime)
        yield row | {"windows": delta.n} | delta.columns("delta_nll")


def _pairs(by_format: Mapping[str, Series], swept: Set[str]) -> dict[tuple[str, str], None]:
    """Which formats are compared: with the cheapest of all, of the swept, of its own rules."""
    ranked = sorted(by_format, key=lambda name: by_format[name].values.mean())
    cheapest = {_element(name): name for name in reversed(ranked)}
    pairs = [(name, ranked[0]) for name in by_format]
    chosen = [name for name in ranked if name in swept]
    pairs += [(name, chosen[0]) for name in by_format if name in chosen]
    pairs += [(name, cheapest[_element(name)]) for name in by_format]
    return dict.fromkeys((name, against) for name, against in pairs if name != against)


def _element(name: str) -> str:
    """A format's name without its scale rule."""
    return name.rpartition(":")[0] or name
