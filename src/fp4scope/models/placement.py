"""Where a model runs, and in which dtype."""

import torch
from transformers import PreTrainedModel

from fp4scope.errors import StudyError
from fp4scope.models.layout import Layout
from fp4scope.models.offload import Offloaded


def resolve_device(device: str) -> torch.device:
    """The torch device called `device`; `auto` is CUDA if there is one.

    Raises:
        StudyError: There is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found).cpu()  # the copy finds out a device without data, `meta`
    except Exception as error:  # a backend that is not installed may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise StudyError(f"device {device!r} cannot be used here ({reason}); try cpu") from None
    return found


def choose_dtype(asked: str, device: str, stored: torch.dtype | None) -> torch.dtype:
    """The dtype to measure in.

    Args:
        asked: `float32`, `bfloat16`, `float16`, or `auto`: FP32 on a CPU; on CUDA the checkpoint's
            own if it has 16 bits, else BF16.
        device: Its type, such as `cuda`.
        stored: What most of the checkpoint's values have, if that is known.

    Example:
        >>> choose_dtype("auto", "cuda", torch.float32), choose_dtype("auto", "cpu", torch.float16)
        (torch.bfloat16, torch.float32)
    """
    if asked != "auto":
        return getattr(torch, asked)
    if device != "cuda":
        return torch.float32
    return stored if stored in (torch.bfloat16, torch.float16) else torch.bfloat16


def dtype_note(
    asked: str, device: str, stored: torch.dtype | None, chosen: torch.dtype
) -> str | None:
    """One line on a dtype that the user may not expect, or that costs much."""
    if device != "cuda":
        return None
    if chosen == torch.float32:
        return "float32 on CUDA runs without tensor cores: it is many times slower than bfloat16"
    if asked == "auto" and stored != chosen:
        before = str(stored).removeprefix("torch.") if stored else "a dtype that is not known"
        return (
            f"the weights are stored in {before} (a GGUF file's are dequantized to float32) and "
            "measured in bfloat16; --dtype float32 keeps every bit and is many times slower"
        )
    return None


def placed(
    model: PreTrainedModel, layout: Layout, device: torch.device, offload: str
) -> Offloaded | None:
    """Move a model to a device, or all of it but its blocks."""
    if offload == "no" or (offload == "auto" and has_room(model, device)):
        model.to(device)  # type: ignore[arg-type]
        return None
    blocks = list(model.get_submodule(layout.blocks_path).children())
    waiting = {id(t) for block in blocks for t in (*block.parameters(), *block.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in waiting:
            tensor.data = tensor.data.to(device)
    return Offloaded(blocks, device)


def has_room(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether a device has room for a model's weights, and some more to work in."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers())) < 0.8 * free
