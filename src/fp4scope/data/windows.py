"""Text to windows of token ids: the protocol that papers mean by WikiText-2 perplexity.

The text is tokenized once with the tokenizer's defaults and cut into windows of `seq_len`
tokens that do not overlap; the remainder is dropped. A window has `seq_len - 1` targets and
sees nothing of the others. Where a BOS token leads every window, a window is that token and
`seq_len - 1` tokens of text, so it still has `seq_len - 1` targets; BOS itself is none.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fp4scope.data.text import Text, dataset, read_text
from fp4scope.errors import DataError
from fp4scope.study import Data, Dataset, Switch

# Fewer calibration windows than this are worse than windows that are also evaluated.
_FEWEST_CALIBRATION_WINDOWS = 8
_MOST_CALIBRATION_WINDOWS = 256
"""Unless more are asked for."""


@dataclass(frozen=True, kw_only=True)
class WindowSet:
    """Windows of one text: `ids` (windows, seq_len) and how they were made."""

    ids: Int[Tensor, "windows seq_len"]
    source: str
    text_sha256: str
    tokens_in_text: int
    bos: bool
    behind: Int[Tensor, " rest"]
    """Tokens of the text behind the last window."""
    evaluated: bool = False
    """Whether calibration windows come from the evaluated text."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seq_len(self) -> int:
        return self.ids.shape[1]

    @property
    def sha256(self) -> str:
        """Hash of the token ids: the same windows, whatever made them."""
        return hashlib.sha256(self.ids.to(torch.int64).numpy().tobytes()).hexdigest()


def needs_bos(model_type: str) -> bool:
    """Whether a model falls apart on windows that do not begin with BOS.

    Gemma does: Gemma 3 270M has a WikiText-2 perplexity of 161 without and 27 with it.
    """
    return model_type.startswith("gemma")


def evaluation_text(data: Data) -> Text:
    """The text that is evaluated.

    Raises:
        DataError: It cannot be had.
    """
    return read_text(data.text) if data.text else dataset(data.dataset or Dataset.WIKITEXT2)


def calibration_text(data: Data) -> Text | None:
    """The text to calibrate on: its own, or the train split of the dataset.

    None where there is neither: then it is to come from the evaluated text.

    Raises:
        DataError: It cannot be had.
    """
    if data.calibration_text:
        return read_text(data.calibration_text)
    if not data.text and data.dataset in (None, Dataset.WIKITEXT2):
        return dataset(Dataset.WIKITEXT2, "train")
    return None


def evaluation_windows(data: Data, text: Text, tokenizer: Any, model_type: str) -> WindowSet:  # noqa: ANN401
    """The windows that are evaluated.

    Raises:
        DataError: The text is too short.
    """
    bos = needs_bos(model_type) if data.bos is Switch.AUTO else data.bos is Switch.YES
    tokens = _tokenize(text, tokenizer, bos)
    first = data.first_window
    if first and first >= (available := len(tokens) // (data.seq_len - bos)):
        raise DataError(
            f"{text.name} makes {available} windows of {data.seq_len}, but the first that is "
            f"evaluated is window {first}, counted from 0; use a smaller --first-window"
        )
    step = first * (data.seq_len - bos)
    found = _cut(text, tokens[step:], data.seq_len, data.windows, tokenizer, bos)
    return replace(found, tokens_in_text=len(tokens)) if first else found


def calibration_windows(
    data: Data,
    text: Text | None,
    tokenizer: Any,  # noqa: ANN401
    evaluation: WindowSet,
) -> WindowSet:
    """The windows to calibrate on, at most as many as are asked for.

    Without a `text` of their own they come from behind the evaluated windows; if too little is
    left there, from the evaluated text itself, which the result then says.

    Raises:
        DataError: The text is too short.
    """
    length, bos = data.calibration_seq_len, evaluation.bos
    wanted, step = _wanted(data, evaluation), length - bos
    if text is not None:
        tokens = _tokenize(text, tokenizer, bos)
        count = _most(wanted, len(tokens) // step)
        windows = _cut(text, tokens, length, count, tokenizer, bos, "--calibration-seq-len")
        return replace(windows, evaluated=windows.text_sha256 == evaluation.text_sha256)

    tokens = evaluation.behind
    reused = len(tokens) // step < min(wanted, _FEWEST_CALIBRATION_WINDOWS)
    if reused:
        tokens = torch.cat([evaluation.ids[:, bos:].flatten(), tokens])
        length = min(length, len(tokens) + bos)
    count = _most(wanted, len(tokens) // (length - bos))
    windows, behind = _windows(tokens, length, count, evaluation.ids[0, :1] if bos else None)
    return replace(evaluation, ids=windows, behind=behind, evaluated=reused)


def _wanted(data: Data, evaluation: WindowSet) -> int:
    """As many windows as asked for; by default with about as many tokens as are evaluated."""
    if data.calibration_windows != "auto":
        return data.calibration_windows
    same = -(-evaluation.ids.numel() // data.calibration_seq_len)
    return min(max(same, _FEWEST_CALIBRATION_WINDOWS), _MOST_CALIBRATION_WINDOWS)


def _most(wanted: int, available: int) -> int:
    return max(1, min(wanted, available))


def _tokenize(text: Text, tokenizer: Any, bos: bool) -> Int[Tensor, " tokens"]:  # noqa: ANN401
    if bos and tokenizer.bos_token_id is None:
        raise DataError("this tokenizer has no BOS token; pass --bos no")
    tokens: list[int] = tokenizer(text.content, verbose=False)["input_ids"]
    # The tokenizer's own BOS would stand twice in the first window.
    own = bos and tokens[:1] == [tokenizer.bos_token_id]
    return torch.tensor(tokens[1:] if own else tokens, dtype=torch.int64)


def _cut(
    text: Text,
    tokens: Int[Tensor, " tokens"],
    seq_len: int,
    windows: int | None,
    tokenizer: Any,  # noqa: ANN401
    bos: bool,
    option: str = "--seq-len",
) -> WindowSet:
    available = len(tokens) // (seq_len - bos)
    if available == 0:
        raise DataError(
            f"{text.name} makes {len(tokens)} tokens, less than one window of {seq_len}; give a "
            f"longer text or a smaller {option}"
        )
    if windows is not None and windows > available:
        raise DataError(
            f"{text.name} makes {len(tokens)} tokens, {available} windows of {seq_len}; "
            f"{windows} were asked for: use --windows {available} or a longer text"
        )
    first = torch.tensor([tokenizer.bos_token_id]) if bos else None
    ids, behind = _windows(tokens, seq_len, windows or available, first)
    return WindowSet(
        ids=ids,
        behind=behind,
        source=text.name,
        text_sha256=text.sha256,
        tokens_in_text=len(tokens),
        bos=bos,
    )


def _windows(
    tokens: Int[Tensor, " tokens"], seq_len: int, count: int, first: Int[Tensor, "1"] | None
) -> tuple[Int[Tensor, "windows seq_len"], Int[Tensor, " rest"]]:
    """`count` windows, each led by the token `first` if there is one, and what is left over."""
    step = seq_len - (first is not None)
    ids = tokens[: count * step].view(count, step)
    if first is not None:
        ids = torch.cat([first.expand(count, 1), ids], dim=1)
    return ids, tokens[count * step :]
