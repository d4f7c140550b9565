"""A model with random weights in place of a checkpoint's: what one of its size takes."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fp4scope.models.ondisk import Files
from fp4scope.models.pool import Pool

NOTE = "the weights are random: time and memory are those of the model, its losses mean nothing"


def empty(kind: Any, config: Any, dtype: torch.dtype) -> PreTrainedModel:  # noqa: ANN401
    """A model without weights."""
    with torch.device("meta"):
        return kind.from_config(config, dtype=dtype)


def drawn(
    kind: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    dtype: torch.dtype,
    device: torch.device,
    keeper: Files | Pool | None = None,
) -> PreTrainedModel:
    """A model as its own code initializes it, the same each time.

    Args:
        kind: One of transformers' auto classes.
        config: Of the model.
        dtype: Of the weights.
        device: Where they are drawn: large models take minutes on a CPU and seconds on a GPU.
        keeper: What keeps them on the host, if they do not stay there. Then the device has one
            module at a time.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        if keeper is None:
            with device:
                return kind.from_config(config, dtype=dtype)
        return _by_module(empty(kind, config, dtype), device, keeper)


@torch.no_grad()
def _by_module(
    model: PreTrainedModel, device: torch.device, keeper: Files | Pool
) -> PreTrainedModel:
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    """What has no data, and what has it instead, by the first's identity: some are twice there."""

    def fill(module: nn.Module, owner: PreTrainedModel) -> None:
        owner = module if isinstance(module, PreTrainedModel) else owner
        for child in module.children():
            fill(child, owner)
        own = [
            (names, n, t) for names in _tensors(module) for n, t in names.items() if t is not None
        ]
        new = [t for *_, t in own if id(t) not in kept]
        for names, name, tensor in own:
            on_device = torch.empty_like(tensor, device=device)
            names[name] = (
                nn.Parameter(on_device, requires_grad=False)
                if isinstance(tensor, nn.Parameter)
                else on_device
            )
        if new:
            owner._init_weights(module)
        for names, name, tensor in own:
            if id(tensor) not in kept:
                value = names[name]
                value.data = keeper.kept(value.detach().cpu())
                kept[id(tensor)] = tensor, value
            names[name] = kept[id(tensor)][1]

    fill(model, model)
    return model


def _tensors(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers
