r"""A checkpoint of random weights as large as those that people ship, written fast; and the disk.

    python benchmarks/written.py FOLDER --config qwen2.5-32b
    python benchmarks/written.py FOLDER --config qwen3-30b-a3b --depth 24

A folder with config.json, a tokenizer of numbers as words, and a safetensors file for each block,
all in BF16. Every block has the same values, which are drawn once: what is timed with such a model
does not look at them. The first few files are forced onto the disk, dropped from the page cache and
read again, as fp4scope reads them: that is the disk's rate; then once more, from the page cache.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from frames import SHAPES, words
from shared import CONFIGS
from torch import Tensor

from fp4scope.models.ondisk import Extent, Files

_WRITERS = 4
_TRIED = 8
"""Files that the disk's rate is taken from."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", default="qwen2.5-32b", choices=[*CONFIGS, *SHAPES])
    parser.add_argument("--depth", type=int, help="blocks, if not all of the shape's")
    options = parser.parse_args()
    begun = time.perf_counter()
    size, paths = write(options.config, options.folder, options.depth)
    seconds = time.perf_counter() - begun
    print(
        f"{options.config}: {size / 1e9:.1f} GB in {len(paths)} files, {seconds:.0f} s", flush=True
    )
    for rate in rates(paths[:_TRIED]):
        print(rate, flush=True)
    return 0


def write(name: str, folder: Path, depth: int | None = None) -> tuple[int, list[Path]]:
    """Bytes written, and files, those of blocks first."""
    config = (CONFIGS | SHAPES)[name]
    if depth is not None:
        said = {key: value for key, value in config.to_dict().items() if key != "layer_types"}
        config = type(config).from_dict(said | {"num_hidden_layers": depth})
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    words(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    blocks: dict[str, dict[str, torch.Size]] = {}
    for key, shape in shapes.items():
        _, _, rest = key.partition(".layers.")
        blocks.setdefault(rest.partition(".")[0] if rest else "", {})[key] = shape
    rest = blocks.pop("")
    drawn = [_drawn(key, shape) for key, shape in next(iter(blocks.values())).items()]
    jobs = [(folder / f"block-{n}.safetensors", own, drawn) for n, own in blocks.items()]
    jobs.append((folder / "rest.safetensors", rest, [_drawn(k, s) for k, s in rest.items()]))
    with ThreadPoolExecutor(_WRITERS) as threads:
        size = sum(threads.map(lambda job: _write(*job), jobs))
    index = {key: path.name for path, own, _ in jobs for key in own}
    known = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(known))
    return size, [path for path, *_ in jobs]


def _drawn(key: str, shape: torch.Size) -> Tensor:
    if len(shape) == 1:
        return torch.full(shape, float("norm" in key), dtype=torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()


def _write(path: Path, own: Mapping[str, torch.Size], values: list[Tensor]) -> int:
    header, start = {}, 0
    for key, value in zip(own, values, strict=True):
        stop = start + value.nbytes
        header[key] = {"dtype": "BF16", "shape": [*value.shape], "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in values:
            file.write(value.reshape(-1).view(torch.uint8).numpy())
    return path.stat().st_size


def rates(paths: list[Path]) -> list[str]:
    """How fast files are read: from the disk, and from the page cache."""
    opened = [os.open(path, os.O_RDONLY) for path in paths]
    for file in opened:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    files, size = Files(), sum(path.stat().st_size for path in paths)
    into = torch.zeros(max(path.stat().st_size for path in paths), dtype=torch.uint8)
    found = []
    for where in ("disk", "page cache"):
        begun = time.perf_counter()
        for file, path in zip(opened, paths, strict=True):
            files.read([(Extent(file, 0, path.stat().st_size), into)])
        rate = size / (time.perf_counter() - begun) / 1e9
        found.append(f"  read from the {where}: {rate:.2f} GB/s ({size / 1e9:.1f} GB)")
    for file in opened:
        os.close(file)
    return found


if __name__ == "__main__":
    sys.exit(main())
