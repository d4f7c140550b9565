"""What a variant did to a model's predictions."""

# pyright: reportUnusedImport=false
from fp4scope.metrics.predictions import (
    ReferencePredictions,
    RowMetrics,
    WindowMetrics,
    compare,
    reference_predictions,
)
