"""The one door to `transformers`: load a model, find its blocks and projections."""

from fp4scope.models.calls import BlockInputs
from fp4scope.models.checks import require_coverage, require_model
from fp4scope.models.config import config_size, config_value
from fp4scope.models.exclude import Excluded, listed
from fp4scope.models.gguf import cache_folder, quantization_of
from fp4scope.models.layout import NEVER_RUNS, ROUTER, Layer, Layout, find_layout
from fp4scope.models.links import Axes
from fp4scope.models.load import adopt, load_model
from fp4scope.models.loaded import LoadedModel
from fp4scope.models.offload import Offloaded
from fp4scope.models.parts import find_parts
from fp4scope.models.placement import choose_dtype, resolve_device
from fp4scope.models.shelf import Shelf
from fp4scope.models.source import Piece, Source, Tensors, open_source
from fp4scope.models.stack import BlockStack, Tail
from fp4scope.models.states import State, together
from fp4scope.models.text import listed_towers
