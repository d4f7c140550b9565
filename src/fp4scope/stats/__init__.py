"""Statistics of sensitivity: paired differences over windows, with their uncertainty.

The window is the sampling unit. Windows differ far more from each other than variants do, so
every difference is taken window by window first. numpy and scipy, never torch.
"""

from fp4scope.stats.intervals import CONFIDENCE, Estimate, mean, paired, perplexity_difference
from fp4scope.stats.tables import (
    activation_table,
    baseline_table,
    component_activation_table,
    undecided,
    unit_table,
)

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "activation_table",
    "baseline_table",
    "component_activation_table",
    "mean",
    "paired",
    "perplexity_difference",
    "undecided",
    "unit_table",
]
