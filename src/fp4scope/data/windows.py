"""Text to windows of token ids: the protocol that papers mean by WikiText-2 perplexity.

The text is tokenized once with the tokenizer's defaults and cut into windows of `seq_len`
tokens that do not overlap; the remainder is dropped. A window has `seq_len - 1` targets and
sees nothing of the others. Where a BOS token leads every window, a window is that token and
`seq_len - 1` tokens of text, so it still has `seq_len - 1` targets; BOS itself is none.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fp4scope.data.text import Text, dataset, read_text
from fp4scope.errors import DataError
from fp4scope.study import Study

# Fewer calibration windows than this are worse than windows that are also evaluated.
_FEWEST_CALIBRATION_WINDOWS = 8


@dataclass(frozen=True, kw_only=True)
class WindowSet:
    """Windows of one text: `ids` (windows, seq_len) and how they were made."""

    ids: Int[Tensor, "windows seq_len"]
    source: str
    text_sha256: str
    tokens_in_text: int
    bos: bool
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


def prepare(study: Study, tokenizer: Any, model_type: str) -> tuple[WindowSet, WindowSet]:  # noqa: ANN401
    """The evaluation windows of a study, and its calibration windows.

    Calibration takes the train split of the dataset or `calibration_text`; failing both, the
    text behind the evaluated windows; and if that is too short the evaluated windows'
    own text, which the result then says.

    Raises:
        DataError: A text that cannot be had or is too short.
    """
    bos = study.bos == "yes" or (study.bos == "auto" and needs_bos(model_type))
    name = study.dataset or "wikitext2"
    text = read_text(study.text) if study.text is not None else dataset(name)
    tokens = _tokenize(text, tokenizer, bos)
    evaluation = _cut(text, tokens, study.seq_len, study.windows, tokenizer, bos)

    wanted, length = study.calibration_windows, study.calibration_seq_len
    if study.calibration_text is not None:
        text = read_text(study.calibration_text)
    elif study.text is None and name == "wikitext2":
        text = dataset(name, "train")
    else:
        step = study.seq_len - bos
        rest = tokens[len(evaluation) * step :]
        fits = min(wanted, len(rest) // (length - bos))
        reused = fits < min(wanted, _FEWEST_CALIBRATION_WINDOWS)
        if reused:
            rest = tokens
            length = min(length, len(tokens) + bos)
            fits = min(wanted, len(rest) // (length - bos))
        return evaluation, _cut(text, rest, length, fits, tokenizer, bos, evaluated=reused)
    tokens = _tokenize(text, tokenizer, bos)
    fits = max(1, min(wanted, len(tokens) // (length - bos)))
    return evaluation, _cut(text, tokens, length, fits, tokenizer, bos)


def _tokenize(text: Text, tokenizer: Any, bos: bool) -> list[int]:  # noqa: ANN401
    tokens: list[int] = tokenizer(text.content, verbose=False)["input_ids"]
    # The tokenizer's own BOS would stand twice in the first window.
    return tokens[1:] if bos and tokens[:1] == [tokenizer.bos_token_id] else tokens


def _cut(
    text: Text,
    tokens: list[int],
    seq_len: int,
    windows: int | None,
    tokenizer: Any,  # noqa: ANN401
    bos: bool,
    evaluated: bool = False,
) -> WindowSet:
    if bos and tokenizer.bos_token_id is None:
        raise DataError("this tokenizer has no BOS token; pass --bos no")
    step = seq_len - bos
    available = len(tokens) // step
    if available == 0:
        raise DataError(
            f"{text.name} makes {len(tokens)} tokens, less than one window of {seq_len}; give a "
            "longer text or a smaller --seq-len"
        )
    if windows is not None and windows > available:
        raise DataError(
            f"{text.name} makes {len(tokens)} tokens, {available} windows of {seq_len}; "
            f"{windows} were asked for: use --windows {available} or a longer text"
        )
    count = available if windows is None else windows
    ids = torch.tensor(tokens[: count * step], dtype=torch.int64).view(count, step)
    if bos:
        ids = torch.nn.functional.pad(ids, (1, 0), value=tokenizer.bos_token_id)
    return WindowSet(
        ids=ids,
        source=text.name,
        text_sha256=text.sha256,
        tokens_in_text=len(tokens),
        bos=bos,
        evaluated=evaluated,
    )
