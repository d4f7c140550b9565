"""fp4scope: which parts of a language model MXFP4 and NVFP4 break, by how much, with error bars.

The public surface is what `__all__` lists. Names are resolved when first used, so that
`import fp4scope` (and `fp4scope --help`) never loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fp4scope.conductor import diagnose, measure, recommend
    from fp4scope.deploy.exporting import export
    from fp4scope.diagnosis import Comparison, Diagnosis, compare, load
    from fp4scope.errors import Fp4ScopeError
    from fp4scope.kernels import QuantizedTensor, fake_quantize, quantize

_HOME = {
    "Comparison": "fp4scope.diagnosis",
    "Diagnosis": "fp4scope.diagnosis",
    "Fp4ScopeError": "fp4scope.errors",
    "QuantizedTensor": "fp4scope.kernels",
    "compare": "fp4scope.diagnosis",
    "diagnose": "fp4scope.conductor",
    "export": "fp4scope.deploy.exporting",
    "fake_quantize": "fp4scope.kernels",
    "load": "fp4scope.diagnosis",
    "measure": "fp4scope.conductor",
    "quantize": "fp4scope.kernels",
    "recommend": "fp4scope.conductor",
}

__all__ = [
    "Comparison",
    "Diagnosis",
    "Fp4ScopeError",
    "QuantizedTensor",
    "compare",
    "diagnose",
    "export",
    "fake_quantize",
    "load",
    "measure",
    "quantize",
    "recommend",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOME:
        raise AttributeError(f"module 'fp4scope' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
