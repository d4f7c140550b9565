"""A packed checkpoint, written tensor by tensor: no more than one shard of it is in memory.

Weights are packed by `kernels.quantize`, so that their bytes decode to what was measured. Linears
that engines fuse share one tensor scale, from the largest magnitude among them; a first reading
finds it. All is written beside the folder's place and renamed when it is whole.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from fp4scope.deploy.card import model_card
from fp4scope.deploy.dialects import compressed_tensors, modelopt, modelopt_file
from fp4scope.deploy.plan import Export, Packed, Scale
from fp4scope.errors import FormatError, OutputError
from fp4scope.files import named, new_folder, refusing, require_new
from fp4scope.kernels import quantize
from fp4scope.models import Source, Tensors
from fp4scope.treatments import FULL_PRECISION_BITS

Dialect = Literal["compressed-tensors", "modelopt"]
SHARD_BYTES = 2 << 30
RECIPE = "fp4scope-recipe.yaml"
"""The recipe as it lies in a checkpoint."""
_BESIDE = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip
_SLACK = 1 << 24
"""Bytes for all that is not a weight."""
_QUANTIZED = ("quantization_config", "compression_config", "quantization")


def write_checkpoint(
    export: Export,
    source: Source,
    folder: Path,
    dialect: Dialect = "compressed-tensors",
    *,
    shard_bytes: int = SHARD_BYTES,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the checkpoint.

    Args:
        export: What is stored how.
        source: The checkpoint that it is made from.
        folder: Where; it must not be there.
        dialect: Who reads it.
        shard_bytes: Of a file of tensors, about.
        tell: Called with the tensors done and all of them.

    Raises:
        FormatError: A weight has NaN or Inf.
        OutputError: The folder is there, or the disk is too small.
        StudyError: The dialect cannot say what the recipe has.
    """
    require_place(folder, export, source)
    config = modelopt(export) if dialect == "modelopt" else compressed_tensors(export)
    with new_folder(folder) as partial:
        _write_tensors(export, source, partial, dialect, shard_bytes, tell)
        _write_beside(export, source, partial, config)
        if dialect == "modelopt":
            _write_json(partial / "hf_quant_config.json", modelopt_file(export))


def require_place(folder: Path, export: Export, source: Source) -> None:
    """Refuse a folder that is there, and a disk that is too small.

    Raises:
        OutputError: It is so.
    """
    with refusing(f"cannot write {named(folder)}", OutputError, "choose another folder"):
        require_new(folder)
        free, needed = shutil.disk_usage(folder.parent).free, expected_bytes(export, source)
        if needed + _SLACK > free:
            raise OutputError(
                f"the checkpoint takes about {needed / 1e9:.2f} GB, and {named(folder.parent)} has "
                f"{free / 1e9:.2f} GB free; choose a folder on another disk"
            )


def expected_bytes(export: Export, source: Source) -> int:
    """Of all tensors together, about."""
    packed, total = export.by_key, 0.0
    width = 2 if source.dtype == torch.float32 else None
    for key, stored in source.stored.items():
        bits = packed[key].format.bits_per_element if key in packed else FULL_PRECISION_BITS
        if key not in packed and width is None and stored.dtype in ("F32", "F64"):
            bits = 32.0
        total += stored.elements * bits / 8
    return int(total)


def _write_tensors(
    export: Export,
    source: Source,
    folder: Path,
    dialect: Dialect,
    shard_bytes: int,
    tell: Callable[[int, int], None],
) -> None:
    packed = export.by_key
    with source.opened() as tensors:
        amaxes = tensor_amaxes(export, tensors)
        shards = _Shards(folder, shard_bytes)
        for done, key in enumerate(source.stored):
            tell(done, len(source.stored))
            tensor = tensors[key]
            if key in packed:
                for name, part in _parts(packed[key], tensor, amaxes, dialect):
                    shards.add(name, part)
            else:
                shards.add(key, _plain(tensor, source))
        shards.close()
        tell(len(source.stored), len(source.stored))


def tensor_amaxes(export: Export, tensors: Tensors) -> dict[Scale, Tensor]:
    """Of all weights that share a tensor scale, the largest magnitude, in FP32."""
    found: dict[Scale, Tensor] = {}
    for each in export.packed:
        if each.format.uses_tensor_amax:
            own = tensors[each.key].abs().amax().float()
            found[each.scale] = torch.maximum(own, found.get(each.scale, own))
    return found


def _plain(tensor: Tensor, source: Source) -> Tensor:
    """A tensor in full precision: 16 bits where the checkpoint's are 32, as engines load it."""
    wide = source.dtype == torch.float32 or (source.prior and tensor.dtype == torch.float32)
    return tensor.to(torch.bfloat16) if wide and tensor.dtype == torch.float32 else tensor


def _parts(
    packed: Packed, weight: Tensor, amaxes: Mapping[Scale, Tensor], dialect: Dialect
) -> Iterator[tuple[str, Tensor]]:
    """What is stored of a weight, by name."""
    kind, name = packed.scheme.kind, packed.module
    try:
        found = quantize(weight, packed.format, amax=amaxes.get(packed.scale))
    except FormatError as error:
        raise FormatError(f"{packed.key}: {error}") from None
    codes = found.codes if kind in ("nvfp4", "mxfp4") else found.codes.view(torch.float8_e4m3fn)
    halves = kind in ("nvfp4", "mxfp4") and dialect == "compressed-tensors"
    flat = kind == "fp8" and dialect == "modelopt"
    yield f"{name}.weight{'_packed' if halves else ''}", codes
    scales = found.scales
    assert scales is not None  # formats of one scale for a tensor are no scheme
    # Of a row each: ModelOpt's readers want a vector, compressed-tensors a column.
    yield f"{name}.weight_scale", scales.flatten() if flat else scales
    if found.tensor_scale is None:
        return
    # A tensor of zeros, whose scale is zero; an engine would divide by it.
    scale = found.tensor_scale if found.tensor_scale else torch.ones(())
    inputs = None
    if packed.input_amax is not None:
        inputs = torch.tensor(packed.input_amax or 1.0) / NV_DIVISOR
    if dialect == "modelopt":
        yield f"{name}.weight_scale_2", scale
        if inputs is not None:
            yield f"{name}.input_scale", inputs
        return
    yield f"{name}.weight_global_scale", divisor(scale).reshape(1)
    if inputs is not None:
        yield f"{name}.input_global_scale", divisor(inputs).reshape(1)


NV_DIVISOR = torch.tensor(2688.0)
"""An input's amax divided by this is its scale: the largest E4M3 times the largest E2M1."""
_SIGNIFICANDS = torch.arange(8, 16, dtype=torch.float32)
"""Of every E4M3 number, but for a power of two."""
_COUNTS = torch.tensor([1, 1, 1, 1, 1, 1, 10, 1])
"""14 times an element of 3 undoes the division by 2688: such products may lie halfway between two
numbers of 16 bits, where the last bit decides."""
_ULPS = range(-2, 3)


def divisor(scale: Tensor) -> Tensor:
    """What compressed-tensors divides by, for a scale that multiplies; both FP32.

    Dividing by the inverse rounds otherwise than multiplying. Of the numbers next to the inverse,
    that with most block scales whose quotient is the product.

    Example:
        >>> divisor(torch.tensor(0.25))
        tensor(4.)
    """
    nearest = (1 / scale.to(torch.float32)).reshape(1)
    near = (nearest.view(torch.int32) + torch.tensor(_ULPS, dtype=torch.int32)).view(torch.float32)
    equal = (_SIGNIFICANDS / near[:, None]) == _SIGNIFICANDS * scale
    # The nearest wins where several are as good.
    order = torch.tensor([-abs(step) for step in _ULPS])
    return near[int(((equal * _COUNTS).sum(1) * len(_ULPS) + order).argmax())]


class _Shards:
    """Files of tensors, each written when it is full."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._held: dict[str, Tensor] = {}
        self._size = self._total = 0
        self._names: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        if self._held and self._size + tensor.nbytes > self._most:
            self._flush()
        # A copy of its own: what is read may be part of a file that is mapped.
        self._held[name] = tensor.contiguous().clone()
        self._size += tensor.nbytes

    def close(self) -> None:
        """Write what is left, name the files, and list which has what."""
        self._flush()
        count = len(self._names)
        index: dict[str, str] = {}
        for number, names in enumerate(self._names, 1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            if count == 1:
                file = "model.safetensors"
            self._path(number).rename(self._folder / file)
            index |= dict.fromkeys(names, file)
        if count > 1:
            content = {"metadata": {"total_size": self._total}, "weight_map": index}
            _write_json(self._folder / "model.safetensors.index.json", content)

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"

    def _flush(self) -> None:
        self._names.append(list(self._held))
        path = self._path(len(self._names))
        save_file(self._held, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors keeps it private
        self._total += self._size
        self._held, self._size = {}, 0


def _write_beside(
    export: Export, source: Source, folder: Path, quantization: Mapping[str, Any]
) -> None:
    config = {key: value for key, value in source.config.items() if key not in _QUANTIZED}
    if source.dtype == torch.float32 or source.prior:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = "bfloat16"
    _write_json(folder / "config.json", config | {"quantization_config": quantization})
    for name in _BESIDE:
        if (found := source.file(name)) is not None:
            shutil.copyfile(found, folder / name)
    export.written.write(folder / RECIPE)
    card = model_card(export, source.name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
