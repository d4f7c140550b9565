"""The conductor: a study in, a diagnosis out."""

from fp4scope.conductor.forecast import Family, StudyForecast, forecast
from fp4scope.conductor.run import activation_statistics, diagnose, run_study
from fp4scope.sweep import Listener, Progress

__all__ = [
    "Family",
    "Listener",
    "Progress",
    "StudyForecast",
    "activation_statistics",
    "diagnose",
    "forecast",
    "run_study",
]
