"""Goals: when a study has measured enough, as `--stop-when` says it. Pure Python.

Three kinds. A time ends the run before it would run over. A half-width ends it when every
interval is that narrow. A decision ends it when a set of k units is found whose every member
costs at most `within` less than the k-th most costly of all, with a chance of error of at most
`error` in each family; on the way what is decided is not measured any more. What a unit costs is
NLL, or KL from the full-precision model if the goal says `by=kl`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from math import inf

from fp4scope.errors import StudyError, nearest, shown

EXAMPLES = "a time (90s, 10m, 2h), half-width=2mnat, or best=10,by=kl,within=1mnat,error=5%"

# Decimals, so that a goal that was written is read back to the bit.
_SECONDS = {"s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_NATS = {"mnat": Decimal("0.001"), "millinat": Decimal("0.001"), "nat": Decimal(1)}
_WITHIN = {"nll": 3e-3, "kl": 1e-3}
_ERROR = 0.05


@dataclass(frozen=True)
class TimeGoal:
    """Stop before the run takes longer than so many seconds; one chunk is always measured."""

    seconds: float

    def __str__(self) -> str:
        return f"{_plain(self.seconds)}s"


@dataclass(frozen=True)
class WidthGoal:
    """Stop when no unit's interval has a half-width above `nats` per token."""

    nats: float

    def __str__(self) -> str:
        return f"half-width={_plain(self.nats, 1000)}mnat"


@dataclass(frozen=True)
class BestGoal:
    """Stop when a set of `k` units within `within` nats of the best k is known.

    `error` is the chance, in each family, that a member costs more than `within` less than the
    k-th most costly unit does. `by` is the measure of a cost: `nll` or `kl`.
    """

    k: int
    within: float = _WITHIN["nll"]
    error: float = _ERROR
    by: str = "nll"

    def __str__(self) -> str:
        within, error = _plain(self.within, 1000), _plain(self.error, 100)
        by = "" if self.by == "nll" else f",by={self.by}"
        return f"best={self.k}{by},within={within}mnat,error={error}%"


Goal = TimeGoal | WidthGoal | BestGoal


def parse_goal(text: str) -> Goal:
    """`10m`, `half-width=2mnat` or `best=10,by=kl,within=1mnat,error=5%` as a goal.

    Raises:
        StudyError: It is none of these; the message says which part is wrong.

    Example:
        >>> parse_goal("1.5h")
        TimeGoal(seconds=5400.0)
        >>> str(parse_goal("best=10"))
        'best=10,within=3mnat,error=5%'
        >>> str(parse_goal("best=10,by=kl"))
        'best=10,by=kl,within=1mnat,error=5%'
    """
    if not (parts := [part.strip() for part in text.lower().split(",")])[0]:
        raise StudyError(f"stop_when is {shown(text)}; give {EXAMPLES}")
    if "=" not in parts[0]:
        if len(parts) > 1:
            raise StudyError(
                f"stop_when is {shown(text)}: nothing may follow a time; give {EXAMPLES}"
            )
        return TimeGoal(_seconds(text))
    settings: dict[str, str] = {}
    for part in parts:
        name, _, value = (side.strip() for side in part.partition("="))
        if name in settings:
            raise StudyError(f"stop_when is {shown(text)}: {name} is given twice")
        settings[name] = value
    kind = next(iter(settings))
    if kind not in _KINDS:
        raise StudyError(
            f"stop_when: unknown goal {shown(kind)}; {nearest(kind, _KINDS)}; or a time"
        )
    allowed, build = _KINDS[kind]
    for name in settings:
        if name not in allowed:
            raise StudyError(f"stop_when: {kind} has no {shown(name)}; {nearest(name, allowed)}")
    return build(settings)


def _width(settings: dict[str, str]) -> WidthGoal:
    nats = _nats("half-width", settings["half-width"])
    if not nats:
        raise StudyError("stop_when: half-width is 0; no number of windows reaches that")
    return WidthGoal(nats)


def _best(settings: dict[str, str]) -> BestGoal:
    text = settings["best"]
    if not text.isdecimal() or len(text) > 9 or not int(text):
        raise StudyError(
            f"stop_when: best is {shown(text)}; give a number of units such as best=10"
        )
    by = settings.get("by", "nll")
    if by not in _WITHIN:
        raise StudyError(f"stop_when: by is {shown(by)}; {nearest(by, _WITHIN)}")
    within = _nats("within", settings["within"]) if "within" in settings else _WITHIN[by]
    error = _probability(settings["error"]) if "error" in settings else _ERROR
    return BestGoal(int(text), within, error, by)


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, str]], Goal]]] = {
    "best": (("best", "by", "within", "error"), _best),
    "half-width": (("half-width",), _width),
}


def _plain(value: float, times: int = 1) -> str:
    """A number without an exponent, and with every digit that it needs."""
    return format((Decimal(repr(value)) * times).normalize(), "f")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", text.lower())
    seconds = float(Decimal(match[1]) * _SECONDS[match[2]]) if match else 0.0
    if not 0 < seconds < inf:
        raise StudyError(f"stop_when is {shown(text)}; give {EXAMPLES}")
    return seconds


def _nats(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(mnat|millinat|nat)s?", text)
    nats = float(Decimal(match[1]) * _NATS[match[2]]) if match else inf
    if nats == inf:
        raise StudyError(
            f"stop_when: {name} is {shown(text)}; give nats or millinats per token, such as "
            f"{name}=3mnat or {name}=0.003nat"
        )
    return nats


def _probability(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text)
    value = float(Decimal(match[1]) / (100 if match[2] else 1)) if match else 0.0
    if not 0 < value < 0.5:
        raise StudyError(
            f"stop_when: error is {shown(text)}; give a chance above 0 and below 50%, such as "
            "error=5%"
        )
    return value
