"""Fast quantize-dequantize (QDQ): one interface, identical results on every backend.

`qdq` is what the instrument runs on every operand; `fake_quantize` is the same with checks,
for users; `quantize` gives the bytes that engines store. Backends: plain torch (`eager`) on any
device, numba (`compiled`) on a CPU, Triton (`fused`) on CUDA.
"""

from fp4scope.kernels.dispatch import BACKENDS, backend, qdq, using
from fp4scope.kernels.gated import activation_of, is_fused, qdq_gated
from fp4scope.kernels.packed import QuantizedTensor, quantize
from fp4scope.kernels.public import fake_quantize
