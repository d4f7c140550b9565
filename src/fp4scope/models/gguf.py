"""GGUF files: converted once to safetensors, kept under a key that is the file's hash.

`transformers` reads a GGUF file by dequantizing it tensor by tensor and rebuilding the
tokenizer, half a minute for even a small model. The converted copy is FP32 (dequantized
values are not representable in less) and loads like any local folder.
"""

import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from fp4scope.errors import ModelError, OutputError
from fp4scope.models.fusion import replaced

_NOTES = "fp4scope.json"
_CONVERTER = 4
"""Changes when the same file would be converted differently."""
_FULL_PRECISION = {"F32", "F16", "BF16"}
_PROBE = "The model was evaluated on the whole text."
_MANY = 4096
"""Entries that only a tokenizer of words and their parts has."""


def cache_folder() -> Path:
    """Where converted files live: `$FP4SCOPE_CACHE`, or `fp4scope` in the user's cache folder."""
    if own := os.environ.get("FP4SCOPE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fp4scope"


class _Notes(BaseModel):
    """What a converted folder says of itself, in `fp4scope.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: str
    sha256: str
    quantization: str | None


def converted(path: Path) -> Path:
    """A folder with the model and tokenizer of a GGUF file, converted now or earlier.

    Raises:
        ModelError: The file is damaged, or of an architecture that cannot be converted.
        OutputError: The cache cannot be written.
    """
    digest = _sha256(path)
    cache = cache_folder() / "gguf"
    target = cache / f"{digest[:32]}-{_CONVERTER}"
    if _is_whole(target):
        return target
    with _cache_to_itself(cache):
        if _is_whole(target):  # another process converted it meanwhile
            return target
        _remove_leftovers(cache, target)
        partial = Path(tempfile.mkdtemp(prefix="converting-", dir=cache))
        try:
            _convert(path, partial, digest)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def quantization_of(folder: Path) -> str | None:
    """How the weights in a converted folder were stored before, as `Q4_1 (210), Q8_0 (1)`.

    Raises:
        ModelError: The folder's notes are damaged, or another program's.
    """
    try:
        notes = _read_notes(folder)
    except (OSError, ValidationError):
        raise ModelError(
            f"{folder / _NOTES} is not what fp4scope writes there; remove or rename it"
        ) from None
    return None if notes is None else notes.quantization


def _read_notes(folder: Path) -> _Notes | None:
    path = folder / _NOTES
    return _Notes.model_validate_json(path.read_bytes()) if path.exists() else None


def _is_whole(target: Path) -> bool:
    """Whether a conversion is there; its notes are written last."""
    try:
        return _read_notes(target) is not None
    except (OSError, ValidationError):
        return False


@contextmanager
def _cache_to_itself(cache: Path) -> Iterator[None]:
    """While this process converts, no other does; the lock ends with its process."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
        lock = FileLock(cache / ".lock")
        lock.acquire()
    except OSError as error:
        raise OutputError(
            f"cannot write the cache {cache}: {error.strerror}; set FP4SCOPE_CACHE to a "
            "folder that can be written"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(cache: Path, target: Path) -> None:
    """Conversions that were killed, that an older converter made, and a damaged `target`."""
    for folder in cache.iterdir():
        version = re.fullmatch(r"[0-9a-f]{32}-(\d+)", folder.name)
        old = version is not None and int(version[1]) < _CONVERTER
        if old or folder.name.startswith("converting-") or folder == target:
            shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _require_words(tokenizer: Any) -> None:  # noqa: ANN401
    """Refuse a tokenizer of many entries that still makes a token of every character.

    `transformers` 5.17 read Gemma's so (5.23 does not), and does after a copy is saved: the model
    then sees text that it was never trained on, and every number is wrong without an error.
    """
    tokens = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if len(tokenizer) > _MANY and len(tokens) > len(_PROBE) / 2:
        raise ModelError(
            f"its tokenizer has {len(tokenizer)} entries and makes a token of nearly every "
            f"character; transformers {transformers.__version__} does not read it rightly, a newer "
            "version may"
        )


@contextmanager
def _by_itself(path: Path) -> Iterator[dict[str, Any]]:
    """What to give to `from_pretrained`: the file in a folder that holds nothing else.

    A tokenizer.json beside a GGUF file would replace the file's own tokenizer, and a
    tokenizer_config.json can name Python code to run.
    """
    with tempfile.TemporaryDirectory(prefix="fp4scope-") as folder:
        (Path(folder) / "model.gguf").symlink_to(path.resolve())
        yield {
            "pretrained_model_name_or_path": folder,
            "gguf_file": "model.gguf",
            "trust_remote_code": False,
        }


@contextmanager
def _without_kernels() -> Iterator[dict[str, Any]]:
    """Options for `from_pretrained` to dequantize a GGUF file with its own code alone.

    Where the package `kernels` is installed, newer versions would keep the weights packed and run
    code fetched from a hub.
    """
    try:
        from transformers import GgufConfig
        from transformers.integrations.gguf import kernels
    except ImportError:  # this version always dequantizes
        yield {}
        return
    with replaced(kernels.__dict__, "is_kernels_available", lambda: False):
        yield {"quantization_config": GgufConfig(dequantize=True)}


def _convert(path: Path, folder: Path, digest: str) -> None:
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import import_utils

    # Before Python 3.12 early versions find no distribution of an import unless that lists it.
    known: dict[str, list[str]] = getattr(import_utils, "PACKAGE_DISTRIBUTION_MAPPING", {})
    known.setdefault("gguf", ["gguf"])
    try:
        types = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors)
        # The conversion draws its own progress bar: welcome on a terminal, noise elsewhere.
        quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
        with _by_itself(path) as source, quiet, _without_kernels() as unpacked:
            tokenizer = AutoTokenizer.from_pretrained(**source)
            _require_words(tokenizer)
            tokenizer.save_pretrained(folder)
            _require_words(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
            read, info = AutoModelForCausalLM.from_pretrained(
                **source, **unpacked, dtype=torch.float32, output_loading_info=True
            )  # type: ignore[misc]
        if absent := sorted(info["missing_keys"]):  # they are random now
            raise ModelError(f"it has no weights for {len(absent)} parameters, {absent[0]} first")
        # What was read still calls itself quantized and refuses to be saved: move the weights
        # into a plain model of the same configuration.
        config = read.config
        if hasattr(config, "quantization_config"):
            delattr(config, "quantization_config")
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        plain.load_state_dict(read.state_dict(), assign=True)
        plain.tie_weights()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"cannot convert {path}: {reason}; check the file, or give the original checkpoint "
            "as a folder or hub id"
        ) from error
    low = {name: count for name, count in types.items() if name not in _FULL_PRECISION}
    quantization = ", ".join(f"{name} ({count})" for name, count in sorted(low.items())) or None
    notes = _Notes(source=path.name, sha256=digest, quantization=quantization)
    try:
        plain.save_pretrained(folder)
        (folder / _NOTES).write_text(notes.model_dump_json(indent=1), encoding="utf-8")
    except Exception as error:
        raise OutputError(
            f"cannot keep the converted {path.name} in {folder.parent}: {error}; make room, or set "
            "FP4SCOPE_CACHE to a folder that has it"
        ) from error
