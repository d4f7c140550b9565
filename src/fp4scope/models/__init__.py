"""The one door to `transformers`: load a model, find its blocks and components."""

from fp4scope.models.checks import require_coverage, require_model
from fp4scope.models.config import config_size, config_value
from fp4scope.models.exclude import DEFAULTS, Excluded, listed
from fp4scope.models.gguf import cache_folder, quantization_of
from fp4scope.models.layout import NEVER_RUNS, Cell, Layout, find_layout
from fp4scope.models.load import adopt, load_model
from fp4scope.models.loaded import LoadedModel
from fp4scope.models.placement import choose_dtype, resolve_device
from fp4scope.models.stack import BlockInputs, BlockStack, Tail

__all__ = [
    "DEFAULTS",
    "NEVER_RUNS",
    "BlockInputs",
    "BlockStack",
    "Cell",
    "Excluded",
    "Layout",
    "LoadedModel",
    "Tail",
    "adopt",
    "cache_folder",
    "choose_dtype",
    "config_size",
    "config_value",
    "find_layout",
    "listed",
    "load_model",
    "quantization_of",
    "require_coverage",
    "require_model",
    "resolve_device",
]
