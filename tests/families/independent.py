"""A second way to measure a recipe that shares nothing with fp4scope: below the model's modules.

Every matrix product that a forward makes is seen where torch dispatches it. One whose operand is
part of the memory of a chosen weight gets both operands quantized along the axis that it sums over.
It does not matter which module, hook, view or loop has asked for it. MXFP4 is written here again.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_GRID = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_MIDPOINTS = (_GRID[1:] + _GRID[:-1]) / 2
_BLOCK = 32
_COPIES = ("clone", "_to_copy", "index", "index_select", "permute_copy")


def mxfp4(x):
    """Rows of x to MXFP4 with scales by floor and back (OCP MX v1.0, 6.3)."""
    width = x.shape[-1]
    blocks = torch.nn.functional.pad(x, (0, -width % _BLOCK)).unflatten(-1, (-1, _BLOCK)).double()
    largest = blocks.abs().amax(-1, keepdim=True)
    scale = torch.exp2(torch.floor(torch.log2(largest)) - 2)
    y = torch.where(largest > 0, blocks / scale, 0.0)
    code = torch.searchsorted(_MIDPOINTS.double(), y.abs())
    # On a midpoint the even code.
    tie = (code < 7) & (y.abs() == _MIDPOINTS.double()[code.clamp(max=6)]) & (code % 2 == 1)
    image = _GRID.double()[code + tie] * y.sign() * scale
    image = torch.where(largest > 0, image, 0.0)
    return image.flatten(-2)[..., :width].to(x.dtype)


def _columns(x):
    return mxfp4(x.mT).mT


class Quantized(TorchDispatchMode):
    """Forwards inside have these weights, and what meets them, in MXFP4.

    `seen` are the memories of all operands of products, weights or not.
    """

    def __init__(self, weights=()):
        super().__init__()
        self._chosen = {weight.untyped_storage().data_ptr() for weight in weights}
        self._copies = {}
        self.seen = set()

    def met(self, weight):
        """Whether a product has used a weight."""
        return weight.untyped_storage().data_ptr() in self.seen

    def _memory(self, tensor):
        memory = tensor.untyped_storage().data_ptr()
        return self._copies.get(memory, (memory,))[0]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm", "_grouped_mm"):
            args = self._operands(args, 0)
        elif name in ("addmm", "baddbmm"):
            args = self._operands(args, 1)
        out = function(*args, **(kwargs or {}))
        if name in _COPIES and isinstance(out, torch.Tensor):
            # The copy is kept, so that its memory is nobody else's.
            self._copies[out.untyped_storage().data_ptr()] = (self._memory(args[0]), out)
        return out

    def _operands(self, args, first):
        one, two = args[first], args[first + 1]
        memories = self._memory(one), self._memory(two)
        self.seen |= set(memories)
        if not self._chosen.isdisjoint(memories):
            one, two = mxfp4(one), _columns(two)
        return *args[:first], one, two, *args[first + 2 :]
