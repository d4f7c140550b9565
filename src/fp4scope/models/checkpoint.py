"""What a checkpoint asks for and what it holds, looked at before and after its weights are loaded.

`transformers` goes on where it does not know a quantization: packed weights are then cast as if
they were values, and their scales are left over. So what is stored undeclared or left over is
judged here; what is declared, in `declared` and `dequantize`.
"""

import re
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from fp4scope.errors import ModelError
from fp4scope.models.config import parts
from fp4scope.models.declared import already
from fp4scope.models.layout import Layout

# Attention and experts that are torch's or transformers' own code; others come from a hub.
_OWN_CODE = {
    "_attn_implementation": ("eager", "sdpa", "flex_attention"),
    "_experts_implementation": ("eager", "grouped_mm", "batched_mm"),
}
_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# What quantizers call a scale, a zero point, an order of columns, or packed values.
_SCALE = re.compile(
    r"(?:(.*)_)?(?:scales?|scb|absmax|zeros?|zero_points?|qzeros|g_idx|quant_map|quant_state\w*)"
    r"(?:_inv|_\d+)?",
    re.IGNORECASE,
)
_PACKED = re.compile(r"(?:.*_)?(?:qweight|packed|blocks|codes|qdata|w_q)(?:_\d+)?", re.IGNORECASE)


class Stored(NamedTuple):
    """A tensor as a checkpoint stores it; `dtype` as safetensors names it, such as `F8_E4M3`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def dimensions(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()


def require_own_kernels(name: str, config: PreTrainedConfig) -> None:
    """Refuse a configuration that names a kernel of a hub; leave other choices to transformers.

    `flash_attention_2` too is fetched from a hub, where its package is not installed.

    Raises:
        ModelError: A part of the configuration names such a kernel.
    """
    for part in parts(config):
        for key, own in _OWN_CODE.items():
            value = getattr(part, key, None)
            if value is None or value in own:
                continue
            if "/" in str(value):
                raise ModelError(
                    f"{name} asks in its config.json for the kernel {str(value)[:80]!r} of a hub, "
                    "which is code that fp4scope does not run; if you trust it, pass "
                    "--trust-remote-code"
                )
            setattr(part, f"{key}_internal", None)


def stored_tensors(files: Iterable[str]) -> dict[str, Stored]:
    """Names, dtypes and shapes of the tensors in some safetensors files, without their data."""
    found: dict[str, Stored] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # it is no mapping
                piece = file.get_slice(key)
                found[key] = Stored(piece.get_dtype(), tuple(piece.get_shape()))
    return found


def require_values(name: str, stored: Mapping[str, Stored]) -> None:
    """Refuse weights that are codes, where nothing declares how to read them.

    Raises:
        ModelError: There are some.
    """
    codes = [
        f"{key} ({tensor.dtype})"
        for key, tensor in stored.items()
        if tensor.dtype.startswith(("F8", "F6", "F4"))
        or (
            tensor.dtype.lstrip("UI").isdigit()
            and tensor.dimensions > 1
            and (key.endswith("weight") or _PACKED.fullmatch(key.rpartition(".")[2]))
        )
    ]
    if codes:
        what = f"{len(codes)} of its weights are codes, {codes[0]} first, of a method not declared"
        raise already(name, what)


def main_dtype(stored: Mapping[str, Stored]) -> torch.dtype | None:
    """The floating-point dtype that most of a checkpoint's values have."""
    sizes = dict.fromkeys(_FLOATS, 0)
    for tensor in stored.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.elements
    largest = max(sizes, key=lambda key: sizes[key])
    return _FLOATS[largest] if sizes[largest] else None


def require_no_scales(name: str, unread: Iterable[str], known: Set[str]) -> None:
    """Refuse scales and packed weights of the checkpoint that the model has not read.

    Args:
        name: What to call the model.
        unread: Tensors of the checkpoint that the model does not take.
        known: All tensors of the checkpoint and of the model.

    Raises:
        ModelError: There are some: what was read would be codes without their scales.
    """
    left = [key for key in sorted(unread) if _belongs_to_weight(key, known)]
    if left:
        raise ModelError(
            f"{name} has {len(left)} tensors that look like scales or packed weights and that "
            f"nothing reads, {left[0]} first; without them its weights are codes, not values: give "
            "the original checkpoint in BF16, or the config.json that belongs to this one"
        )


def unread_note(unread: Iterable[str], layout: Layout) -> str | None:
    """One line on the tensors of a checkpoint that its configuration leaves out."""
    names = sorted(unread)
    if not names:
        return None
    stack = layout.blocks_path.rpartition(".")[2]
    numbers = (re.search(rf"(?:^|\.){stack}\.(\d+)\.", name) for name in names)
    beyond = {int(number[1]) for number in numbers if number} - set(range(layout.blocks))
    blocks = (
        f"; {len(beyond)} whole blocks are among them, {min(beyond)} first: config.json has only "
        f"{layout.blocks}"
        if beyond
        else ""
    )
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{len(names)} tensors of the checkpoint are not part of the model that config.json "
        f"describes and were not read ({listed}){blocks}"
    )


def _belongs_to_weight(key: str, known: Set[str]) -> bool:
    """Whether a tensor is packed, or by its name and place the scale of a weight.

    A norm's or a logit's scale is not: no weight stands beside it.
    """
    parent, _, leaf = key.rpartition(".")
    if _PACKED.fullmatch(leaf):
        return True
    scale = _SCALE.fullmatch(leaf)
    beside = [parent, *(f"{parent}.{other}" for other in ("weight", "qweight", "weight_packed"))]
    if scale and scale[1]:
        beside.append(f"{parent}.{scale[1]}")
    return scale is not None and not known.isdisjoint(beside)
