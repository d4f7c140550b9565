"""The bar that a user sets: how far a quantized model may be from the full-precision one."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import log1p

from fp4scope.errors import StudyError, nearest, shown
from fp4scope.stats import Estimate

EXAMPLES = "ppl<2%, mnat<20, kl<0.02, top1>95% or task:NAME<2"
_ON_TASK = "task:"


class Verdict(Enum):
    """Whether a measured recipe meets a bar."""

    MET = "met"
    UNDECIDED = "undecided"
    MISSED = "missed"


@dataclass(frozen=True)
class Bar:
    """A bound on one measure.

    Attributes:
        measure: `nll` (a difference, nats per token), `kl` (nats per token), `top1` (a share of
            targets) or `task:NAME` (a score lost, between 0 and 1).
        limit: In the measure's unit; of `top1` from below.
        text: As it was written.
    """

    measure: str
    limit: float
    text: str

    @property
    def above(self) -> bool:
        """Whether larger is better."""
        return self.measure == "top1"

    @property
    def task(self) -> str | None:
        """Name of the task that it is on, if it is."""
        name = self.measure.removeprefix(_ON_TASK)
        return name if name != self.measure else None

    @property
    def companion(self) -> "Bar | None":
        """The bar on KL that comes with one on perplexity.

        A loss can fall while the model moves away. On text that the model itself would write the
        mean increase of NLL is KL, so the same number of nats bounds both.
        """
        if self.measure != "nll":
            return None
        return Bar("kl", self.limit, f"kl<{self.limit:.4g}")

    def verdict(self, low: float | None, high: float | None) -> Verdict:
        """Whether a 95% interval is on the right side, across, or on the wrong one.

        Args:
            low: Its ends; None where there are too few windows for any.
            high: The other.
        """
        if low is None or high is None:
            return Verdict.UNDECIDED
        inside, outside = (low, high) if self.above else (high, low)
        good = inside > self.limit if self.above else inside < self.limit
        bad = outside < self.limit if self.above else outside > self.limit
        return Verdict.MET if good else Verdict.MISSED if bad else Verdict.UNDECIDED


def parse_bar(text: str) -> Bar:
    """What `ppl<2%` and the like mean.

    Raises:
        StudyError: It is none of these.

    Example:
        >>> parse_bar("mnat<20").limit, round(parse_bar("ppl<2%").limit, 4)
        (0.02, 0.0198)
    """
    if (on_task := _on_task(text)) is not None:
        return on_task
    match = re.fullmatch(r"\s*(\w+)\s*([<>])\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)\s*", text.lower())
    if match is None:
        raise StudyError(f"accept is {shown(text)}; give a bar such as {EXAMPLES}")
    name, sign, number, percent = match.groups()
    if name not in _BARS:
        raise StudyError(f"accept: unknown measure {shown(name)}; {nearest(name, _BARS)}")
    wanted, needs_percent = _BARS[name]
    if sign != wanted or (needs_percent is not None and bool(percent) is not needs_percent):
        raise StudyError(f"accept is {shown(text)}; a bar on {name} is written {_example(name)}")
    value = float(number) / (100 if percent else 1)
    if (name == "top1" and not 0 < value < 1) or (name != "top1" and value <= 0):
        raise StudyError(f"accept is {shown(text)}, which no model can be told by; {EXAMPLES}")
    limit = {"ppl": log1p, "mnat": lambda v: v / 1000}.get(name, float)(value)
    measure = {"ppl": "nll", "mnat": "nll"}.get(name, name)
    return Bar(measure, limit, f"{name}{sign}{number}{percent}")


def _on_task(text: str) -> Bar | None:
    """A bar on a task, in points of its score: `task:humaneval<2`."""
    match = re.fullmatch(r"\s*task:\s*([^\s<>]+)\s*<\s*(\d+(?:\.\d+)?|\.\d+)\s*", text)
    if match is None:
        return None
    name, points = match[1], float(match[2])
    if not 0 < points < 100:
        raise StudyError(f"accept is {shown(text)}; give points of a score that has 100 of them")
    return Bar(f"{_ON_TASK}{name}", points / 100, f"{_ON_TASK}{name}<{match[2]}")


def verdict(bars: Iterable[Bar], found: Mapping[str, Estimate]) -> Verdict:
    """Of all bars together: met where each is, missed where one is.

    Args:
        bars: They.
        found: By measure: `nll` and `kl` above the full-precision model, `top1` as a share, of
            tasks what their scores lose. Nothing is decided on a measure that is not there.
    """
    nothing = Estimate(0.0, None, None, None, 0)
    known = [(bar, found.get(bar.measure, nothing)) for bar in bars]
    return all_of(bar.verdict(estimate.low, estimate.high) for bar, estimate in known)


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Met where each is, missed where one is.

    Example:
        >>> all_of([Verdict.MET, Verdict.MISSED, Verdict.UNDECIDED]).value
        'missed'
    """
    each = set(verdicts)
    for one in (Verdict.MISSED, Verdict.UNDECIDED):
        if one in each:
            return one
    return Verdict.MET


def with_companions(bars: Iterable[Bar]) -> list[Bar]:
    """Bars, with those that come with them where a user sets none on the same measure."""
    found = list(bars)
    own = {bar.measure for bar in found}
    more = [bar.companion for bar in found]
    return found + [bar for bar in more if bar is not None and bar.measure not in own]


_BARS: dict[str, tuple[str, bool | None]] = {
    "ppl": ("<", True), "mnat": ("<", False), "kl": ("<", False), "top1": (">", True),
}  # fmt: skip
"""The sign that each is written with, and whether in percent."""


def _example(name: str) -> str:
    return next(one for one in re.split(r", | or ", EXAMPLES) if one.startswith(name))
