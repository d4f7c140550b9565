"""What an engine serves: the log-probability of every token of some windows.

A served file is JSON:

    {"version": 1, "engine": "vllm 0.25.1, marlin", "checkpoint": "DIR",
     "ids": [[token, ...], ...], "logprobs": [[number, ...], ...]}

`ids` are windows of one length; `logprobs` has for each window the natural logarithms of the
probabilities of its tokens after the first, each given all tokens before it in the window. They
must come from prompts of token ids, with prefix caching off. `top_ids` and `top_logprobs`, which
may be left out, have for each of these places the tokens that are likeliest there: as many at each.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp4scope.errors import DataError, nearest, shown
from fp4scope.files import named, read_bytes, replace_file

VERSION = 1
_KEYS = ("version", "engine", "checkpoint", "ids", "logprobs", "top_ids", "top_logprobs")
_LARGEST = 1 << 30
_SAME, _FEW = 0.1, 0.01
"""Nats by which two log-probabilities of a token may differ, and the share of places that may
differ more: engines give them of 16-bit numbers."""
_HOW = "benchmarks/engine/served.py writes one with vLLM"


@dataclass(frozen=True)
class Served:
    """Log-probabilities by window and token.

    Attributes:
        ids: Token ids, (windows, tokens).
        logprobs: Of the tokens after the first, (windows, tokens - 1), in nats.
        engine: What served them.
        top_ids: The likeliest tokens at the places of `logprobs`, (windows, tokens - 1, most).
        top_logprobs: Theirs, of the same shape.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    engine: str = "an engine that is not named"
    top_ids: NDArray[np.int64] | None = None
    top_logprobs: NDArray[np.float64] | None = None

    @classmethod
    def read(cls, path: Path) -> "Served":
        """From a served file.

        Raises:
            DataError: It cannot be read, or is none; says where.
        """
        content = read_bytes(path, "served file", DataError)
        if len(content) > _LARGEST:
            raise DataError(f"{named(path)} has {len(content) / 1e9:.1f} GB; serve fewer windows")
        try:
            return cls.from_json(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{named(path)}: {error}; {_HOW}") from None

    @classmethod
    def from_json(cls, data: Any) -> "Served":  # noqa: ANN401
        """From what a served file holds.

        Raises:
            DataError: It is none.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"{shown(data)} is no mapping of {', '.join(_KEYS)}")
        for key in data:
            if key not in _KEYS:
                raise DataError(f"a served file has no {shown(key)}; {nearest(key, _KEYS)}")
        if data.get("version") != VERSION:
            raise DataError(f"version is {shown(data.get('version'))}; this reads {VERSION}")
        ids = windows_of(data.get("ids"))
        found = _matrix(data.get("logprobs"), "logprobs", np.float64)
        if found.shape != (ids.shape[0], ids.shape[1] - 1):
            raise DataError(
                f"logprobs has the shape {found.shape}, and ids {ids.shape}; give a number for "
                "each token but the first of each window"
            )
        if not np.isfinite(found).all() or found.max() > 1e-3:
            worst = found[~(np.isfinite(found) & (found <= 1e-3))][0]
            raise DataError(f"logprobs holds {worst}; logarithms of probabilities are 0 or below")
        engine = str(data.get("engine") or cls.engine)[:200]
        top_ids, top_logprobs = _top(data, found.shape)
        if top_ids is not None and top_logprobs is not None:
            _require_agreement(ids[:, 1:], found, top_ids, top_logprobs)
        return cls(ids, found, engine, top_ids, top_logprobs)

    def write(self, path: Path) -> None:
        """As a served file.

        Raises:
            OutputError: It could not be written.
        """
        content: dict[str, Any] = {
            "version": VERSION,
            "engine": self.engine,
            "ids": self.ids.tolist(),
            "logprobs": self.logprobs.tolist(),
        }
        if self.top_ids is not None and self.top_logprobs is not None:
            content["top_ids"] = self.top_ids.tolist()
            content["top_logprobs"] = self.top_logprobs.tolist()
        replace_file(path, json.dumps(content).encode(), "choose another file")


def windows_of(data: Any) -> NDArray[np.int64]:  # noqa: ANN401
    """Windows of token ids, all of one length.

    Raises:
        DataError: They are none.
    """
    ids = _matrix(data, "ids", np.int64)
    if ids.shape[1] < 2 or ids.min() < 0:
        raise DataError("ids holds windows of fewer than two tokens, or negative ids")
    return ids


def _top(
    data: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None]:
    """The likeliest tokens at each place, where they are given."""
    if data.get("top_ids") is None or data.get("top_logprobs") is None:
        return None, None
    try:
        ids = np.array(data["top_ids"], dtype=np.int64)
        found = np.array(data["top_logprobs"], dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise DataError("top_ids and top_logprobs hold as many numbers at each place") from None
    right = ids.shape == found.shape and ids.ndim == 3 and ids.shape[:2] == shape
    if not right or not ids.shape[2] or ids.min() < 0 or not np.isfinite(found).all():
        raise DataError(
            f"top_ids has the shape {ids.shape}, top_logprobs {found.shape}, and logprobs {shape}; "
            "give as many ids and finite numbers for each of its places"
        )
    if (np.exp(found).sum(-1) > 1 + 1e-3).any():
        raise DataError("top_logprobs holds probabilities whose sum is above 1")
    if (np.diff(np.sort(ids, axis=-1), axis=-1) == 0).any():
        raise DataError("top_ids names a token twice at a place")
    return ids, found


def _require_agreement(
    targets: NDArray[np.int64],
    logprobs: NDArray[np.float64],
    top_ids: NDArray[np.int64],
    top_logprobs: NDArray[np.float64],
) -> None:
    """Refuse likeliest tokens of other places than the log-probabilities are of.

    Raises:
        DataError: A token has two, or is likelier than the likeliest.
    """
    own = top_ids == targets[..., None]
    found = np.where(own.any(-1), (top_logprobs * own).sum(-1), logprobs)
    found = np.where(own.any(-1), found, np.minimum(logprobs, top_logprobs.min(-1)))
    off = np.abs(found - logprobs) > _SAME
    if off.mean() > _FEW:
        window, place = np.argwhere(off)[0].tolist()
        raise DataError(
            f"logprobs and top_logprobs do not agree at {off.sum()} of {off.size} places: token "
            f"{targets[window, place]} at place {place} of window {window} has "
            f"{logprobs[window, place]:.4g}, and {found[window, place]:.4g} by the others; give "
            "both of the same places, before any temperature"
        )


def _matrix(data: Any, what: str, kind: type) -> NDArray[Any]:  # noqa: ANN401
    rows = data if isinstance(data, list) else []
    plain = all(
        isinstance(row, list) and all(type(x) is int or (kind is np.float64 and type(x) is float)
                                      for x in row)
        for row in rows
    )  # fmt: skip
    if not rows or not plain or len({len(row) for row in rows}) != 1:
        raise DataError(f"{what} is {shown(data)}; give rows of numbers, all of one length")
    try:
        return np.array(rows, dtype=kind)
    except OverflowError:
        raise DataError(f"{what} holds a number that is too large") from None
