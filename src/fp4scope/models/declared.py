"""What a checkpoint declares of its quantization: the packings that its weights may have.

Only those are here whose every tensor is known. Which weight has which one, the tensors tell
(`dequantize`); a checkpoint's lists of targets and exceptions are written in many ways.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from fp4scope.errors import ModelError
from fp4scope.models.config import parts
from fp4scope.models.packing import BYTES, FP8, POWERS, Packing

_PLACES = ("quantization_config", "compression_config", "quantization")
_WITH_TENSOR_SCALE = frozenset({"scale", "tensor"})


class Declared(NamedTuple):
    """The packings that a checkpoint may use, and the program that says so."""

    packings: tuple[Packing, ...]
    by: str | None


def declaration(name: str, config: PreTrainedConfig, beside: Any = None) -> Declared | None:  # noqa: ANN401
    """What is declared; from now on the configuration declares nothing.

    Args:
        name: What to call the model.
        config: Its configuration.
        beside: What ModelOpt's hf_quant_config.json says, if there is one.

    Returns:
        None if nothing is declared.

    Raises:
        ModelError: It is not known, in one sentence.
    """
    found: list[Declared] = []
    for declared in [*_declarations(config), beside]:
        if declared:
            read = _read(declared)
            if read is None:
                raise already(name, _scheme(declared))
            found.append(read)
    for part in parts(config):
        for key in _PLACES:
            vars(part).pop(key, None)
    if not found:
        return None
    packings = dict.fromkeys(packing for each in found for packing in each.packings)
    return Declared(tuple(packings), found[0].by)


def require_undeclared(name: str, config: PreTrainedConfig) -> None:
    """Refuse a model in memory that calls itself quantized.

    Raises:
        ModelError: It does.
    """
    for declared in _declarations(config):
        # A model that transformers has read from a GGUF file is dequantized.
        if declared and not (
            getattr(declared, "quant_method", None) == "gguf"
            and getattr(declared, "dequantize", False)
        ):
            raise already(name, _scheme(declared))


def already(name: str, how: str) -> ModelError:
    """That a model is quantized in a way that cannot be undone."""
    return ModelError(
        f"{name} is quantized already ({how}), so it is no full-precision reference: give the "
        "original checkpoint that it was made from, in BF16 as a rule"
    )


def _declarations(config: PreTrainedConfig) -> Iterator[Any]:
    for part in parts(config):
        for key in _PLACES:
            yield getattr(part, key, None)


def _read(declared: Any) -> Declared | None:  # noqa: ANN401
    """A declaration whose every part is known, else None."""
    if not isinstance(declared, dict):
        return None
    maker = declared.get("producer")
    method = declared.get("quant_method") or (maker.get("name") if isinstance(maker, dict) else "")
    reader = _READERS.get(str(method))
    if reader is None:
        return None
    try:
        packings = list(reader(declared))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    known = tuple(packing for packing in packings if packing is not None)
    return Declared(known, _MAKERS.get(str(method))) if len(known) == len(packings) else None


def _fp8(declared: dict[str, Any]) -> Iterator[Packing | None]:
    block = declared.get("weight_block_size", (128, 128))
    if block is not None:
        rows, cols = map(int, block)
        size = f"FP8 in blocks of {rows}x{cols}"
        yield Packing(name=size, codes=FP8, block=(rows, cols))
        yield Packing(name=size, codes=FP8, block=(rows, cols), scales=POWERS)
    yield from _whole("FP8", FP8)
    # Experts of such checkpoints may be MXFP4 instead.
    yield replace(MXFP4, ending="")


def _gpt_oss(_: dict[str, Any]) -> Iterator[Packing | None]:
    yield replace(MXFP4, ending="_blocks", transposed=True)


def _fbgemm(_: dict[str, Any]) -> Iterator[Packing | None]:
    yield from _whole("FP8", FP8)
    # Fused experts, whose parameter has rows and columns exchanged.
    yield Packing(name="FP8 by channel", codes=FP8, block=(None, 1))


def _whole(name: str, codes: frozenset[str]) -> Iterator[Packing]:
    yield Packing(name=f"{name} by tensor", codes=codes, block=(None, None))
    yield Packing(name=f"{name} by channel", codes=codes, block=(1, None))


def _compressed_tensors(declared: dict[str, Any]) -> Iterator[Packing | None]:
    sparse = declared.get("sparsity_config") or {}
    if sparse.get("format", "dense") != "dense" or declared.get("transform_config"):
        yield None  # zeros left out, or weights rotated for an input that is rotated too
    for group in declared["config_groups"].values():
        if weights := group.get("weights"):
            yield _of_group(str(group.get("format") or declared["format"]), weights)


def _of_group(kind: str, weights: dict[str, Any]) -> Packing | None:
    """The packing of one group of compressed-tensors."""
    bits, integer = int(weights["num_bits"]), weights.get("type", "int") == "int"
    symmetric = weights.get("symmetric", True)
    if weights.get("actorder") not in (None, "static", "weight"):
        return None  # columns in another order than the scales'
    if kind == "nvfp4-pack-quantized":
        return replace(NVFP4, ending="_packed", divides=True)
    if kind == "mxfp4-pack-quantized":
        return replace(MXFP4, ending="_packed")
    if kind == "mxfp8-quantized":
        return MXFP8
    how, block = _block(weights)
    if kind in ("float-quantized", "naive-quantized") and not integer and bits == 8:
        return Packing(name=f"FP8 {how}", codes=FP8, block=block)
    if kind in ("int-quantized", "naive-quantized") and integer and bits == 8:
        roles = frozenset({"scale"} if symmetric else {"scale", "zero"})
        return Packing(
            name=f"INT8 {how}", codes=frozenset({"I8"}), block=block, integer=True, roles=roles
        )
    if kind == "pack-quantized" and integer and bits in (4, 8) and symmetric:
        return Packing(
            name=f"INT{bits} {how}",
            codes=frozenset({"I32"}),
            ending="_packed",
            bits=bits,
            integer=True,
            block=block,
            roles=frozenset({"scale", "shape"}),
        )
    return None


def _block(weights: dict[str, Any]) -> tuple[str, tuple[int | None, int | None]]:
    """How compressed-tensors shares scales, in words and as rows and columns."""
    strategy = str(weights["strategy"])
    if strategy == "group":
        size = int(weights["group_size"])
        return f"in groups of {size}", (1, size)
    if strategy == "block":
        rows, cols = map(int, weights["block_structure"])
        return f"in blocks of {rows}x{cols}", (rows, cols)
    return {
        "tensor": ("by tensor", (None, None)),
        "channel": ("by channel", (1, None)),
    }[strategy]


def _modelopt(declared: dict[str, Any]) -> Iterator[Packing | None]:
    inner = declared.get("quantization")
    details = inner if isinstance(inner, dict) else declared
    algorithm = details.get("quant_algo")
    layers = details.get("quantized_layers") or {}
    mixed = algorithm == "MIXED_PRECISION"
    for algo in {layer["quant_algo"] for layer in layers.values()} if mixed else {algorithm}:
        if algo is None:
            continue  # only the KV cache
        if algo not in _ALGORITHMS:
            yield None
        yield from _ALGORITHMS.get(algo, ())


MXFP4 = Packing(name="MXFP4", codes=BYTES, bits=4, scales=POWERS, block=(1, 32))
MXFP8 = Packing(name="MXFP8", codes=FP8, scales=POWERS, block=(1, 32))
NVFP4 = Packing(
    name="NVFP4",
    codes=frozenset({"U8"}),
    bits=4,
    scales=frozenset({"F8_E4M3"}),
    block=(1, 16),
    roles=_WITH_TENSOR_SCALE,
)
_ALGORITHMS = {
    "NVFP4": (NVFP4,),
    "W4A16_NVFP4": (NVFP4,),
    "FP8": tuple(_whole("FP8", FP8))[:1],
    "FP8_PER_CHANNEL_PER_TOKEN": tuple(_whole("FP8", FP8))[1:],
    "FP8_PB_WO": (Packing(name="FP8 in blocks of 128x128", codes=FP8, block=(128, 128)),),
    "MXFP8": (MXFP8,),
}
_READERS: Mapping[Any, Callable[[dict[str, Any]], Iterable[Packing | None]]] = {
    "fp8": _fp8,
    "mxfp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "mxfp4": _gpt_oss,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
}
_MAKERS = {
    "compressed-tensors": "compressed-tensors",
    "modelopt": "ModelOpt",
    "modelopt_fp4": "ModelOpt",
}


def _scheme(declared: Any) -> str:  # noqa: ANN401
    """What a declaration calls itself, such as `awq 4-bit`."""
    declared = declared.to_dict() if hasattr(declared, "to_dict") else declared
    if not isinstance(declared, dict):
        return str(declared)[:40]
    inner = declared.get("quantization")
    details = declared | inner if isinstance(inner, dict) else declared
    producer = details.get("producer")
    maker = producer.get("name") if isinstance(producer, dict) else None
    bits = next((n for n in (4, 8) if details.get(f"load_in_{n}bit")), details.get("bits"))
    method = details.get("quant_method") or maker or ("bitsandbytes" if bits else "an unnamed way")
    finer = details.get("quant_algo") or details.get("format") or (f"{bits}-bit" if bits else "")
    return f"{str(method)[:40]} {str(finer)[:40]}".strip()
