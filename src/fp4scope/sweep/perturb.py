"""One unit in the last place: what replicas and controls differ in from the model as it is."""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Int8, Shaped
from torch import Tensor


def perturbation(
    shape: Sequence[int],
    *,
    seed: int,
    replica: int,
    window: int,
    block: int,
    device: torch.device | None = None,
) -> Int8[Tensor, "tokens ..."]:
    """By how many units in the last place to move what enters a block: -1, 0 or 1.

    It imitates rounding in another order. A quarter of the numbers, chosen by chance, go up or
    down by one unit: a root mean square of half a unit, about what the two additions in a block
    round off. It is to be done at every block, because adding a large number to a small one forgets
    the small one's last place. The same arguments give the same perturbation on every device: it is
    a hash of the place (the finalizer of MurmurHash3, keyed), four bits of it for each number.
    """
    name = hashlib.sha256(f"{seed} {replica} {window} {block}".encode()).digest()
    count = math.prod(shape)
    h = torch.arange(-(-count // 8), device=device) * 2 + 1
    for key, factor, shift in ((0, 0x85EBCA6B, 13), (4, 0xC2B2AE35, 16), (8, 0x85EBCA6B, 13)):
        h ^= int.from_bytes(name[key : key + 4], "big")
        h ^= h >> 16
        h = (h * factor) & 0xFFFFFFFF  # whatever overflows 64 bits is above these 32
        h ^= h >> shift
    places = torch.arange(0, 32, 4, device=device, dtype=torch.int32)
    dice = (h.to(torch.int32)[:, None] >> places) & 15
    dice = dice.to(torch.int8).view(-1)[:count].view(*shape)
    return (dice < 2).to(torch.int8) - (dice >> 1 == 1).to(torch.int8)


def perturbed(
    hidden: Shaped[Tensor, "*shape"], steps: Int8[Tensor, "*shape"]
) -> Shaped[Tensor, "*shape"]:
    """Numbers moved by so many units in their last place. Zeros stay."""
    integers = torch.int32 if hidden.dtype == torch.float32 else torch.int16
    moved = (hidden.contiguous().view(integers) + steps).view(hidden.dtype)
    return torch.where(hidden == 0, hidden, moved)
