"""Number formats as data, and what one value becomes in each: no torch here.

`spec` holds the formats; `oracle` is the slow, exact definition that tests hold the
kernels against. The rules themselves are explained in `spec`.
"""

# pyright: reportUnusedImport=false
from fp4scope.formats.spec import (
    CACHE_FORMATS,
    FORMATS,
    WEIGHT_FORMATS,
    BlockFormat,
    ScaleRule,
    Span,
    cache_format_name,
    get_cache_format,
    get_format,
    get_treatment_format,
)
