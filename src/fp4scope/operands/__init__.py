"""The one door to the operands of a model's matrix products: quantize, watch and probe them."""

from fp4scope.operands.adapters import Product, product_at, products, watched
from fp4scope.operands.apply import Injector
from fp4scope.operands.nonfinite import nonfinite_cause
from fp4scope.operands.statistics import InputStatistics, never_run, observe_inputs
