"""Pinned memory, and what a GPU that pins none leaves behind, on a stand-in for CUDA's runtime."""

import gc

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fp4scope.errors import StudyError
from fp4scope.models.pinned import host_bytes

GPU = torch.device("cuda")


class Runtime(TorchFunctionMode):
    """CUDA's last error as PyTorch treats it: calls leave it, and the next launch raises it.

    Memory of its device is the host's. `pins` are how many more calls pin something.
    """

    def __init__(self, pins=0, own=True):
        super().__init__()
        self.pins, self.own = pins, own
        self.last, self.registered = 0, set()

    def cudaHostRegister(self, place, size, flags):  # noqa: N802
        if not self.pins:
            self.last = 2
            return 2
        self.pins -= 1
        self.registered.add(place)
        return 0

    def cudaHostUnregister(self, place):  # noqa: N802
        self.registered.remove(place)
        return 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.fill_ and self.last:
            self.last = 0
            raise RuntimeError("CUDA error: out of memory")
        if func is torch.empty:
            if kwargs.pop("pin_memory", False) and not self.own:
                raise RuntimeError("CUDA error: out of memory\nCompile with ...")
            kwargs.pop("device", None)
        return func(*args, **kwargs)


@pytest.fixture
def cuda(monkeypatch):
    def build(**options):
        runtime = Runtime(**options)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
        return runtime

    return build


def test_the_stand_in_fails_by_an_error_that_nobody_took_back(cuda):
    with cuda() as runtime:
        runtime.cudaHostRegister(0, 1, 0)
        with pytest.raises(RuntimeError, match="out of memory"):
            torch.empty(1).fill_(0)


def test_memory_that_cannot_be_pinned_fails_nothing_else(cuda):
    """The call that failed is forgotten before anything else runs on the device."""
    with cuda() as runtime:
        found = host_bytes(1000, GPU)
        assert (len(found), found.dtype) == (1000, torch.uint8)
        assert runtime.last == 0
        torch.empty(1).fill_(0)


def test_where_nothing_is_pinned_one_message_says_what_to_do(cuda):
    with cuda(own=False), pytest.raises(StudyError, match=r"out of memory\); use --offload disk"):
        host_bytes(1000, GPU)


def test_pinned_until_it_is_given_back(cuda):
    with cuda(pins=1) as runtime:
        found = host_bytes(1000, GPU)
        assert runtime.registered == {found.data_ptr()}
        del found
        gc.collect()
        assert runtime.registered == set()


@pytest.mark.parametrize(("size", "device"), [(0, "cuda"), (1000, "cpu")])
def test_what_need_not_be_pinned_asks_for_no_cuda(cuda, size, device):
    runtime = cuda()
    assert len(host_bytes(size, torch.device(device))) == size
    assert (runtime.last, runtime.registered) == (0, set())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_whose_call_failed_goes_on(monkeypatch):
    """What is registered twice is refused; without the mend the next kernel fails by that."""
    cuda, taken = torch.cuda.cudart(), torch.empty(4096, dtype=torch.uint8)
    assert int(cuda.cudaHostRegister(taken.data_ptr(), 4096, 0)) == 0

    class Refusing:
        @staticmethod
        def cudaHostRegister(place, size, flags):  # noqa: N802
            return cuda.cudaHostRegister(taken.data_ptr(), 4096, flags)

    try:
        assert int(Refusing.cudaHostRegister(0, 0, 0)) != 0
        with pytest.raises(RuntimeError):
            torch.ones(3, device=GPU).fill_(2)
        monkeypatch.setattr(torch.cuda, "cudart", Refusing)
        assert host_bytes(1000, GPU).is_pinned()
        assert torch.ones(3, device=GPU).fill_(2).tolist() == [2, 2, 2]
    finally:
        cuda.cudaHostUnregister(taken.data_ptr())
