"""Fast quantize-dequantize (QDQ): one interface, identical results on every backend.

`qdq` is what the instrument runs on every operand; `fake_quantize` is the same with checks,
for users. The one backend so far is plain torch (`eager`), for CPU and CUDA.
"""

from fp4scope.kernels.eager import NUMERICS_VERSION, qdq
from fp4scope.kernels.public import fake_quantize

__all__ = ["NUMERICS_VERSION", "fake_quantize", "qdq"]
