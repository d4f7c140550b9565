"""The conductor: a study in, a diagnosis out."""

from fp4scope.conductor.forecast import forecast
from fp4scope.conductor.recommended import recommend
from fp4scope.conductor.run import activation_statistics, diagnose, measure, run_study
from fp4scope.sweep import Progress
