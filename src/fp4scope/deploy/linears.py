"""The linears that a configuration is about: from a checkpoint's headers, or a model's config."""

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fp4scope.errors import ModelError
from fp4scope.files import named, refusing
from fp4scope.recipes import Site, Sites, expert_of

_MOST_HEADER = 128 << 20
_WEIGHT = re.compile(r"(.+)\.(?:weight|weight_packed)")
_NO_LINEARS = re.compile(r"(?:^|[._])(?:embed\w*|wte|wpe|\w*norm\w*|ln_\w+|conv\w*)(?:\.|$)")
_IN_ONE = {"U8": 2, "I8": 1, "I32": 8}
"""Elements in one number of a packed weight of 4 bits."""


class Held(NamedTuple):
    """A tensor of a checkpoint: its dtype as safetensors names it, and where it is."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int

    def number(self) -> float | None:
        """The one number in it; None of another tensor."""
        size = 1
        for axis in self.shape:
            size *= axis
        kind = {"F32": ("<f", 4), "F16": ("<e", 2), "BF16": ("<f", 2)}.get(self.dtype)
        if size != 1 or kind is None:
            return None
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(kind[1])
        data = b"\0\0" + data if self.dtype == "BF16" else data
        return float(struct.unpack(kind[0], data)[0])


def stored_tensors(folder: Path) -> dict[str, Held]:
    """All tensors of a folder's safetensors files, from their headers alone.

    Raises:
        ModelError: A file is no safetensors file.
    """
    found: dict[str, Held] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with refusing(f"cannot read {named(path)}", ModelError, "is the download complete?"):
            found |= _header(path)
    return found


def _header(path: Path) -> dict[str, Held]:
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= size <= min(_MOST_HEADER, path.stat().st_size):
            raise ValueError("it is no safetensors file")
        header = json.loads(file.read(size))
    return {
        name: Held(each["dtype"], tuple(each["shape"]), path, 8 + size + each["data_offsets"][0])
        for name, each in header.items()
        if name != "__metadata__"
    }


def linears_of(tensors: Mapping[str, Held]) -> Sites:
    """The linears whose weights these are, by the names that checkpoints give them."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, held in tensors.items():
        match = _WEIGHT.fullmatch(name)
        if match is None or len(held.shape) != 2 or _NO_LINEARS.search(match[1]):
            continue
        rows, cols = held.shape
        sizes[match[1]] = rows, cols * _IN_ONE.get(held.dtype, 1)
    return sites_of(sizes)


def sites_of(sizes: Mapping[str, tuple[int, int]]) -> Sites:
    """Linears by name, with their rows and columns, as sites in the order of blocks."""
    found = sorted(_sites(sizes.items()), key=lambda site: (site.block is None, site.block or 0))
    blocks = max((site.block for site in found if site.block is not None), default=-1) + 1
    return Sites(found, blocks)


def _sites(sizes: Iterable[tuple[str, tuple[int, int]]]) -> Iterator[Site]:
    for name, (rows, cols) in sizes:
        number = re.search(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.", name)
        block = None if number is None else int(number[1])
        path = name if number is None else name[number.end() :]
        expert = expert_of(name)
        yield Site(
            name=name,
            block=block,
            projection=re.sub(r"\.\d+\.", ".*.", path),
            rows=rows,
            cols=cols,
            expert=None if expert is None else expert[1],
        )


def model_linears(name: str) -> Sites:
    """Linears of a model: of a folder's weights where it has any, else of its configuration.

    Raises:
        ModelError: Not a model, or one that cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and (tensors := stored_tensors(folder)):
        return linears_of(tensors)
    from fp4scope.models.empty import empty_linears

    return sites_of(empty_linears(name))


def config_of(folder: Path) -> dict[str, Any] | None:
    """What a folder's files say of its quantization; None where there is none."""
    for file in ("config.json", "hf_quant_config.json", "recipe.yaml"):
        path = folder / file
        if not path.is_file():
            continue
        from fp4scope.study.given import Given

        data = Given.read(path).data
        text = data.get("text_config")
        if (
            file != "config.json"
            or "quantization_config" in data
            or (isinstance(text, dict) and "quantization_config" in text)
            or "compression_config" in data
        ):
            return data
    return None
