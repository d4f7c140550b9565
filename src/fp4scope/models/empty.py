"""The linears of a model that has a configuration alone: it is made on the device meta."""

import torch

from fp4scope.models.config import config_value
from fp4scope.models.declared import declaration
from fp4scope.models.library import library
from fp4scope.models.load import auto_class
from fp4scope.models.names import resolve
from fp4scope.models.text import text_model
from fp4scope.operands import products
from fp4scope.preflight import check_name
from fp4scope.recipes import expert_name


def empty_linears(name: str, revision: str | None = None) -> dict[str, tuple[int, int]]:
    """Rows and columns of every linear of a model, by the name that checkpoints give it.

    Experts in one tensor have a name each, as checkpoints have them: gates apart from ups.

    Args:
        name: Hub id or local folder.
        revision: Of a hub id.

    Raises:
        ModelError: Not a model, or one that cannot be reached.
    """
    check_name(name, revision)
    where, _ = resolve(name)
    options = {} if revision is None else {"revision": revision}
    with library(name, where) as transformers:
        config = transformers.AutoConfig.from_pretrained(where, **options)
        declaration(name, config)
        kind = auto_class(transformers, config, name)
        with torch.device("meta"):
            whole = kind.from_config(config, dtype=torch.bfloat16)
        model = text_model(whole)
    prefix = next(path for path, module in whole.named_modules() if module is model)
    found: dict[str, tuple[int, int]] = {}
    for path, product in products(model):
        full = f"{prefix}.{path}" if prefix else path
        for own, rows in _separate(full, product.rows, product.experts):
            found[own] = (rows, product.cols)
    if config_value(config, "tie_word_embeddings", False):
        found = {name: size for name, size in found.items() if name.count(".") > 0}
    return found


def _separate(path: str, rows: int, experts: int) -> list[tuple[str, int]]:
    """A linear as checkpoints store it, with its rows."""
    if experts == 1:
        return [(path, rows)]
    holder, _, leaf = path.rpartition(".")
    parts = ["gate_proj", "up_proj"] if leaf == "gate_up_proj" else [leaf]
    return [
        (expert_name(f"{holder}.{part}", number), rows // len(parts))
        for number in range(experts)
        for part in parts
    ]
