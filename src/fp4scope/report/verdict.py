"""Whether what was measured meets a bar, and what would, in sentences."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from fp4scope.deploy.bar import Bar, Verdict, parse_bar, verdict, with_companions
from fp4scope.deploy.decide import Decision
from fp4scope.deploy.exactly import exactly
from fp4scope.errors import StudyError
from fp4scope.report.choice import cost_of
from fp4scope.report.findings import Findings
from fp4scope.report.given import gigabytes
from fp4scope.report.labels import windows_are
from fp4scope.report.numbers import number
from fp4scope.stats import MIN_WINDOWS, Whole

USUAL = ("ppl<1%", "ppl<2%", "ppl<5%", "ppl<10%")
"""Bars that a reader is told of who gives none."""


def verdicts(found: Findings) -> list[str]:
    """The verdict against the bar of a study; without one, what each usual bar would need."""
    candidates = [w for w in found.wholes if not (w.is_full_precision or w.is_yardstick)]
    if not candidates:
        return []
    windows = max(whole.costs["nll"].n for whole in candidates)
    if windows < MIN_WINDOWS:
        return [
            f"{windows_are(windows)} too few to decide on any bar: {MIN_WINDOWS} or more have "
            "intervals."
        ]
    if found.bars:
        return [f"{_named(found.bars)}: {_against(found, candidates, found.bars)}"]
    said = [
        (text, _against(found, candidates, with_companions([parse_bar(text)]))) for text in USUAL
    ]
    lines = [
        f"{', '.join(text for text, _ in same)}: {answer}"
        for answer, same in groupby(said, key=lambda item: item[1])
    ]
    return [*lines, "A bar on perplexity brings one on KL of as many nats. Set yours: --accept."]


def _named(bars: Sequence[Bar]) -> str:
    return " and ".join(bar.text for bar in bars)


def _against(found: Findings, candidates: Sequence[Whole], bars: Sequence[Bar]) -> str:
    by_verdict = {v: [w for w in candidates if verdict(bars, w.costs) is v] for v in Verdict}
    if met := sorted(by_verdict[Verdict.MET], key=_size):
        return _met(met)
    said = " ".join(_alone(candidates, bars))
    if unsure := by_verdict[Verdict.UNDECIDED]:
        names = ", ".join(whole.title for whole in sorted(unsure, key=_size))
        said = f"undecided for {names}: an interval crosses the bar. Measure more windows. {said}"
    else:
        said = f"not met by anything measured. {said}"
    return f"{said} {_predicted(found, bars)}".replace("  ", " ").rstrip()


def _met(met: Sequence[Whole]) -> str:
    """The smallest that meets a bar, and the smallest that an engine serves."""
    first, *others = met
    said = f"met by {first.title} ({_stored(first)}; {cost_of(first)})"
    if not exactly(first.recipe):
        other = next((whole for whole in met if exactly(whole.recipe)), None)
        said += (
            ", which no engine serves as measured"
            if other is None
            else f"; as engines serve it by {other.title} ({_stored(other)}; {cost_of(other)})"
        )
        others = [whole for whole in others if whole is not other]
    return f"{said}{f', and by {len(others)} more' if others else ''}."


def _alone(candidates: Sequence[Whole], bars: Sequence[Bar]) -> Iterator[str]:
    """What meets the bar on perplexity, but not the one on KL."""
    own = [bar for bar in bars if bar.measure == "nll"]
    kl = next((bar for bar in bars if bar.measure == "kl"), None)
    if not own or kl is None:
        return
    met = sorted((w for w in candidates if verdict(own, w.costs) is Verdict.MET), key=_size)
    if met:
        yield (
            f"On perplexity alone {met[0].title} does ({cost_of(met[0])}); its KL is "
            f"{number(met[0].costs['kl'].mean)}, and the bar's {kl.text}."
        )


def _predicted(found: Findings, bars: Sequence[Bar]) -> str:
    """The smallest recipe that is predicted to meet a bar, where effects of units are known."""
    decision = next((d for d in found.front if d.recipe.settings and _clears(d, bars)), None)
    if decision is None:
        return ""
    size = decision.size
    stored = f", {gigabytes(size.bytes)}" if size.bytes is not None else ""
    return (
        f"A recipe of {number(size.bits, digits=2)} bits{stored} is predicted to meet it, not "
        "measured."
    )


def _clears(decision: Decision, bars: Sequence[Bar]) -> bool:
    try:
        return decision.clears(bars)
    except StudyError:  # a bar on what only a measurement tells
        return False


def _stored(whole: Whole) -> str:
    return f"{number(whole.bits, digits=2)} bits"


def _size(whole: Whole) -> tuple[float, float, float]:
    """What is smallest comes first; of the same size the one with fewer bits of activations."""
    inputs = [16.0 if s.input is None else float(s.input.format.element.bits)
              for s in whole.settings]  # fmt: skip
    return whole.bits, sum(inputs) / len(inputs), whole.costs["kl"].mean
