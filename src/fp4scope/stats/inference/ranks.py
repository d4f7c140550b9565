"""How sure it is that a unit is among the most costly of its family.

The order of the estimates is not the order of the truth: units a few standard errors apart
change places from one sample of windows to the next. So the means are drawn again (`drawn_means`),
and counted is in how many draws a unit is among the first. Whether two units are told apart is up
to the paired test of `tiers`: it has their difference's own standard error, which the draws only
come near.

Draws spread estimates that noise has spread already, so on little text the middle is overstated: of
layers on 16 windows, with noise as NVFP4's, 0.43 was right in 27% and 0.74 in 60% of cases. On 146
windows it was right. The draws are those of a number of windows that was fixed beforehand; after a
stop that depended on what was seen they are no more than that.
"""

import numpy as np

from fp4scope.stats.inference.dependence import drawn_means
from fp4scope.stats.inference.intervals import MIN_WINDOWS
from fp4scope.stats.inference.series import Floats

TOP_K = {"projections": 2, "blocks": 3, "patterns": 1, "layers": 10, "experts": 10}
DRAWS = 4000


def top_probabilities(costs: Floats, k: int) -> list[float | None]:
    """The probability that each unit is one of the `k` that cost most.

    Args:
        costs: What each unit costs in each window, windows by units.
        k: How many count as the most costly.

    Returns:
        In steps of 1/4000, the same for the same data. 1 for all where there are no more than k
        units, None for all below `MIN_WINDOWS`.
    """
    n, units = costs.shape
    if n < MIN_WINDOWS:
        return [None] * units
    if units <= k:
        return [1.0] * units
    drawn = drawn_means(costs, DRAWS)
    top = np.argpartition(drawn, units - k, axis=1)[:, units - k :]
    return (np.bincount(top.ravel(), minlength=units) / DRAWS).tolist()
