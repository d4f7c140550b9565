"""`transformers` at work: silent, its many exceptions turned into one that says what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fp4scope.errors import Fp4ScopeError, ModelError


@contextmanager
def library(name: str, source: str) -> Iterator[Any]:
    """`transformers`, quiet until the `with` block ends.

    Args:
        name: What the user calls the model.
        source: The hub id or the path that it is loaded from.

    Raises:
        ModelError: For whatever exception leaves the block.
    """
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    import transformers

    with silent(bars=not Path(source).exists()):  # downloads keep their progress bars
        try:
            yield transformers
        except Fp4ScopeError:
            raise
        except Exception as error:
            raise ModelError(_why(name, source, error)) from error


@contextmanager
def silent(*, bars: bool = False) -> Iterator[None]:
    """`transformers` says nothing until the `with` block ends.

    Args:
        bars: Whether it may draw progress bars.
    """
    from transformers.utils import logging

    verbosity, drew = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if drew:
            logging.enable_progress_bar()


def _why(name: str, source: str, error: Exception) -> str:
    whole = " ".join(str(error).split())
    reason = whole[:300]
    if "trust_remote_code" in whole:
        return (
            f"{name} brings its own Python code, which fp4scope does not run; if you trust it, "
            "pass --trust-remote-code"
        )
    if not Path(source).exists():
        return (
            f"cannot load {name!r} from the hub ({reason}); check the name and the network, or "
            "give a local folder or a GGUF file"
        )
    if "safetensors" in whole and not any(Path(source).glob("*.safetensors")):
        return (
            f"{name} has no safetensors weights ({reason}); if you trust its pickled weights, "
            "pass --allow-pickle"
        )
    return f"cannot load {name}: {type(error).__name__}: {reason}"
