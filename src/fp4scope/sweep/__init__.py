"""Planning a study into variants, measuring them, and keeping what was measured."""

from fp4scope.sweep.check import SelfCheck, self_check
from fp4scope.sweep.gradient import WindowEstimates, estimate_window
from fp4scope.sweep.journal import Journal, Measured, check_folder
from fp4scope.sweep.measure import Forecast, Progress, Sweep, forecast_sweep
from fp4scope.sweep.memory import Shape, is_out_of_memory
from fp4scope.sweep.naive import measure_naively
from fp4scope.sweep.plan import PlannedVariant, plan
from fp4scope.sweep.stopping import MOST_WINDOWS, Stopping, require_reachable

__all__ = [
    "MOST_WINDOWS",
    "Forecast",
    "Journal",
    "Measured",
    "PlannedVariant",
    "Progress",
    "SelfCheck",
    "Shape",
    "Stopping",
    "Sweep",
    "WindowEstimates",
    "check_folder",
    "estimate_window",
    "forecast_sweep",
    "is_out_of_memory",
    "measure_naively",
    "plan",
    "require_reachable",
    "self_check",
]
