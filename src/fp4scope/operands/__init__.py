"""The one door to the operands of a model's matrix products: quantize, watch and probe them."""

from fp4scope.operands.adapters import Input, Product
from fp4scope.operands.apply import Injector
from fp4scope.operands.experts import FEWEST_ROWS, Choice, experts_in, routed
from fp4scope.operands.nonfinite import nonfinite_cause
from fp4scope.operands.products import product_at, products, watched
from fp4scope.operands.statistics import InputStatistics, never_run, observe_inputs
