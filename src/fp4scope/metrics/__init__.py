"""What a variant did to a model's predictions."""

from fp4scope.metrics.predictions import (
    ReferencePredictions,
    RowMetrics,
    WindowMetrics,
    compare,
    reference_predictions,
)

__all__ = [
    "ReferencePredictions",
    "RowMetrics",
    "WindowMetrics",
    "compare",
    "reference_predictions",
]
