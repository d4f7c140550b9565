"""GGUF files: converted once to safetensors, kept under a key that is the file's hash.

`transformers` reads a GGUF file by dequantizing it tensor by tensor and rebuilding the
tokenizer, half a minute for even a small model. The converted copy is FP32 (dequantized
values are not representable in less) and loads like any local folder.
"""

import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers

from fp4scope.errors import ModelError, OutputError

_NOTES = "fp4scope.json"
_CONVERTER = 2
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


def is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None


def converted(path: Path) -> Path:
    """A folder with the model and tokenizer of a GGUF file, converted now or earlier.

    Raises:
        ModelError: The file is damaged, or of an architecture that cannot be converted.
        OutputError: The cache cannot be written.
    """
    digest = _sha256(path)
    target = cache_folder() / "gguf" / f"{digest[:32]}-{_CONVERTER}"
    if (target / _NOTES).exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="converting-", dir=target.parent))
    except OSError as error:
        raise OutputError(
            f"cannot write the cache {target.parent}: {error.strerror}; set FP4SCOPE_CACHE to a "
            "folder that can be written"
        ) from None
    try:
        _convert(path, partial, digest)
        try:
            partial.rename(target)
        except OSError:
            if not (target / _NOTES).exists():  # else another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def quantization_of(folder: Path) -> str | None:
    """How the weights in a converted folder were stored before, as `Q4_1 (210), Q8_0 (1)`."""
    notes = folder / _NOTES
    return json.loads(notes.read_text())["quantization"] if notes.exists() else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _require_words(tokenizer: Any) -> None:  # noqa: ANN401
    """Refuse a tokenizer of many entries that still makes a token of every character.

    `transformers` 5.17 read Gemma's so (5.23 does not): the model then sees text that it was
    never trained on, and every number after that is wrong without an error.
    """
    tokens = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if len(tokenizer) > _MANY and len(tokens) > 0.9 * len(_PROBE):
        raise ModelError(
            f"its tokenizer has {len(tokenizer)} entries and makes a token of nearly every "
            f"character; transformers {transformers.__version__} does not read it rightly, a newer "
            "version may"
        )


def _convert(path: Path, folder: Path, digest: str) -> None:
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        types = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors)
        source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        # The conversion draws its own progress bar: welcome on a terminal, noise elsewhere.
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(**source)
            _require_words(tokenizer)
            tokenizer.save_pretrained(folder)
            read, info = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, output_loading_info=True
            )  # type: ignore[misc]
        if absent := sorted(info["missing_keys"]):  # they are random now
            raise ModelError(f"it has no weights for {len(absent)} parameters, {absent[0]} first")
        # What was read still calls itself quantized and refuses to be saved: move the weights
        # into a plain model of the same configuration.
        config = read.config
        if hasattr(config, "quantization_config"):
            delattr(config, "quantization_config")
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
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
    notes = {"source": path.name, "sha256": digest, "quantization": quantization}
    try:
        plain.save_pretrained(folder)
        (folder / _NOTES).write_text(json.dumps(notes, indent=1))
    except Exception as error:
        raise OutputError(
            f"cannot keep the converted {path.name} in {folder.parent}: {error}; make room, or set "
            "FP4SCOPE_CACHE to a folder that has it"
        ) from error
