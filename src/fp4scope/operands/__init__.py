"""The one door to the operands of a model's matrix products: quantize, watch and probe them."""

from fp4scope.operands.adapters import Input, Operand, Product
from fp4scope.operands.apply import Injector
from fp4scope.operands.attention import attentions, cached, shared_caches
from fp4scope.operands.experts import FEWEST_ROWS, Choice, experts_in, routed
from fp4scope.operands.fitted import Moments, observe_moments
from fp4scope.operands.multiplied import PV, QK
from fp4scope.operands.nonfinite import nonfinite_cause
from fp4scope.operands.products import operand_at, product_at, products, watched
from fp4scope.operands.routers import Scores, choices, find_scores, told
from fp4scope.operands.statistics import InputStatistics, never_run, observe_inputs
