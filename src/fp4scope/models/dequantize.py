"""Checkpoints that are quantized already: their weights' values, made while they are loaded.

Which tensors are codes, and which scales belong to them, is decided and checked on the files'
headers, before anything is read. `transformers` then gets a checkpoint of plain tensors, each made
from codes and scales when it is asked for; it fuses experts and renames as always. Dequantizing is
not left to `transformers` itself: 5.24 takes codes without their scale for values, and a block's
size for the rows divided by the scales, which is wrong where the last block is short.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from fp4scope.errors import ModelError
from fp4scope.models.checkpoint import Stored
from fp4scope.models.declared import Declared
from fp4scope.models.packing import Packing, fits_tensor, same_grid

# What stands behind a parameter's name, and what it is.
_ROLES = {
    "_scale_inv": "scale",
    "_scale": "scale",
    "_scales": "scale",
    "_scale_2": "tensor",
    "_global_scale": "tensor",
    "_zero_point": "zero",
    "_shape": "shape",
    "_g_idx": "order",
}
# DeepSeek V4 and Mistral name a module's scale instead.
_OF_MODULE = {".scale": "scale", ".qscale_weight": "scale"}
_ENDINGS = ("", "_packed", "_blocks")
_NAMES = {
    "scale": "scale",
    "tensor": "scale of the whole tensor",
    "zero": "zero point",
    "shape": "shape",
}
_ADVICE = "fetch the checkpoint again, or give the original that it was made from, in BF16"
_OF_ACTIVATIONS = re.compile(
    r"(?:.*[._])?(?:input|output|activation|act)_(?:global_)?(?:scale|zero_point)s?"
    r"|.*\.qscale_act|.*\.input_scale_ub"
)
_OF_CACHE = re.compile(r".*\.(?:[qkv]|kv|prob)_(?:scale|zero_point)")


class Packed(NamedTuple):
    """A weight of a checkpoint: its packing, and the name of the tensor of each role."""

    packing: Packing
    tensors: dict[str, str]


@dataclass(frozen=True)
class Contents:
    """What a quantized checkpoint holds.

    `by` made it. `packed` are weights by the names of their parameters, `plain` other tensors that
    are read. The scales of `activations` and of the `cache` are not needed.
    """

    by: str | None
    packed: dict[str, Packed]
    plain: tuple[str, ...]
    activations: int
    cache: int

    def values(self, stored: Mapping[str, Stored]) -> dict[str, Stored]:
        """Tensors as they are once they are dequantized.

        Args:
            stored: All of the checkpoint.
        """
        found = {key: stored[key] for key in self.plain}
        for key, (packing, tensors) in self.packed.items():
            shape = packing.shape(stored[tensors["codes"]].shape)
            if packing.transposed:
                shape = (*shape[:-2], shape[-1], shape[-2])
            found[key] = Stored("F32", shape)
        return found

    def described(self) -> str | None:
        """Such as `NVFP4 (196), FP8 by tensor (28); ModelOpt`; None if all weights are values."""
        if not self.packed:
            return None
        counts = Counter(each.packing.name for each in self.packed.values())
        parts = [", ".join(f"{name} ({count})" for name, count in counts.most_common())]
        if self.by is not None:
            parts.append(self.by)
        unused = [(self.activations, "inputs"), (self.cache, "the KV cache")]
        if dropped := " and ".join(f"{count} scales of {what}" for count, what in unused if count):
            parts.append(f"{dropped} not used")
        return "; ".join(parts)


def contents(name: str, stored: Mapping[str, Stored], declared: Declared) -> Contents:
    """Which tensors of a checkpoint are codes, scales, or values as they are.

    Args:
        name: What to call the model.
        stored: Its tensors.
        declared: How it says that they are packed.

    Raises:
        ModelError: Codes without their scales, or with others than the declared way has.
    """
    if not stored:
        raise ModelError(
            f"{name} declares quantized weights, but has no safetensors files; give a checkpoint "
            "that has, or the original in BF16"
        )
    activations = {key for key in stored if _OF_ACTIVATIONS.fullmatch(key)}
    cache = {key for key in stored if _OF_CACHE.fullmatch(key)}
    needed = {key: tensor for key, tensor in stored.items() if key not in activations | cache}
    beside: dict[str, dict[str, str]] = defaultdict(dict)
    for key in needed:
        if owned := _owner(key, needed):
            beside[owned[0]][owned[1]] = key
    scales = {key for parts in beside.values() for key in parts.values()}
    packed: dict[str, Packed] = {}
    for key, tensor in needed.items():
        if key not in scales and (parameter := _parameter(key, tensor, beside)):
            parts = {"codes": key, **beside.get(parameter, {})}
            if parameter in packed or (parameter in needed and parameter != key):
                raise ModelError(f"{name} has {parameter} twice, packed in {key} and as it is")
            packed[parameter] = Packed(_packing(name, needed, parts, declared), parts)
    read = {key for each in packed.values() for key in each.tensors.values()}
    plain = tuple(key for key in needed if key not in read)
    return Contents(declared.by, packed, plain, len(activations), len(cache))


@contextmanager
def opened(files: Iterable[str], found: Contents) -> Iterator[dict[str, Any]]:
    """A checkpoint of values, read one by one, until the `with` block ends."""
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for path in files:
            file = stack.enter_context(safe_open(path, framework="pt"))
            places |= dict.fromkeys(file.keys(), file)
        plain = {key: places[key].get_slice(key) for key in found.plain}
        yield plain | {key: _Weight(packed, places) for key, packed in found.packed.items()}


class _Weight:
    """A weight that is read and dequantized when it is asked for, as `transformers` asks."""

    def __init__(self, packed: Packed, places: Mapping[str, Any]) -> None:
        self._packed = packed
        self._places = places

    def __getitem__(self, index: Any) -> Tensor:  # noqa: ANN401
        packing, tensors = self._packed
        parts = {role: self._places[key].get_tensor(key) for role, key in tensors.items()}
        return packing.values(parts)[index]


def _owner(key: str, stored: Mapping[str, Stored]) -> tuple[str, str] | None:
    """The parameter that a tensor stands beside, and its role there."""
    for ending, role in _ROLES.items():
        stem = key.removesuffix(ending)
        if stem != key and any(f"{stem}{codes}" in stored for codes in _ENDINGS):
            return stem, role
    for ending, role in _OF_MODULE.items():
        weight = f"{key.removesuffix(ending)}.weight"
        if key.endswith(ending) and weight in stored and _is_code(stored[weight]):
            return weight, role
    return None


def _parameter(key: str, tensor: Stored, beside: Mapping[str, Any]) -> str | None:
    """The parameter whose codes a tensor is; None if it is plain numbers."""
    ending = next((e for e in _ENDINGS[1:] if key.endswith(e)), "")
    parameter = key.removesuffix(ending)
    if not _is_code(tensor) or tensor.dimensions < 2:
        return None
    whole = tensor.dtype.startswith("F") or key.endswith("weight")
    return parameter if ending or whole or parameter in beside else None


def _is_code(tensor: Stored) -> bool:
    return tensor.dtype.startswith(("F8", "F6", "F4")) or tensor.dtype.lstrip("UI").isdigit()


def _packing(
    name: str, stored: Mapping[str, Stored], parts: Mapping[str, str], declared: Declared
) -> Packing:
    """The declared packing that codes and what stands beside them have.

    Raises:
        ModelError: They have none of these.
    """
    key, codes = parts["codes"], stored[parts["codes"]]
    fit = [p for p in declared.packings if codes.dtype in p.codes and key.endswith(p.ending)]
    if not fit:
        ways = ", ".join(dict.fromkeys(p.name for p in declared.packings)) or "no quantized weights"
        raise ModelError(
            f"{name} declares {ways}, but its {key} is {codes.dtype} of shape {codes.shape}, which "
            f"is none of them; {_ADVICE}"
        )
    roles = set(parts) - {"codes"}
    complete = [p for p in fit if p.roles == roles]
    if not complete:
        lacks = sorted(min((p.roles - roles for p in fit), key=len))
        extra = [parts[role] for role in sorted(roles - fit[0].roles)]
        what = f"no {_NAMES[lacks[0]]} beside it" if lacks else f"{extra[0]} beside it"
        raise ModelError(
            f"{name} has {key} ({fit[0].name}) with {what}: its codes are no values so; {_ADVICE}"
        )
    for packing in complete:
        grid, scale = packing.grid(codes.shape), stored[parts["scale"]]
        whole = stored[parts["tensor"]].shape if "tensor" in parts else ()
        right = scale.dtype in packing.scales and same_grid(scale.shape, grid)
        if right and fits_tensor(whole, grid):
            return packing
    first, scale = complete[0], stored[parts["scale"]]
    raise ModelError(
        f"{name} has {parts['scale']} as {scale.dtype} of shape {scale.shape}, but {first.name} of "
        f"{key} {codes.shape} takes {first.grid(codes.shape)} in "
        f"{' or '.join(sorted(first.scales))}; {_ADVICE}"
    )
