"""The self-check: is the unquantized wavefront the model's own forward?

Before each sweep up to two windows go both ways. Whatever a family hands its blocks or does
after them, what the wavefront gets wrong shows here, before a number is believed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from fp4scope.errors import ModelError
from fp4scope.models import LoadedModel
from fp4scope.sweep.memory import is_out_of_memory

_LAST_ROWS = 64


@dataclass(frozen=True)
class SelfCheck:
    """What the check found.

    `difference` is the root mean square between the logits of both ways, relative to that of the
    logits, and `allowed` what rounding in another order explains. `batches`: whether several
    states can share a batch. `flattens`: whether some linear sees a batch as one long window.
    `captured_bytes` is what the block inputs take.
    """

    difference: float
    allowed: float
    batches: bool
    flattens: bool
    captured_bytes: int


@torch.no_grad()
def self_check(loaded: LoadedModel, ids: Int[Tensor, "windows tokens"]) -> SelfCheck:
    """Run one or two windows through the model's own forward and through its blocks one by one.

    Raises:
        ModelError: They differ by more than rounding.
    """
    ids = ids[:2]
    own = torch.stack([loaded.logits(row, last=_LAST_ROWS) for row in ids])
    loaded.stack.capture(ids[:1])  # the first of all runs the blocks, those that follow do not
    # Sums of products are FP32 and long whatever the dtype; what they end in has its rounding.
    allowed = 16 * torch.finfo(loaded.dtype).eps + 256 * torch.finfo(torch.float32).eps
    for together in (True, False):
        try:
            logits, flattens, captured = _block_by_block(loaded, ids, together)
            difference = _relative(logits.float() - own.float(), own.float())
        except (RuntimeError, IndexError, ValueError) as error:
            if together and not is_out_of_memory(error):
                continue
            raise
        # A model that overflows by itself is for the measurement to name, block and linear.
        if difference <= allowed or not bool(own.isfinite().all()):
            return SelfCheck(difference, allowed, together, flattens, captured)
    raise ModelError(
        f"run block by block, {loaded.name} differs from its own forward by {difference:.3g} of "
        f"its logits, where the rounding of {loaded.dtype_name} explains {allowed:.3g}; this "
        "family cannot be swept: please report it"
    )


def _relative(difference: Tensor, own: Tensor) -> float:
    return (difference.square().mean() / own.square().mean()).sqrt().item()


def _block_by_block(
    loaded: LoadedModel, ids: Int[Tensor, "windows tokens"], together: bool
) -> tuple[Tensor, bool, int]:
    """Logits of the last rows; whether a linear saw a flat input; bytes of one capture."""
    stack = loaded.stack
    flat: list[bool] = []
    hooks = [
        linear.register_forward_pre_hook(lambda _, args: flat.append(args[0].ndim < 3))
        for linear in loaded.linears
    ]
    found: list[Tensor] = []
    captured = 0
    try:
        for part in (ids,) if together else ids.split(1):
            inputs = stack.capture(part)
            captured = max(captured, inputs.size_bytes)
            # A batch that is no multiple of the windows shows an axis taken for the batch.
            windows = [*range(len(part))] + ([0] if together else [])
            hidden = inputs.embedded[windows]
            with stack.fused():
                for block in range(len(stack)):
                    hidden = stack.run(block, hidden, inputs, windows)
                last = hidden[: len(part), -_LAST_ROWS:]
                with stack.tail() as tail:
                    tail(torch.zeros_like(last))  # what it keeps for the next must not matter
                    found.append(tail(last))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found), any(flat), captured
