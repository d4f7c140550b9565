"""The conductor: a study in, a diagnosis out."""

from fp4scope.conductor.progress import Listener, Progress
from fp4scope.conductor.run import activation_statistics, diagnose, run_study

__all__ = ["Listener", "Progress", "activation_statistics", "diagnose", "run_study"]
