"""Every exception fp4scope raises on purpose.

    Fp4ScopeError
    ├── FormatError (ValueError)       unknown format, or values a format cannot hold
    ├── StudyError (ValueError)        options that cannot be run, or another study's folder
    ├── UnitError (ValueError)         a projection, block or pattern that names nothing
    ├── ModelError (ValueError)        not a model, or one that cannot be diagnosed
    ├── DataError (ValueError)         evaluation or calibration text that cannot be used
    ├── NonFiniteError (ArithmeticError)  NaN or Inf where the numbers must be finite
    └── OutputError (OSError)          a folder that cannot be read, written or shared

The command line prints these on stderr and exits with 2; anything else keeps its traceback.
"""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class Fp4ScopeError(Exception):
    """Base of all exceptions that fp4scope raises on purpose."""

    def __str__(self) -> str:
        # KeyError and OSError format their arguments in their own way; ours is always one message.
        return " ".join(str(a) for a in self.args)


class FormatError(Fp4ScopeError, ValueError):
    """An unknown number format, or values that a format cannot hold."""


class StudyError(Fp4ScopeError, ValueError):
    """A study that cannot be run as written, or that is not the one in the folder."""


class UnitError(Fp4ScopeError, ValueError):
    """A projection, block or pattern that names no linear of the model."""


class ModelError(Fp4ScopeError, ValueError):
    """Something that is not a causal language model, or one that cannot be diagnosed."""


class DataError(Fp4ScopeError, ValueError):
    """Evaluation or calibration text that cannot be used."""


class NonFiniteError(Fp4ScopeError, ArithmeticError):
    """NaN or Inf in activations, weights or losses."""


class OutputError(Fp4ScopeError, OSError):
    """An output folder that cannot be read, written or shared."""


_SHOWN = 200
"""Characters of a value that a message shows."""
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = _SHOWN
_REPR.maxlevel = 2


def shown(value: Any) -> str:  # noqa: ANN401
    """A value as Python writes it, the middle of a long one left out.

    Example:
        >>> shown("mxfp4"), shown([[]])
        ("'mxfp4'", '[[]]')
    """
    try:
        text = _REPR.repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def nearest(name: object, choices: Iterable[str]) -> str:
    """A hint that lists `choices`, with the closest to `name` first if one is close.

    Example:
        >>> nearest("nvpf4", ["mxfp4", "nvfp4"])
        'did you mean nvfp4? (choices: mxfp4, nvfp4)'
    """
    choices = [str(c) for c in choices]
    near = name[:_SHOWN] if isinstance(name, str) else ""
    close = difflib.get_close_matches(near, choices, n=2, cutoff=0.5)
    listed = ", ".join(choices)
    return (
        f"did you mean {' or '.join(close)}? (choices: {listed})" if close else f"choices: {listed}"
    )
