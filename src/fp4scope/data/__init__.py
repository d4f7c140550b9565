"""Evaluation and calibration text, cut into deterministic windows."""

from fp4scope.data.text import Text, pydoc_topics, read_text, wikitext2
from fp4scope.data.windows import WindowSet, needs_bos, prepare

__all__ = ["Text", "WindowSet", "needs_bos", "prepare", "pydoc_topics", "read_text", "wikitext2"]
