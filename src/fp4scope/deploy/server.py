"""Asking an OpenAI-compatible server for the log-probabilities of prompts.

Two ways are known: completions with `echo` and `logprobs`, and with `prompt_logprobs`, a field of
vLLM's. The first that a server answers is taken.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from fp4scope.deploy.served import VERSION, Served
from fp4scope.errors import DataError

KEY = "FP4SCOPE_API_KEY"
"""The environment variable that holds a server's key, where it wants one."""
_LARGEST = 1 << 30
_TIMEOUT_S = 600.0
_Tops = list[tuple[int, float]]
_Place = tuple[float, _Tops]
"""A token's log-probability, and those of the likeliest in its place."""


def ask_server(
    url: str,
    ids: Sequence[Sequence[int]],
    model: str | None = None,
    ran: Callable[[int], None] = lambda done: None,
    *,
    top: int = 0,
    timeout_s: float = _TIMEOUT_S,
) -> Served:
    """What a server gives for windows of token ids, a window at a time.

    Args:
        url: Such as `http://localhost:8000`, with or without `/v1`.
        ids: Windows of token ids.
        model: What the server calls the model; by default the first that it lists.
        ran: Called with the windows that are done.
        top: How many of the likeliest tokens are asked for at each place.
        timeout_s: How long an answer may take.

    Raises:
        DataError: It cannot be reached, or gives no log-probabilities of prompts.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError(f"{url!r} is no address of a server; write it as http://HOST:PORT")
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    ask = _Asker(base, timeout_s)
    if model is None:
        model = _at(ask("models", None), "data", 0, "id")
        if not isinstance(model, str):
            raise DataError(
                f"{base}/models lists no model; name the one that is served: --served-model NAME"
            )
    ways: list[Callable[[_Asker, str, Sequence[int], int], list[_Place]]] = [_echoed, _prompted]
    rows: list[list[_Place]] = []
    for done, window in enumerate(ids):
        ran(done)
        try:
            rows.append(ways[0](ask, model, window, top))
        except _NoneGivenError as error:
            if rows or len(ways) == 1:
                raise
            ways.pop(0)
            try:
                rows.append(ways[0](ask, model, window, top))
            except DataError:
                raise error from None
    content: dict[str, Any] = {"version": VERSION, "engine": f"{model} at {parts.netloc}"}
    content["ids"] = list(map(list, ids))
    content["logprobs"] = [[own for own, _ in row] for row in rows]
    if top and (most := min(len(tops) for row in rows for _, tops in row)):
        best = [[sorted(tops, key=lambda t: -t[1])[:most] for _, tops in row] for row in rows]
        content["top_ids"] = [[[token for token, _ in tops] for tops in row] for row in best]
        content["top_logprobs"] = [[[value for _, value in tops] for tops in row] for row in best]
    return Served.from_json(content)


class _NoneGivenError(DataError):
    """An answer without what was asked for; another way of asking may give it."""


class _Asker:
    """Asks a server, and says what went wrong."""

    def __init__(self, base: str, timeout_s: float) -> None:
        self.base, self._timeout_s = base, timeout_s
        self._key = os.environ.get(KEY)

    def __call__(self, place: str, body: Mapping[str, Any] | None) -> Any:  # noqa: ANN401
        url = f"{self.base}/{place}"
        content = None if body is None else json.dumps(body).encode()
        request = Request(url, content, {"Content-Type": "application/json"})
        if self._key:  # for this server, not for one that it points to
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with urlopen(request, timeout=self._timeout_s) as answer:
                return json.loads(answer.read(_LARGEST))
        except HTTPError as error:
            said = error.read(300).decode("utf-8", "replace")
            if error.code in (401, 403):
                raise DataError(f"{url} wants a key ({error.code}): {said}; set {KEY}") from None
            kind = _NoneGivenError if error.code in (400, 422) else DataError
            raise kind(f"{url} answered {error.code}: {said}") from None
        except (URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
                raise DataError(
                    f"{url} gave no answer in {self._timeout_s:g} s; ask for shorter windows "
                    "(--seq-len), or look at the server's load"
                ) from None
            raise DataError(f"cannot ask {url}: {reason}; is the server running?") from None


def _echoed(ask: _Asker, model: str, window: Sequence[int], top: int) -> list[_Place]:
    """By `echo` and `logprobs`; vLLM names tokens by id where it is asked to."""
    more = {"logprobs": max(1, top), "echo": True}
    if top:
        more["return_tokens_as_token_ids"] = True
    answer = _completed(ask, model, window, more)
    found = _at(answer, "choices", 0, "logprobs", "token_logprobs")
    # The last is of a token that the model wrote; the first has nothing before it.
    if not isinstance(found, list) or not _all_numbers(found[1 : len(window)]):
        raise _none_given(ask)
    _require_tokens(ask, len(found) - (len(found) > len(window)), window, answer)
    tops = _at(answer, "choices", 0, "logprobs", "top_logprobs")
    known = top and isinstance(tops, list) and len(tops) == len(found)
    likeliest: list[Any] = tops if known else [None] * len(found)
    return [
        (float(own), [(int(name[9:]), float(value)) for name, value in best.items()
                      if name.startswith("token_id:") and name[9:].isdecimal()]
                     if isinstance(best, Mapping) else [])
        for own, best in zip(found[1 : len(window)], likeliest[1 : len(window)], strict=True)
    ]  # fmt: skip


def _prompted(ask: _Asker, model: str, window: Sequence[int], top: int) -> list[_Place]:
    """By vLLM's `prompt_logprobs`: a mapping from ids for each token."""
    answer = _completed(ask, model, window, {"prompt_logprobs": max(1, top)})
    found = _at(answer, "choices", 0, "prompt_logprobs")
    if not isinstance(found, list):
        raise _none_given(ask)
    _require_tokens(ask, len(found), window, answer)
    places: list[_Place] = []
    for token, tops in zip(window[1:], found[1:], strict=True):
        try:
            known = {int(key): float(value["logprob"]) for key, value in tops.items()}
            places.append((known[token], list(known.items()) if top else []))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise _none_given(ask) from None
    return places


def _completed(ask: _Asker, model: str, window: Sequence[int], more: Mapping[str, Any]) -> Any:  # noqa: ANN401
    body = {"model": model, "prompt": list(window), "max_tokens": 1, "temperature": 0}
    return ask("completions", body | dict(more))


def _require_tokens(ask: _Asker, count: int, window: Sequence[int], answer: Any) -> None:  # noqa: ANN401
    used = _at(answer, "usage", "prompt_tokens")
    for found in (count, used):
        if isinstance(found, int) and found != len(window):
            raise DataError(
                f"{ask.base}/completions made {found} tokens of a prompt of {len(window)} ids; it "
                "tokenizes otherwise, or puts tokens before the prompt: serve the same model, and "
                "have it take ids as they are"
            )


def _none_given(ask: _Asker) -> DataError:
    return _NoneGivenError(
        f"{ask.base}/completions gives no log-probability for each token of a prompt of ids; "
        "the server must know `echo` with `logprobs`, as vLLM and SGLang do, or `prompt_logprobs`"
    )


def _all_numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _at(data: Any, *path: str | int) -> Any:  # noqa: ANN401
    """What lies there in an answer; None where nothing does."""
    for key in path:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data
