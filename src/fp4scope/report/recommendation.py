"""A recommendation in sentences: the verdict, how its intervals are meant, and the next commands.

Made once, and shown on the terminal, in `recommendation.md` and on `recommendation.html`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fp4scope.deploy.bar import Verdict
from fp4scope.deploy.recommendation import Recommendation
from fp4scope.report.given import gigabytes
from fp4scope.report.numbers import number
from fp4scope.stats import Size

RECIPE = "recipe.yaml"
_OUTCOMES = {
    Verdict.MET: "recommended",
    Verdict.MISSED: "not recommended",
    Verdict.UNDECIDED: "undecided",
}


def outcome(found: Recommendation) -> str:
    """The verdict in a word or two."""
    return _OUTCOMES[found.outcome]


def measured_on(found: Recommendation) -> str:
    """What the verdict is from."""
    proof = found.written.numbers["measured"]
    return (
        f"Measured as a whole on {proof['windows']} windows of {proof['seq_len']} tokens of "
        f"{proof['text']} that nothing was chosen on."
    )


def held_line(found: Recommendation) -> str:
    """Why a smaller one was not taken, and for how many recipes intervals hold at once."""
    count = len(found.certified) * max(1, len(found.texts))
    held = f"Intervals on certify hold for all {count} rows at once."
    if found.searched is not None or not found.bars:
        return held
    if all(one.verdict(found.bars) is not Verdict.MET for one in found.refined):
        return held
    return f"Taken is the smallest that met the bar on refine; certify judges it. {held}"


def next_commands(found: Recommendation, recipe: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """What makes, serves and verifies a checkpoint, as words; nothing without a recommendation.

    Args:
        found: It.
        recipe: Its file.
    """
    if found.is_recommended:
        make = ["fp4scope", "export", str(recipe), "--to", "compressed-tensors"]
        yield "Next:", [*make, "--checkpoint", "DIR"]
        yield "Then:", ["vllm", "serve", "DIR"]
        server = ["--server", "http://localhost:8000"]
        yield "Then:", ["fp4scope", "verify", "DIR", *server, "--text", "TEXT"]


def verdict_lines(found: Recommendation) -> Iterator[str]:
    """The answer in a sentence or two."""
    chosen, searched = found.chosen, found.searched
    what = sized(chosen.decision.size)
    where = ", on every text" if found.texts else ""
    said = " and ".join(bar.text for bar in found.bars)
    if searched is not None:
        before, after = (_milli(one.found["kl"].mean) for one in (searched.start, searched.end))
        yield (
            "On refine the prediction of the choice failed: effects do not add up in this model. "
            f"So {searched.moves} changes of single groups were measured there in "
            f"{searched.passes} passes; KL went from {before} to {after} millinats, bits from "
            f"{number(searched.start.decision.size.bits, digits=2)} to "
            f"{number(searched.end.decision.size.bits, digits=2)}."
        )
    if found.verdict is Verdict.MET:
        yield f"{said}: met by {what}{where}, on windows that the choice has not seen."
    elif found.verdict is Verdict.UNDECIDED:
        yield (
            f"{said}: undecided for {what}; an interval crosses the bar. Measure more windows, or "
            "allow a larger recipe."
        )
    elif found.verdict is Verdict.MISSED:
        yield f"{said}: missed, by {what} too. Allow more, or give a palette with larger formats."
    expected = "Measured on refine" if searched is not None else "Predicted"
    if chosen.is_as_predicted and searched is None and chosen.is_hardly_predicted:
        predicted, own = chosen.decision.predicted["kl"], _milli(chosen.found["kl"].mean)
        reach = f"{_milli(predicted.low or 0)} to {_milli(predicted.high or 0)}"
        yield (
            f"The prediction could hardly fail: KL of {reach} millinats, where {own} was measured. "
            "Give more --design-runs or --windows."
        )
    elif chosen.is_as_predicted:
        yield f"{expected} and measured here agree."
    else:
        yield (
            f"{expected} and measured here do not agree: what was expected of this recipe failed. "
            "Measure more windows, or allow more bits."
        )
    if not found.is_recommended:
        though = ", though the bar is met" if found.verdict is Verdict.MET else ""
        yield f"No recommendation{though}: the recipe is written as it was measured."


def sized(size: Size) -> str:
    """Bits and bytes."""
    return f"{number(size.bits, digits=2)} bits a weight, {gigabytes(size.bytes)}"


def _milli(nats: float) -> str:
    return number(1e3 * nats, digits=1)
