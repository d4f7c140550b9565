"""Planning a study into variants, measuring them, and keeping what was measured."""

from fp4scope.sweep.journal import Journal, check_folder
from fp4scope.sweep.naive import measure
from fp4scope.sweep.plan import PlannedVariant, plan

__all__ = ["Journal", "PlannedVariant", "check_folder", "measure", "plan"]
