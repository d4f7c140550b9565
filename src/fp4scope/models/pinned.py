"""Host memory from which a GPU copies while it computes: pages that stay where they are."""

import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from fp4scope.errors import StudyError


def host_bytes(size: int, device: torch.device) -> Tensor:
    """So many bytes of host memory, pinned if the device is a GPU.

    Of one size: PyTorch's own pinned memory comes in powers of two, so it is only what is tried
    where a system cannot pin memory that is there already.

    Args:
        size: How many.
        device: To which they will be copied.

    Raises:
        StudyError: The system pins no more.
    """
    buffer = torch.empty(size, dtype=torch.uint8)
    if pinned(buffer, device):
        return buffer
    del buffer
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise StudyError(
            f"this system does not pin {size / 1e9:.2f} GB more of host memory ({reason}); use "
            "--offload disk, which pins two blocks, raise its limit (ulimit -l), or free memory"
        ) from None


def pinned(buffer: Tensor, device: torch.device) -> bool:
    """Pin memory that is there, until this tensor is given up, if the device is a GPU.

    Args:
        buffer: Bytes on the host.
        device: To which they will be copied.

    Returns:
        Whether they can be copied as they are to be: not if this system does not pin them.
    """
    if device.type != "cuda" or not len(buffer):
        return True
    cuda: Any = torch.cuda.cudart()
    if int(cuda.cudaHostRegister(buffer.data_ptr(), len(buffer), 0)) == 0:
        weakref.finalize(buffer, cuda.cudaHostUnregister, buffer.data_ptr())
        return True
    _forget_error(device)
    return False


def _forget_error(device: torch.device) -> None:
    """Take back what CUDA remembers of a call that failed.

    PyTorch's bindings return the code of a call and leave it as CUDA's last error, and have no
    `cudaGetLastError` to take it back. PyTorch asks that behind every kernel that it launches, so
    the next one, whatever it is, would fail by this error; so one is launched that may.

    Source: `torch/csrc/cuda/shared/cudart.cpp`, `C10_CUDA_KERNEL_LAUNCH_CHECK` in
    `c10/cuda/CUDAException.h`.
    """
    with suppress(RuntimeError):
        torch.empty(1, dtype=torch.uint8, device=device).fill_(1)
