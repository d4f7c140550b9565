"""The one door to `transformers`: load a model, find its blocks and components."""

from fp4scope.models.config import config_size, config_value
from fp4scope.models.gguf import cache_folder, quantization_of
from fp4scope.models.layout import Cell, Layout, find_layout, is_linear
from fp4scope.models.load import LoadedModel, adopt, check_name, load_model, resolve_device
from fp4scope.models.stack import BlockInputs, BlockStack, Tail, perturbation, perturbed

__all__ = [
    "BlockInputs",
    "BlockStack",
    "Cell",
    "Layout",
    "LoadedModel",
    "Tail",
    "adopt",
    "cache_folder",
    "check_name",
    "config_size",
    "config_value",
    "find_layout",
    "is_linear",
    "load_model",
    "perturbation",
    "perturbed",
    "quantization_of",
    "resolve_device",
]
