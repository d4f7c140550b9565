"""The stratum of every target of a text: by position, class and frequency (`ledger.strata`)."""

from typing import Any
from unicodedata import category

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from fp4scope.ledger.strata import CLASSES, QUARTERS, position_stratum

_WORD, _CONTINUED, _DIGITS, _PUNCTUATION, _SPACE, _OTHER = range(len(CLASSES))
_MARKS = "\u0120", "\u2581"
"""Begin pieces of byte-level BPE and of SentencePiece that have a space in front of them."""
_WORDPIECE = "##"
_DAMAGED = "\ufffd"
"""What a part of a character decodes to."""
_SELECTORS = "\ufe00", "\ufe0f"
"""The first and last mark that says how a symbol is drawn."""


def strata_of(
    tokenizer: Any,  # noqa: ANN401
    ids: Int[Tensor, "windows tokens"],
) -> UInt8[np.ndarray, "windows kinds targets"]:
    """The strata of every target: by position, class and frequency, in this order.

    Args:
        tokenizer: Of the model; without one every token's class is `other`.
        ids: Token ids of all windows. The first of each is no target.
    """
    known = ids.cpu().numpy()
    windows, tokens = known.shape
    positions = [position_stratum(place) for place in range(1, tokens)]
    found = np.empty((windows, 3, tokens - 1), np.uint8)
    found[:, 0] = positions
    found[:, 1] = _classes(tokenizer, known)
    found[:, 2] = _quarters(known[:, 1:])
    return found


def _quarters(targets: Int[np.ndarray, "windows targets"]) -> UInt8[np.ndarray, "windows targets"]:
    """Quarters of the targets by how common their token is, the most frequent first.

    A token is in one quarter wherever it stands: that of its middle target, where the targets are
    ordered by how common they are, and by their id among the equally common.
    """
    _, places, counts = np.unique(targets, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    middle = np.cumsum(counts[order]) - counts[order] / 2
    quarters = np.empty(len(counts), np.uint8)
    quarters[order] = len(QUARTERS) * middle / targets.size
    return quarters[places.reshape(targets.shape)]


def _classes(
    tokenizer: Any,  # noqa: ANN401
    ids: Int[np.ndarray, "windows tokens"],
) -> UInt8[np.ndarray, "windows targets"]:
    """The class of every target.

    A word is continued by a token that has letters, has no space in front of it, and stands behind
    a letter or a digit. What a tokenizer that marks no spaces makes, is a word each time.
    """
    if tokenizer is None:
        return np.full((len(ids), ids.shape[1] - 1), _OTHER, np.uint8)
    types, places = np.unique(ids, return_inverse=True)
    pieces = tokenizer.convert_ids_to_tokens(types.tolist())
    texts = tokenizer.batch_decode(types[:, None].tolist(), clean_up_tokenization_spaces=False)
    spaced = np.array([_is_spaced(p, t) for p, t in zip(pieces, texts, strict=True)])
    wordpiece = np.array([str(piece).startswith(_WORDPIECE) for piece in pieces])
    classes = np.array([_class_of(text) for text in texts], np.uint8)
    classes[np.isin(types, list(tokenizer.all_special_ids))] = _OTHER
    joins = np.array([bool(text) and _is_of_a_word(text[-1]) for text in texts])

    places = places.reshape(ids.shape)
    own, before = places[:, 1:], places[:, :-1]
    found = classes[own]
    inside = ~spaced[own] & joins[before] if spaced.any() else wordpiece[own]
    found[(found == _WORD) & inside] = _CONTINUED
    return found


def _is_spaced(piece: Any, text: str) -> bool:  # noqa: ANN401
    """Whether there is a space in front of a token's text, which decoding it alone may drop."""
    return text[:1].isspace() or str(piece).startswith(_MARKS)


def _class_of(text: str) -> int:
    """Of a token's text, where it stands behind a space."""
    own = text.strip()
    if not own:
        return _SPACE if text else _OTHER
    if _DAMAGED in own:
        return _OTHER
    if all(c.isnumeric() and not c.isalpha() for c in own):  # numerals that are words are letters
        return _DIGITS
    return _WORD if any(map(_is_of_a_word, own)) else _PUNCTUATION


def _is_of_a_word(character: str) -> bool:
    """Whether it is a letter, a digit, or a mark on one, such as a vowel sign."""
    if _SELECTORS[0] <= character <= _SELECTORS[1]:
        return False
    return character.isalnum() or category(character) in ("Mn", "Mc")
