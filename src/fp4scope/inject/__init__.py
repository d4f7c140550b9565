"""Which operand of which linear gets which format, and a `with` block that makes it so."""

from fp4scope.inject.injector import Injector, Setting

__all__ = ["Injector", "Setting"]
