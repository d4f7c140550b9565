"""What to distrust in a study, in sentences."""

from collections.abc import Iterator

from fp4scope.names import visible
from fp4scope.report.findings import Findings
from fp4scope.report.labels import windows_are
from fp4scope.report.numbers import number, percent
from fp4scope.report.selection import lowering
from fp4scope.report.stopping import windows_measured
from fp4scope.stats import MIN_WINDOWS, SIGNIFICANCE, effects

IMPLAUSIBLE = 30.0
"""A perplexity that a language model seldom has on prose."""
USELESS = 1000.0
"""A perplexity of a model that does not know the text, or of a wrong tokenizer."""
LOWERING = 0.05
"""Of the layers: where more lower the loss, and not KL, the text may not be the model's own."""


def caveats(found: Findings) -> Iterator[str]:
    """Why the numbers of a study may not be those of the model in use."""
    results = found.results
    windows = windows_measured(results)
    designed = effects(results)
    if designed is not None and designed.fit.drawn:
        unknowns = len(designed.groups) * len(designed.settings)
        yield (
            f"{len(designed.levels)} designed runs cannot tell {len(designed.groups)} groups "
            "apart. Effects are drawn to zero and to each other, which their intervals do not "
            "contain. "
            f"Leave --design-runs out, or give about {3 * unknowns}."
        )
    if windows < MIN_WINDOWS:
        yield (
            f"{windows_are(windows)} too few for an interval. Measure {MIN_WINDOWS} or more before "
            "you rely on any order here."
        )
    ppl = next((row["ppl"] for row in found.all_quantized if not row["precision"]), None)
    if ppl is not None and ppl > USELESS:
        yield (
            f"STOP: the full-precision model's own perplexity is {number(ppl)}. It does not "
            "predict this text at all, so costs on it mean nothing. Look for another tokenizer, "
            "another text, or damaged weights."
        )
    elif ppl is not None and ppl > IMPLAUSIBLE:
        yield (
            f"The full-precision model's own perplexity is {number(ppl)}, high for prose. Is this "
            "text what the model is for, and are its weights intact?"
        )
    if prior := results.model.get("prior_quantization"):
        yield (
            f"These weights were quantized before ({prior}). The reference is the dequantized "
            "file, and FP4 comes on top."
        )
    if (results.data.get("calibration") or {}).get("evaluated") and _calibrated(found):
        yield "Scales of activations were calibrated on the evaluated text, which flatters them."
    source = str(results.data.get("source", ""))
    if source.endswith(".jsonl"):
        yield (
            f"{visible(source)} was read as it is, names and brackets of its JSON too. Chats are "
            "read through the model's chat template where several texts are named: "
            f"--text chat={visible(source)},prose=a.txt."
        )
    yield from _better(found)
    yield from _domain(found)
    yield from results.model.get("warnings", ())


def _calibrated(found: Findings) -> bool:
    """Whether a scale of inputs comes from the calibration text."""
    inputs = [setting.input for whole in found.wholes for setting in whole.settings]
    return any(own is not None and own.tensor_scale is not None for own in inputs)


def _better(found: Findings) -> Iterator[str]:
    """Whether a whole model has a lower loss than in full precision, which is no merit of it."""
    ends = ((whole.title, whole.costs["nll"].high) for whole in found.wholes if whole.settings)
    if lower := [title for title, high in ends if high is not None and high < 0]:
        yield (
            f"Lower loss than in full precision: {', '.join(lower)}. That is chance or a text that "
            "the model is not for, and no better model. Here KL and same top token say how "
            "far it is from the original."
        )


def _domain(found: Findings) -> Iterator[str]:
    """Whether quantizing many layers lowers the loss without bringing the model closer."""
    tested = [row for row in found.layers if row["p_holm"] is not None]
    odd = [
        row
        for row in lowering(tested)
        if not (row["p_holm_kl"] is not None and row["p_holm_kl"] <= SIGNIFICANCE
                and row["delta_kl"] < 0)
    ]  # fmt: skip
    if tested and len(odd) > LOWERING * len(tested):
        yield (
            f"Quantizing {len(odd)} of {len(tested)} layers ({percent(len(odd) / len(tested))}) "
            "lowers the loss on this text and brings none closer to the full-precision model. The "
            "text may not be what the model is for; KL does not depend on that."
        )
