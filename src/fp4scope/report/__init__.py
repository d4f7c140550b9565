"""Results to tables, figures and text. Never torch."""

from fp4scope.report.files import write_outputs, write_report
