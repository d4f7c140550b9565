"""Evaluation and calibration text, cut into deterministic windows."""

from fp4scope.data.strata import strata_of
from fp4scope.data.text import Text, cached_only_if_unreachable, dataset, read_text
from fp4scope.data.windows import (
    WindowSet,
    calibration_text,
    calibration_windows,
    evaluation_text,
    evaluation_windows,
    needs_bos,
)
