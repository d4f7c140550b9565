"""What one thing costs in one run and in another, and the change between the two.

Where windows hold the same tokens the change is taken window by window, like every difference here.
Where they don't, the two means are compared (Welch): windows differ more from each other than runs
do, so such an interval is wider.

Source: Welch 1947, The generalization of "Student's" problem when several different population
variances are involved, Biometrika 34(1-2).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.intervals import CONFIDENCE, MIN_WINDOWS, Estimate, paired
from fp4scope.stats.inference.multiple import p_value
from fp4scope.stats.inference.series import Floats, Series, aligned


@dataclass(frozen=True)
class Change:
    """Nats per token, `after` less `before`.

    Without interval and `p` below `MIN_WINDOWS` windows, and where unpaired windows were
    measured until something was decided: no Welch interval holds then.
    """

    before: float
    after: float
    change: Estimate
    p: float | None
    paired: bool
    windows: tuple[int, int]

    @property
    def columns(self) -> dict[str, Any]:
        """What a row has to hold of it."""
        known = {name: getattr(self, name) for name in ("before", "after", "p", "paired")}
        return known | self.change.columns("change")


def change(before: Series, after: Series, *, pair: bool, anytime: bool = False) -> Change | None:
    """The change from `before` to `after`; None where paired windows share none.

    Args:
        before: What it costs in each window of the one run.
        after: What it costs in each window of the other.
        pair: Whether windows of the same number hold the same tokens.
        anytime: Whether how many windows there are depended on what was measured.
    """
    x, y = before.values, after.values
    if pair:
        _, values = aligned([before, after])
        x, y = values.T
    if not (len(x) and len(y)):
        return None
    if pair:
        found = paired(y, x, anytime=anytime)
        p = p_value(found, anytime=anytime)
    else:
        found, p = _welch(x, y, anytime)
    return Change(
        before=float(x.mean()),
        after=float(y.mean()),
        change=found,
        p=p,
        paired=pair,
        windows=(len(x), len(y)),
    )


def _welch(x: Floats, y: Floats, anytime: bool) -> tuple[Estimate, float | None]:
    change, n = float(y.mean() - x.mean()), min(len(x), len(y))
    if n < 2:
        return Estimate(change, None, None, None, n), None
    a, b = (float(standard_errors(side)) ** 2 for side in (x, y))
    stderr = float(np.sqrt(a + b))
    if n < MIN_WINDOWS or anytime:
        return Estimate(change, stderr, None, None, n), None
    if not stderr:
        return Estimate(change, 0.0, change, change, n), float(change == 0)
    freedom = (a + b) ** 2 / (a**2 / (len(x) - 1) + b**2 / (len(y) - 1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * stderr
    p = float(2 * special.stdtr(freedom, -abs(change) / stderr))
    return Estimate(change, stderr, change - half, change + half, n), p
