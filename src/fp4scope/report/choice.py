"""Which format costs least, and which an engine serves, in sentences."""

import re
from collections.abc import Iterator, Sequence

from fp4scope.deploy.exactly import exactly
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import interval, number, relative
from fp4scope.stats import Whole, undecided
from fp4scope.treatments import operands_of

_SIDES = {"WA": "Weights with activations", "W": "Weights alone", "A": "Activations alone"}
_QUANTIZED = re.compile(r"[WA](?!16)(\d+)")
_RULES = {
    "mxfp4:even": "even, the rule of vLLM and llm-compressor",
    "mxfp4:rceil": "rceil, the rule of ModelOpt and torchao",
    "mxfp4:floor": "floor, the rule of the MX specification and the paper",
}


def which_format(found: Findings) -> list[str]:
    """The cheapest format, by what is quantized; what of it engines serve; MXFP4's rules."""
    lines: list[str] = []
    for operands, words in _SIDES.items():
        chosen = [
            whole
            for whole in found.wholes
            if whole.precision
            and operands_of(whole.precision) == operands
            and not whole.is_yardstick
        ]
        if chosen:
            lines.append(f"{words}: {_smallest_first(found, chosen)}")
    return [*lines, *_rules(found), *_yardsticks(found)]


def _yardsticks(found: Findings) -> Iterator[str]:
    """What formats cost that people run already, those of most bits first."""
    known = [whole for whole in found.wholes if whole.is_yardstick]
    if known:
        each = [
            f"{whole.name} ({number(whole.bits, digits=2)} bits) costs {cost_of(whole)}"
            for whole in sorted(known, key=lambda whole: -whole.bits)
        ]
        yield f"What people run already, weights alone: {'; '.join(each)}."


def cost_of(whole: Whole) -> str:
    """What a whole model costs.

    Such as `+7.50% of perplexity [+6.9, +8.1]`.
    """
    cell = relative(whole.row)
    said = f"{cell.text} of perplexity {cell.aside}"
    return f"{said}, not significant" if undecided(whole.row) else said


def _smallest_first(found: Findings, chosen: Sequence[Whole]) -> str:
    """The cheapest of what has fewest bits; wider formats are what these are held against."""
    bits = {whole.name: _element_bits(whole) for whole in chosen}
    small = [whole for whole in chosen if bits[whole.name] == min(bits.values())]
    wider = next((whole for whole in chosen if whole not in small), None)
    said = _cheapest(found, small)
    return said if wider is None else f"{said} {wider.title}, for comparison: {cost_of(wider)}."


def _element_bits(whole: Whole) -> int:
    """Of the widest operand that is quantized.

    Example:
        >>> max(map(int, _QUANTIZED.findall("W4A16"))), max(map(int, _QUANTIZED.findall("W4A8")))
        (4, 8)
    """
    return max(map(int, _QUANTIZED.findall(whole.precision)), default=16)


def _cheapest(found: Findings, chosen: Sequence[Whole]) -> str:
    """The first of these, what cannot be told from it, and the first that an engine serves."""
    first = chosen[0]
    costlier = {
        row["format"]: row
        for row in found.formats
        if (row["against"], row["precision"]) == (first.name, first.precision)
    }
    alike = [w.name for w in chosen[1:] if w.name in costlier and undecided(costlier[w.name])]
    said = f"{first.title} costs least, {cost_of(first)}" if len(chosen) > 1 else (
        f"{first.title} costs {cost_of(first)}"
    )  # fmt: skip
    if alike:
        said += f" (not significantly less than {', '.join(alike)})"
    elif len(chosen) > 1 and chosen[1].name in costlier:
        more = interval(costlier[chosen[1].name])
        said += f"; {chosen[1].title}, next, costs {more} millinats more"
    if exactly(first.recipe):
        return f"{said}."
    other = next((whole for whole in chosen if exactly(whole.recipe)), None)
    if other is None:
        return f"{said}. No engine serves any of these as measured."
    return (
        f"{said}. No engine serves that as measured; the cheapest that one does is "
        f"{other.title}, {cost_of(other)}."
    )


def _rules(found: Findings) -> Iterator[str]:
    """What MXFP4 costs by the rule of its scales: those that engines use first."""
    for operands in _SIDES:
        known = {w.name: w for w in found.wholes if operands_of(w.precision) == operands}
        rules = [name for name in _RULES if name in known]
        if not rules:
            continue
        if rules == ["mxfp4:floor"]:
            yield (
                f"{known[rules[0]].title} is the rule of the MX specification and the paper. "
                "Engines use even or rceil: --all-quantized mxfp4:even,mxfp4:rceil."
            )
        else:
            each = [f"{relative(known[name].row).text} with {_RULES[name]}" for name in rules]
            yield f"MXFP4 ({known[rules[0]].precision}) costs {'; '.join(each)}."
        return
