"""What an engine serves: the log-probability of every token of some windows.

A served file is JSON:

    {"version": 1, "engine": "vllm 0.25.1, marlin", "checkpoint": "DIR",
     "ids": [[token, ...], ...], "logprobs": [[number, ...], ...]}

`ids` are windows of one length; `logprobs` has for each window the natural logarithms of the
probabilities of its tokens after the first, each given all tokens before it in the window. They
must come from prompts of token ids, with prefix caching off.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from fp4scope.errors import DataError, nearest, shown
from fp4scope.files import named, read_bytes, replace_file

VERSION = 1
_KEYS = ("version", "engine", "checkpoint", "ids", "logprobs")
_LARGEST = 1 << 30
_TIMEOUT_S = 600
_HOW = "benchmarks/engine/served.py writes one with vLLM"


@dataclass(frozen=True)
class Served:
    """Log-probabilities by window and token.

    Attributes:
        ids: Token ids, (windows, tokens).
        logprobs: Of the tokens after the first, (windows, tokens - 1), in nats.
        engine: What served them.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    engine: str = "an engine that is not named"

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
        return cls(ids, found, str(data.get("engine") or cls.engine)[:200])

    def write(self, path: Path) -> None:
        """As a served file.

        Raises:
            OutputError: It could not be written.
        """
        content = {
            "version": VERSION,
            "engine": self.engine,
            "ids": self.ids.tolist(),
            "logprobs": self.logprobs.tolist(),
        }
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


def ask_server(
    url: str,
    ids: Sequence[Sequence[int]],
    model: str | None = None,
    ran: Callable[[int], None] = lambda done: None,
) -> Served:
    """What an OpenAI-compatible server gives for windows of token ids.

    It is asked for completions with `echo` and `logprobs`, a window at a time.

    Args:
        url: Such as `http://localhost:8000`, with or without `/v1`.
        ids: Windows of token ids.
        model: What the server calls the model; by default the first that it lists.
        ran: Called with the windows that are done.

    Raises:
        DataError: It cannot be reached, or gives no log-probabilities of prompts.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError(f"{url!r} is no address of a server; write it as http://HOST:PORT")
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    if model is None:
        listed = _asked(f"{base}/models", None)
        model = _at(listed, "data", 0, "id")
        if not isinstance(model, str):
            raise DataError(f"{base}/models lists no model; start the server with one")
    rows: list[list[float]] = []
    for done, window in enumerate(ids):
        ran(done)
        body = {
            "model": model,
            "prompt": list(window),
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        found = _at(_asked(f"{base}/completions", body), "choices", 0, "logprobs", "token_logprobs")
        # The last is of a token that the model wrote; the first has nothing before it.
        own = found[1 : len(window)] if isinstance(found, list) else []
        if len(own) != len(window) - 1 or not all(isinstance(x, int | float) for x in own):
            raise DataError(
                f"{base}/completions gives no log-probability for each token of a prompt of ids; "
                "the server must know `echo` with `logprobs`, as vLLM and SGLang do"
            )
        rows.append([float(x) for x in own])
    content = {"version": VERSION, "engine": f"{model} at {parts.netloc}"}
    return Served.from_json(content | {"ids": list(map(list, ids)), "logprobs": rows})


def _at(data: Any, *path: str | int) -> Any:  # noqa: ANN401
    """What lies there in an answer; None where nothing does."""
    for key in path:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _asked(url: str, body: Mapping[str, Any] | None) -> Any:  # noqa: ANN401
    content = None if body is None else json.dumps(body).encode()
    request = Request(url, content, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as answer:
            return json.loads(answer.read(_LARGEST))
    except HTTPError as error:
        said = error.read(300).decode("utf-8", "replace")
        raise DataError(f"{url} answered {error.code}: {said}") from None
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"cannot ask {url}: {reason}; is the server running?") from None
