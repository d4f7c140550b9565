"""The four hypotheses of arXiv 2603.08747, held against one study.

A module for each: what is claimed, the statistic, the rule for a verdict, and the columns in which
a reader sees the numbers behind it. A verdict is `supported` or `contradicted` only by a test that
errs in at most 5% of studies; whatever lies between is not decided. All of it speaks of this model
on text like this. First-order estimates decide nothing here.
"""

from fp4scope.ledger import Results
from fp4scope.stats.findings.localization import localization
from fp4scope.stats.findings.mechanism import mechanism
from fp4scope.stats.findings.ordering import ordering
from fp4scope.stats.findings.scale import scale
from fp4scope.stats.findings.verdicts import Hypothesis


def hypotheses(results: Results) -> list[Hypothesis]:
    """The paper's four, in its order."""
    return [mechanism(results), ordering(results), scale(), localization(results)]
