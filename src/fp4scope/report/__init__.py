"""Results to tables, figures and text. Never torch."""

from fp4scope.report.comparison import Comparison, compare
from fp4scope.report.diagnosis import Diagnosis, load
from fp4scope.report.files import write_outputs, write_report

__all__ = ["Comparison", "Diagnosis", "compare", "load", "write_outputs", "write_report"]
