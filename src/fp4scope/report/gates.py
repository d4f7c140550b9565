"""Conditions on a comparison (`--fail-if`), so that it can gate a build.

    cost(nvfp4) > 40        what quantizing costs, millinats per token
    cost(nvfp4).low > 40    an end of its 95% interval: surely more than 40
    change(nvfp4) > 5       how much more it costs than in the output it is compared with
    change.low > 0          any format costs more, surely at 95%
    beyond-noise            any whole model, projection or layer changed beyond noise
    beyond-noise(nvfp4)     ... under this format

A name, a format if only one is meant, `.low` or `.high`, `>` or `<`, and millinats. Conditions are
on every output but the first, which is what the others are held to.
"""

import re
from dataclasses import dataclass
from math import isfinite
from typing import Any

from fp4scope.errors import StudyError, nearest
from fp4scope.report.joint import JointFindings
from fp4scope.report.labels import place
from fp4scope.report.numbers import number
from fp4scope.stats import MIN_WINDOWS
from fp4scope.treatments import Configuration

EXAMPLES = "'cost(nvfp4) > 40', 'change.low > 0' (millinats), or beyond-noise"
_FLAG = "beyond-noise"
_COLUMNS = {"cost": "delta_nll", "change": "change"}
_ENDS = ("low", "high")
_LISTED = 5
_NAMES = (*_COLUMNS, _FLAG)
_SHAPE = re.compile(
    r"(?P<name>[\w-]+) \s* (?:\( \s* (?P<format>[^()\s]+) \s* \))? (?:\.(?P<end>\w+))?"
    r"(?: \s* (?P<sign>[<>]) \s* (?P<limit>[-+]?\d+(?:\.\d+)?) )?",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Gate:
    """A condition; `limit` is in millinats per token, None for `beyond-noise`.

    `format` and `precision` are of the rows that it is about; None is any.
    """

    text: str
    name: str
    format: str | None
    precision: str | None = None
    end: str | None = None
    above: bool = True
    limit: float | None = None


def parse_gate(text: str) -> Gate:
    """A condition as `--fail-if` gives it.

    Raises:
        StudyError: It is none; the message says which part is wrong.
        FormatError: It names an unknown format.

    Example:
        >>> gate = parse_gate("cost(mxfp4).low > 40")
        >>> gate.name, gate.format, gate.end, gate.limit
        ('cost', 'mxfp4:floor', 'low', 40.0)
    """
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise StudyError(f"fail-if is {text!r}; give a condition such as {EXAMPLES}")
    name, end, sign = match["name"], match["end"], match["sign"]
    if name not in _NAMES:
        raise StudyError(f"fail-if {text!r}: unknown {name!r}; {nearest(name, _NAMES)}")
    fmt, precision = _named(match["format"])
    if name == _FLAG:
        if sign or end:
            raise StudyError(f"fail-if {text!r}: nothing may follow {_FLAG}; give it alone")
        return Gate(text, name, fmt, precision)
    if end not in (None, *_ENDS):
        raise StudyError(f"fail-if {text!r}: {name} has no {end!r}; {nearest(end, _ENDS)}")
    if not sign:
        raise StudyError(f"fail-if {text!r}: no limit; compare it in millinats, as '{text} > 5'")
    return Gate(text, name, fmt, precision, end, sign == ">", float(match["limit"]))


def _named(configuration: str | None) -> tuple[str | None, str | None]:
    """Format and precision of the rows that are meant; None for any."""
    if configuration is None:
        return None, None
    named = Configuration.parse(configuration)
    setting = named.setting()
    return setting.format, setting.precision if named.operands else None


def failures(gate: Gate, comparison: JointFindings) -> list[str]:
    """Where the condition holds, and by how much; nothing where it holds nowhere.

    Raises:
        StudyError: It cannot be judged for an output: a gate that checks nothing must not pass.
    """
    found = []
    for output in list(comparison.runs)[1:]:
        rows = _rows(gate, comparison, output)
        if gate.limit is None:
            found += _beyond_noise(gate, rows)
        else:
            found += [said for row in rows if (said := _over_limit(gate, gate.limit, row))]
    return [f"{gate.text}: {said}" for said in found]


def _rows(gate: Gate, comparison: JointFindings, output: str) -> list[dict[str, Any]]:
    """What the condition is about in an output."""
    if gate.name == "cost":
        table = comparison.all_quantized.where(output=output)
    elif output not in (new for _, new in comparison.compared):
        raise StudyError(
            f"fail-if {gate.text!r}: {output} is not comparable with an output before it; give "
            "runs of one model, or of checkpoints of one shape, with one tokenizer"
        )
    else:
        table = comparison.changes.where(output=output)
        table = table.where(level="model") if gate.name == "change" else table
    found = [
        row
        for row in table
        if gate.format in (None, row["format"]) and gate.precision in (None, row["precision"])
    ]
    if not found:
        there = ", ".join(dict.fromkeys(table["format"])) or "nothing that both have"
        wanted = " ".join(filter(None, (gate.format or "any format", gate.precision)))
        raise StudyError(
            f"fail-if {gate.text!r}: {output} has nothing of {wanted} to judge; there is: {there}"
        )
    return found


def _over_limit(gate: Gate, limit: float, row: dict[str, Any]) -> str | None:
    column = _COLUMNS[gate.name]
    value = row[f"{column}_{gate.end}" if gate.end else column]
    _require_finite(gate, row, value)
    if value is None:
        raise StudyError(
            f"fail-if {gate.text!r}: {_place(row)} has no interval (fewer than {MIN_WINDOWS} "
            "windows, or unpaired ones of a run with a goal); measure more, or leave out "
            f".{gate.end}"
        )
    excess = 1e3 * value - limit if gate.above else limit - 1e3 * value
    if excess <= 0:
        return None
    side = "above" if gate.above else "below"
    return f"{_place(row)} has {number(1e3 * value, sign=True)}, {number(excess)} {side}"


def _beyond_noise(gate: Gate, rows: list[dict[str, Any]]) -> list[str]:
    if all(row["beyond_noise"] is None for row in rows):
        raise StudyError(
            f"fail-if {gate.text!r}: it is not known for {rows[0]['output']}: that takes "
            f"{MIN_WINDOWS} windows or more, and of two texts runs without a goal"
        )
    for row in rows:
        _require_finite(gate, row, row["change"])
    order = ("model", "projections")
    found = sorted(
        (row for row in rows if row["beyond_noise"]),
        key=lambda row: ([row["level"] != level for level in order], -abs(row["change"])),
    )
    said = [
        f"{_place(row)} changed by {number(1e3 * row['change'], sign=True)} "
        f"(p {number(row['p_holm'])})"
        for row in found[:_LISTED]
    ]
    more = len(found) - len(said)
    return [*said, f"and {more} more"] if more else said


def _require_finite(gate: Gate, row: dict[str, Any], value: float | None) -> None:
    """No limit holds a value that is no number, and none tells it from noise."""
    if value is not None and not isfinite(value):
        raise StudyError(f"fail-if {gate.text!r}: {_place(row)} has {value}, which nothing judges")


def _place(row: dict[str, Any]) -> str:
    parts = [row["output"], row["format"], row["precision"]]
    if row.get("level") not in (None, "model"):
        parts += [row["direction"], place(row)]
    return ", ".join(parts)
