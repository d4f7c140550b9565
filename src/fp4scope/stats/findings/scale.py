"""Hypothesis 3, model scale: one study is of one model, so it never decides this."""

from fp4scope.stats.findings.verdicts import Hypothesis, Verdict


def scale() -> Hypothesis:
    return Hypothesis(
        name="Model scale",
        claim="Increasing model size mainly affects the magnitude of sensitivity, not the relative "
        "ordering of the sensitive projections.",
        verdict=Verdict.UNDECIDED,
        sentence="One model says nothing of scale: fp4scope compare takes the results of several "
        "sizes of one family.",
    )
