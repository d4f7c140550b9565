"""The one door to `transformers`: load a model, find its blocks and components."""

from fp4scope.models.gguf import cache_folder, quantization_of
from fp4scope.models.layout import Cell, Layout, find_layout, is_linear
from fp4scope.models.load import LoadedModel, adopt, check_name, load_model, resolve_device

__all__ = [
    "Cell",
    "Layout",
    "LoadedModel",
    "adopt",
    "cache_folder",
    "check_name",
    "find_layout",
    "is_linear",
    "load_model",
    "quantization_of",
    "resolve_device",
]
