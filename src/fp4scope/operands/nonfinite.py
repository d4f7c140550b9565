"""Why a model gives NaN or Inf, and what helps."""

import torch
from torch import nn


def nonfinite_cause(model: nn.Module) -> str:
    """The end of a sentence that says what was not finite: a damaged weight, or the dtype."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the weight {name} has NaN or Inf; the checkpoint is damaged"
    dtype = next(model.parameters()).dtype
    if dtype == torch.float16:
        return "use a dtype with more range (--dtype bfloat16 or float32)"
    return f"no dtype has more range than {str(dtype).removeprefix('torch.')}: the model overflows"
