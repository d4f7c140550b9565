"""The statistics behind each hypothesis's verdict, as a reader sees them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fp4scope.report.words import number, percent
from fp4scope.stats import Hypothesis
from fp4scope.stats.depth import ALL
from fp4scope.stats.families import named

_Row = Mapping[str, Any]
_MINUS = "\u2212"
_Column = tuple[str, Callable[[_Row], str]]

EXPLANATIONS = (
    "Spearman's rank correlation of the measured costs with max / P99.9 of the input (for a "
    "component the mean over its blocks), and with whether the unit is in the MLP. Intervals are "
    "over windows, not over components, and hold together at 95%. Units that share a value share a "
    "rank, so that a correlation reaches less than 1: the one with max / P99.9 is divided by the "
    "most that it can reach, and the last difference is from that with the MLP so divided too. "
    "Supported: that correlation and the last difference are above zero for the components of "
    "every format and direction. Contradicted: for each of them the difference before it is below "
    "zero, or the correlation is. Cells are shown for comparison.",
    "Two orders of the same components, with the rank correlation and its 95% interval over "
    "windows. Of all pairs of components: how many a paired test tells apart both times (Holm at "
    "5%), and how many of those stand in one order here and in the other there. Contradicted: one "
    "such reversal. Supported: none, at least half of all pairs told apart in every comparison, "
    "and every rank correlation above zero.",
    "",
    "For each component, and for all of a block's cells added up: the block that costs most, with "
    "what it costs, and the probability that the most costly block of endless text like this is in "
    "each third of the depth. Shares of the summed cost, with 95% intervals, where that "
    "sum is significantly positive. Supported: a curve whose largest cell is significantly "
    "positive has it in the final third with a probability of at most 5% over the number of "
    "curves. Contradicted: with 95% or more for all curves.",
)


def columns(hypothesis: Hypothesis, index: int) -> dict[str, Any]:
    """The evidence as headings and rows of (text, value to sort by)."""
    chosen = _COLUMNS[index]
    return {
        "columns": [name for name, _ in chosen],
        "rows": [[_shown(show(row)) for _, show in chosen] for row in hypothesis.evidence],
    }


def _shown(text: str) -> tuple[tuple[str, str], str]:
    """A cell's text, apart from its interval, and what it is sorted by."""
    value, bracket, ends = text.partition(" [")
    bare = value.split(" ")[0].rstrip("%").replace(_MINUS, "-")
    is_number = bare.lstrip("+-").replace(".", "", 1).isdigit()
    return (value, bracket.strip() + ends), bare if is_number else value


def _of(name: str) -> Callable[[_Row], str]:
    return lambda row: str(row[name])


def _rho(name: str) -> Callable[[_Row], str]:
    def show(row: _Row) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        ends = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        return f"{row[name]:.2f}{ends}".replace("-", _MINUS)

    return show


def _share(name: str) -> Callable[[_Row], str]:
    def show(row: _Row) -> str:
        if row[name] is None:
            return ""
        ends = f"{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}"
        return f"{percent(row[name])} [{ends}]".replace("-", _MINUS)

    return show


_COLUMNS: tuple[Sequence[_Column], ...] = (
    (
        ("format, direction", named),
        ("of", lambda row: f"{row['units']} {row['level']}"),
        ("with max / P99.9", _rho("rho_tail")),
        ("with being in the MLP", lambda row: f"{row['rho_mlp']:.2f}"),
        ("the first less the second", _rho("delta_rho")),
        ("... less the most that it can reach", _rho("delta_full")),
        ("windows", _of("windows")),
    ),
    (
        ("one", _of("first")),
        ("other", _of("second")),
        ("operands", _of("operands")),
        ("rank correlation", _rho("rho")),
        ("pairs told apart in both", lambda row: f"{row['separated']} of {row['pairs']}"),
        ("of these reversed", _of("reversed")),
        ("windows", _of("windows")),
    ),
    (),
    (
        ("format, direction", named),
        ("component", lambda row: "all, summed" if row["component"] == ALL else row["component"]),
        ("block that costs most", _of("peak_block")),
        ("millinats there", lambda row: number(1e3 * row["peak_nll"], sign=True)),
        ("in the first third", lambda row: percent(row["p_early"])),
        ("middle third", lambda row: percent(row["p_middle"])),
        ("final third", lambda row: percent(row["p_final"])),
        ("share of the first third", _share("share_early")),
        ("share of the final third", _share("share_final")),
        ("windows", _of("windows")),
    ),
)
