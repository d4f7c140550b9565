"""What a variant's logits are measured by: NLL, KL to the reference, top-1 agreement."""

from fp4scope.metrics.predictions import (
    ReferencePredictions,
    WindowMetrics,
    compare,
    reference_metrics,
)

__all__ = ["ReferencePredictions", "WindowMetrics", "compare", "reference_metrics"]
