"""Where a model runs, and in which dtype."""

import sys
from typing import NamedTuple

import psutil
import torch
from transformers import PreTrainedModel

from fp4scope.errors import StudyError
from fp4scope.models.layout import Layout
from fp4scope.models.offload import Offloaded
from fp4scope.models.ondisk import Files
from fp4scope.models.pool import Pool, can_share
from fp4scope.models.shelf import Shelf

_SHARE = 0.8
"""Of free memory that weights may take: a sweep needs some too."""


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


class Place(NamedTuple):
    """Where the blocks of a model wait, and why, for the user.

    Attributes:
        offload: `no`: on the device; `yes`: in host memory; `disk`: in files.
        why: In a few words.
    """

    offload: str
    why: str


def chosen_place(size: int, device: torch.device, offload: str, sharing: int = 1) -> Place:
    """Where the blocks wait: as asked, or the first of device, host memory and disk with room.

    Args:
        size: Bytes of the model's weights.
        device: Where it runs.
        offload: What was asked: `auto`, `yes`, `disk` or `no`.
        sharing: How many processes of this host have the model.

    Raises:
        StudyError: They are to wait in host memory, which has not so much.
    """
    host = _HostMemory(psutil.virtual_memory().available, sharing)
    if offload == "yes":
        host.require(size)
    if offload != "auto":
        return Place(offload, "as asked")
    if device.type != "cuda":
        return Place("no", "the device is the host's own memory")
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps of a model that was here before is free too.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if size < _SHARE * free:
        return Place("no", f"{_gb(size)} of weights leave room for a sweep in {_gb(free)}")
    why = f"{_gb(size)} of weights leave too little of the {_gb(free)} that are free on {device}"
    if host.copies * size < _SHARE * host.available or sys.platform != "linux":
        return Place("yes", why)
    return Place("disk", f"{why}, and of {host}")


class _HostMemory(NamedTuple):
    """What is available, and how many processes want blocks in it."""

    available: int
    sharing: int

    @property
    def copies(self) -> int:
        """Several processes map one, where they can."""
        return 1 if can_share() else self.sharing

    def __str__(self) -> str:
        copies = "" if self.copies == 1 else f" for {self.copies} processes"
        return f"the {_gb(self.available)} that are free on this host{copies}"

    def require(self, size: int) -> None:
        if self.copies * size > self.available:
            raise StudyError(
                f"offload is yes, but {_gb(size)} of weights do not fit in {self}; use --offload "
                "disk, or free memory"
            )


def placed(
    model: PreTrainedModel,
    layout: Layout,
    device: torch.device,
    place: Place,
    keeper: Files | Pool | None = None,
) -> Offloaded | None:
    """Move a model to a device, or all of it but its blocks."""
    if place.offload == "no":
        model.to(device)  # type: ignore[arg-type]
        return None
    blocks = list(model.get_submodule(layout.blocks_path).children())
    waiting = {id(t) for block in blocks for t in (*block.parameters(), *block.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in waiting:
            tensor.data = tensor.data.to(device)
    return Offloaded(blocks, device, keeper or keeper_of(place.offload), place.why)


def keeper_of(offload: str, sharing: int = 1, shelf: Shelf | None = None) -> Files | Pool | None:
    """What keeps the blocks: nothing, if they are on the device.

    Args:
        offload: `no`, `yes` or `disk`.
        sharing: How many processes of this host have the model.
        shelf: That of another one.

    Raises:
        StudyError: Blocks cannot wait on disk on this system.
    """
    if offload == "no":
        return None
    return Files(shelf=shelf) if offload == "disk" else Pool(shared=sharing > 1, shelf=shelf)


def size_of(model: PreTrainedModel) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
