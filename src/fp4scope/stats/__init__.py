"""Statistics of sensitivity: paired differences over windows, with their uncertainty.

The window is the sampling unit. Windows differ far more from each other than variants do, so
every difference is taken window by window first. numpy and scipy, never torch.
"""

from fp4scope.stats.agreement import agreement, agreement_table, spearman
from fp4scope.stats.changes import change_table
from fp4scope.stats.comparable import comparable, differing_conditions
from fp4scope.stats.decisions import BestSearch, Fate, search
from fp4scope.stats.dependence import standard_errors
from fp4scope.stats.formats import format_table, operand_table
from fp4scope.stats.hypotheses import Column, Form, Hypothesis, Verdict, hypotheses
from fp4scope.stats.intervals import (
    CONFIDENCE,
    MIN_WINDOWS,
    half_width,
    mean,
    paired,
    perplexity_difference,
    windows_for,
)
from fp4scope.stats.multiple import SIGNIFICANCE, holm, p_value, significant
from fp4scope.stats.neighbours import neighbour_correlation
from fp4scope.stats.noise import noise_shares, rerun_noise
from fp4scope.stats.orders import order_table
from fp4scope.stats.pairing import Pairing
from fp4scope.stats.projections import kind_of, projection_kind
from fp4scope.stats.ranks import TOP_K, top_probabilities
from fp4scope.stats.scale import scale_table
from fp4scope.stats.sequences import anytime_p_values, critical, log_evidence
from fp4scope.stats.tables import (
    FULL_PRECISION,
    activation_table,
    all_quantized_table,
    cost,
    only_estimated,
    projection_activation_table,
    undecided,
    unit_table,
)
from fp4scope.stats.tiers import tiers
from fp4scope.stats.windows import by_window
