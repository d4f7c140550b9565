"""Statistics of sensitivity: paired differences over windows, with their uncertainty.

The window is the sampling unit. Windows differ far more from each other than variants do, so
every difference is taken window by window first. numpy and scipy, never torch.
"""

from fp4scope.stats.between.changes import change_table
from fp4scope.stats.between.comparable import comparable, differing_conditions
from fp4scope.stats.between.orders import order_table
from fp4scope.stats.between.scale import scale_table
from fp4scope.stats.between.strata import SLOPE, stratum_change_table
from fp4scope.stats.findings.agreement import agreement_table
from fp4scope.stats.findings.causes import error_table, gain_table, split_table
from fp4scope.stats.findings.divergence import divergence_table
from fp4scope.stats.findings.effects import Effects, effects
from fp4scope.stats.findings.exceptions import WITHOUT, exception_table
from fp4scope.stats.findings.formats import format_table, operand_table
from fp4scope.stats.findings.given import Size, given_table, size
from fp4scope.stats.findings.hypotheses import hypotheses
from fp4scope.stats.findings.interactions import additivity_table, interaction_table
from fp4scope.stats.findings.lowering import lowering_table
from fp4scope.stats.findings.mixtures import effect_table, pair_table, sum_table
from fp4scope.stats.findings.neighbours import neighbour_correlation
from fp4scope.stats.findings.noise import noise_shares, rerun_noise
from fp4scope.stats.findings.pairing import Pairing
from fp4scope.stats.findings.predictors import predictor_table
from fp4scope.stats.findings.projections import kind_of, layer_type
from fp4scope.stats.findings.remedies import costly_units, remedy_table
from fp4scope.stats.findings.routing import (
    replay_table,
    router_table,
    routing_table,
    seen_table,
)
from fp4scope.stats.findings.savings import saves, saving_table
from fp4scope.stats.findings.singles import SingleEffects, single_effects
from fp4scope.stats.findings.storage import Storage, sizes_known
from fp4scope.stats.findings.strata import position_table, token_table
from fp4scope.stats.findings.tasks import POINT, task_costs, task_table
from fp4scope.stats.findings.units import (
    FULL_PRECISION,
    activation_table,
    all_quantized_table,
    cost,
    only_estimated,
    projection_activation_table,
    undecided,
    unit_table,
)
from fp4scope.stats.findings.verdicts import Column, Form, Hypothesis, Verdict
from fp4scope.stats.findings.wholes import Whole, wholes
from fp4scope.stats.findings.windows import by_window
from fp4scope.stats.inference.agreement import agreement, spearman
from fp4scope.stats.inference.decisions import BestSearch, Fate, search
from fp4scope.stats.inference.dependence import standard_errors
from fp4scope.stats.inference.flips import Flips, flips
from fp4scope.stats.inference.intervals import (
    CONFIDENCE,
    MIN_WINDOWS,
    Estimate,
    half_width,
    mean,
    paired,
    perplexity_difference,
    simultaneous,
    windows_for,
)
from fp4scope.stats.inference.multiple import SIGNIFICANCE, holm, p_value, significant
from fp4scope.stats.inference.ranks import TOP_K, top_probabilities
from fp4scope.stats.inference.sequences import anytime_p_values, critical, log_evidence
from fp4scope.stats.inference.tiers import tiers
