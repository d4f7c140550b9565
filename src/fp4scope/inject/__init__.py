"""A `with` block in which operands of linears are quantized as a recipe's settings say."""

from fp4scope.inject.injector import Injector

__all__ = ["Injector"]
