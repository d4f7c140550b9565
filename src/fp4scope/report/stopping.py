"""What a study's goal (`--stop-when`) came to, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fp4scope.design import NOTHING
from fp4scope.ledger import Results
from fp4scope.report import labels

T_INTERVALS = "95% t intervals"
SEQUENCES = "95% confidence sequences, which hold whenever one stops,"
_LISTED = 20
_FIXED = (
    "Rank correlations, probabilities of being among the most costly and shares of the depth are "
    "computed as if the number of windows had been fixed beforehand."
)


def intervals_used(results: Results) -> str:
    """What the brackets of a difference are."""
    return SEQUENCES if results.anytime else T_INTERVALS


def windows_measured(results: Results) -> int:
    """How many windows were measured, of whatever was not dropped before."""
    stopping = results.protocol.get("stopping")
    if stopping:
        return stopping["windows"]
    rows = results.ledger.rows(NOTHING)
    return results.data.get("windows", len(set(rows.indices)) if rows else 0)


def stopping_lines(results: Results) -> list[str]:
    """What was decided after how many windows; nothing for a study without a goal."""
    stopping = results.protocol.get("stopping")
    if not stopping:
        return []
    fixed = [_FIXED] if results.anytime else []
    return [*_overall(stopping), *map(_family, stopping["families"]), *fixed]


def _overall(stopping: Mapping[str, Any]) -> Iterator[str]:
    goal, windows, available = (stopping[name] for name in ("goal", "windows", "available"))
    seen = f"{windows} of {available} windows"
    if stopping["families"]:
        units = [unit for family in stopping["families"] for unit in family["units"]]
        spent = sum(unit["windows"] for unit in units)
        yield (
            f"Goal {goal}: {'reached' if stopping['reached'] else 'not reached'} after {seen}; "
            f"the units in question saw {spent / (available * len(units)):.0%} of all theirs."
        )
    elif stopping["widest_nats"] is not None:
        yield (
            f"Goal {goal}: {'reached' if stopping['reached'] else 'not reached'} after {seen}; "
            f"the widest interval is ±{1e3 * stopping['widest_nats']:.3g} millinats."
        )
    elif stopping["reached"]:
        yield f"Goal {goal}: stopped by the clock after {seen}."
    else:
        yield f"Goal {goal}: {'all' if windows == available else 'so far'} {seen} were measured."


def _family(family: Mapping[str, Any]) -> str:
    k, units = family["k"], family["units"]
    what = (
        f"The {k} most costly of {len(units)} {labels.level(family['level'])}"
        f"{' by KL' if family.get('by') == 'kl' else ''}, "
        f"{labels.family(family)}, within {1e3 * family['within_nats']:g} "
        f"millinats, error at most {100 * family['error']:g}%"
    )
    found = [unit for unit in units if unit["fate"] in ("accepted", "chosen")]
    if family["decided"]:
        return f"{what}: decided after {family['windows']} windows: {_names(found)}."
    dropped = sum(unit["fate"] == "dropped" for unit in units)
    certain = f"certain of {len(found)}" + (f" ({_names(found)})" if found else "")
    return (
        f"{what}: not decided after {family['windows']} windows; {certain}, {dropped} dropped, "
        f"{len(units) - len(found) - dropped} open."
    )


def _names(units: Sequence[Mapping[str, Any]]) -> str:
    names = list(map(labels.place, units))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
