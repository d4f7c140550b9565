"""How what a format costs goes with the size of the model.

Models in the order of their parameters; each step from one to the next has its change, its interval
and its p-value (`contrasts`), Holm over the steps of a format. What the steps say together:

- `rises` or `falls`: every step is significant, and all go that way;
- `neither`: significant steps go either way, so cost is not monotone in size;
- `open`: anything else, which is not decided.

Two models have one step and no trend. Only models whose tokens are the same pieces of text as those
of the first are taken, since nats per token have no common unit otherwise, and of several results
of a size the first.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fp4scope.ledger import Results
from fp4scope.stats.between.comparable import same_tokens, same_unit
from fp4scope.stats.findings.pairing import costs
from fp4scope.stats.inference.change import change as change_between
from fp4scope.stats.inference.multiple import holm, significant
from fp4scope.stats.inference.series import Series
from fp4scope.table import Table

FEWEST_SIZES = 3
"""Two sizes make one step, which is not a trend."""
SCALE_COLUMNS = (
    "format", "precision", "smaller", "larger", "parameters", "parameters_larger",
    "before", "after", "change", "change_stderr", "change_low", "change_high", "p", "p_holm",
    "trend", "paired",
)  # fmt: skip


def scale_table(runs: Mapping[str, Results]) -> Table:
    """A row for each all-quantized model and step from a model to the next larger one.

    `trend` is the same in all rows of a format; None with fewer than `FEWEST_SIZES` sizes.
    """
    sized = _by_size(runs)
    found = {name: _wholes(results) for name, results in sized.items()}
    rows: list[dict[str, Any]] = []
    for fmt, precision in dict.fromkeys(key for of in found.values() for key in of):
        having = [name for name, of in found.items() if (fmt, precision) in of]
        steps = []
        for smaller, larger in pairwise(having):
            one, other = sized[smaller], sized[larger]
            change = change_between(
                found[smaller][fmt, precision],
                found[larger][fmt, precision],
                pair=same_tokens(one, other),
                anytime=one.anytime or other.anytime,
            )
            if change is None:
                continue
            row = {"format": fmt, "precision": precision}
            row |= {"smaller": smaller, "larger": larger}
            row |= {"parameters": one.model["parameters"]}
            row |= {"parameters_larger": other.model["parameters"]}
            steps.append(row | change.columns)
        for row, p in zip(steps, holm([row["p"] for row in steps]), strict=True):
            row["p_holm"] = p
        if len(steps) + 1 >= FEWEST_SIZES:
            said = trend(steps)
            steps = [row | {"trend": said} for row in steps]
        rows += steps
    return Table(SCALE_COLUMNS, rows)


def trend(steps: Sequence[Mapping[str, Any]]) -> str:
    """What steps that have `change` and `p_holm` say together."""
    signs: dict[bool, int] = defaultdict(int)
    for row in filter(significant, steps):
        signs[row["change"] > 0] += 1
    if len(signs) == 2:
        return "neither"
    for rising, count in signs.items():
        if count == len(steps):
            return "rises" if rising else "falls"
    return "open"


def _by_size(runs: Mapping[str, Results]) -> dict[str, Results]:
    """The first of each size, smallest first, as far as a token is the same in all."""
    found: dict[int, tuple[str, Results]] = {}
    first = next(iter(runs.values()))
    for name, results in runs.items():
        parameters = results.model.get("parameters")
        if parameters and same_unit(first, results):
            found.setdefault(parameters, (name, results))
    return dict(found[size] for size in sorted(found))


def _wholes(results: Results) -> dict[tuple[str, str], Series]:
    """What quantizing everything costs, by format and precision."""
    found = ((contrast, series) for contrast, series in costs(results).items() if not contrast.unit)
    return {(c.labels["format"], c.labels["precision"]): series for c, series in found}
