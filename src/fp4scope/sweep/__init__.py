"""Measuring everything that a study runs."""

from fp4scope.sweep.check import SelfCheck, self_check
from fp4scope.sweep.gradient import WindowEstimates, estimate_window
from fp4scope.sweep.measure import Forecast, Progress, Sweep, forecast_sweep
from fp4scope.sweep.memory import Shape, is_out_of_memory
from fp4scope.sweep.naive import measure_naively
from fp4scope.sweep.stopping import MOST_WINDOWS, Stopping, require_reachable

__all__ = [
    "MOST_WINDOWS",
    "Forecast",
    "Progress",
    "SelfCheck",
    "Shape",
    "Stopping",
    "Sweep",
    "WindowEstimates",
    "estimate_window",
    "forecast_sweep",
    "is_out_of_memory",
    "measure_naively",
    "require_reachable",
    "self_check",
]
