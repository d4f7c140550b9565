"""A model with random weights in place of a checkpoint's: what one of its size takes."""

from typing import Any

import torch
from transformers import PreTrainedModel

from fp4scope.models.placement import has_room

NOTE = "the weights are random: time and memory are those of the model, its losses mean nothing"


def drawn(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:  # noqa: ANN401
    """A model as its own code initializes it, the same each time.

    It is made where it fits: large models take minutes on a CPU and seconds on a GPU.

    Args:
        kind: One of transformers' auto classes.
        config: Of the model.
        dtype: Of the weights.
        device: Where it is wanted.
    """
    with torch.device("meta"):
        shape = kind.from_config(config, dtype=dtype)
    where = device if has_room(shape, device) else torch.device("cpu")
    devices = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), where:
        torch.manual_seed(0)
        return kind.from_config(config, dtype=dtype)
