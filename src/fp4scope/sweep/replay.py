"""A block on the GPU without the time that Python takes to launch its kernels.

Most states go through a block in one and the same setting: that of the baseline or of the
reference. The second time that such a batch runs, its kernels are recorded as a CUDA graph; all
that follow are a copy and one launch. Blocks whose kernels depend on the data cannot be recorded:
a mixture of experts is left to Python.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]
"""A batch, and by the name `windows` those that it belongs to, to a batch."""


class Replayed:
    """A function that is recorded when it is called again with the same shape and windows.

    Args:
        function: Always the same kernels for these; it must not wait for the device.
        pool: Memory that recordings share, which must not be replayed at the same time. None calls
            the function and records nothing.
    """

    def __init__(self, function: Function, pool: Any) -> None:  # noqa: ANN401
        self._function = function
        self._pool = pool
        self._seen: object = None
        self._recording: tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, windows: tuple[int, ...]) -> Tensor:
        if self._pool is None:
            return self._function(x, windows=windows)
        if self._seen != (x.shape, windows):
            self._seen, self._recording = (x.shape, windows), None
            return self._function(x, windows=windows)
        if self._recording is None:
            self._recording = self._record(x, windows)
        graph, entrance, out = self._recording
        entrance.copy_(x)
        graph.replay()
        return out.clone()

    def _record(
        self, x: Tensor, windows: tuple[int, ...]
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        entrance, graph, side = x.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream(x.device)
        # Not `torch.cuda.graph`: it collects garbage and gives all free memory back each time.
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                out = self._function(entrance, windows=windows)
            finally:
                graph.capture_end()
        torch.cuda.current_stream(x.device).wait_stream(side)
        return graph, entrance, out
