"""Strata of targets against text that was classified by hand."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fp4scope.data import strata_of
from fp4scope.ledger.strata import CLASSES, QUARTERS, names_of, position_stratum, positions_of

WORDS = {
    "<s>": "other", "The": "word", "Ġcat": "word", "s": "word, continued", "Ġ1": "digits",
    "9": "digits", "Ġ(": "punctuation", "a": "word", "Ċ": "white space", "Ġ": "white space",
    "x1": "word", "Ã": "other", "Ġnaïve": "word", ".": "punctuation", "½": "digits",
}  # fmt: skip
"""Pieces of byte-level BPE in the order of their ids, with their class in the text of the test."""


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """Of these pieces, which it decodes as GPT-2's does."""
    names = [piece.replace("ï", "Ã¯").replace("½", "Â½") for piece in WORDS]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<s>")


def test_classes_are_those_of_the_text(bytes_tokenizer):
    ids = torch.arange(len(WORDS))[None]
    found = [CLASSES[own] for own in strata_of(bytes_tokenizer, ids)[0, 1]]
    assert found == list(WORDS.values())[1:]


def test_a_word_is_continued_only_behind_a_letter_or_digit(bytes_tokenizer):
    place = {piece: i for i, piece in enumerate(WORDS)}
    row = ["The", "s", ".", "s", "Ċ", "s", "9", "s", "Ġcat", "<s>", "a"]
    ids = torch.tensor([[place[piece] for piece in row]])
    found = strata_of(bytes_tokenizer, ids)[0, 1]
    words = [CLASSES[own] for own, piece in zip(found, row[1:], strict=True) if piece == "s"]
    assert words == ["word, continued", "word", "word", "word, continued"]
    assert CLASSES[found[-1]] == "word"


def test_marks_and_numerals_of_other_scripts_are_of_words():
    """A vowel sign is no punctuation, and a numeral that is a word no digit."""
    pieces = ["<s>", "\u0915\u093f", "\u0924", "\u093e", "\u4e00", "\u0967", "\u2764\ufe0f"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*pieces, " "])}, "<s>"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    ids = torch.tensor([[0, 7, 1, 2, 3, 7, 4, 7, 5, 6]])
    found = [CLASSES[own] for own in strata_of(tokenizer, ids)[0, 1]]
    assert found == [
        "white space", "word", "word, continued", "word, continued", "white space", "word",
        "white space", "digits", "punctuation",
    ]  # fmt: skip


def test_quarters_of_the_targets_are_by_how_common_their_token_is(tiny_tokenizer):
    # BOS leads every window and is no target: it does not count.
    rows = [[1, 10, 10, 10, 20, 20], [1, 10, 10, 30, 40, 50]]
    found = strata_of(tiny_tokenizer(), torch.tensor(rows))[:, 2]
    # 10 has 5 of 10 targets, its middle is in the second quarter's place.
    by_token = dict(zip(np.array(rows)[:, 1:].ravel(), found.ravel(), strict=True))
    assert {t: QUARTERS[q] for t, q in by_token.items()} == {
        10: "frequent", 20: "rare", 30: "rarest", 40: "rarest", 50: "rarest",
    }  # fmt: skip


def test_without_a_tokenizer_positions_and_frequencies_stay(ids):
    found = strata_of(None, ids)
    assert {CLASSES[own] for own in found[:, 1].ravel()} == {"other"}
    assert found[0, 0].tolist() == [position_stratum(p) for p in range(1, ids.shape[1])]


def test_every_position_is_in_one_stratum_and_its_name_says_which():
    for position in (*range(1, 200), 2047, 2048, 8191, 16383, 32767, 131071):
        own = position_stratum(position)
        assert position in positions_of(own)
        low, _, high = names_of("position", position)[own].partition("-")
        assert int(low) <= position == int(high or low)
    assert len(names_of("position", 16383)) == 12
