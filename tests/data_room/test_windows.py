"""Windows against texts cut by hand: BOS, remainder, calibration, and what is too short."""

import pytest
import torch

from fp4scope.data import (
    Text,
    calibration_text,
    calibration_windows,
    evaluation_text,
    evaluation_windows,
    needs_bos,
)
from fp4scope.errors import DataError
from fp4scope.study import Study

BOS = 1


def tokens(start, stop):
    """What the words `w<start>` to `w<stop - 1>` become."""
    return [4 + i for i in range(start, stop)]


def evaluate(data, tokenizer, model_type="llama"):
    return evaluation_windows(data, evaluation_text(data), tokenizer, model_type)


@pytest.fixture
def study(tmp_path):
    """`study(words, **options)`: the data of a study of the text w0 w1 ... with that many words."""

    def build(words, name="text.txt", **options):
        path = tmp_path / name
        path.write_text(" ".join(f"w{i}" for i in range(words)))
        return Study.build(**{"model": "m", "text": str(path), "seq_len": 5} | options).data

    return build


@pytest.fixture
def cut(tiny_tokenizer):
    """`cut(data)`: its evaluation and calibration windows."""

    def build(data, **special):
        tokenizer = tiny_tokenizer(**special)
        evaluation = evaluate(data, tokenizer)
        calibration = calibration_windows(data, calibration_text(data), tokenizer, evaluation)
        return evaluation, calibration

    return build


@pytest.mark.parametrize("words", [5, 9, 10, 23])
def test_windows_do_not_overlap_and_the_remainder_is_dropped(words, study, tiny_tokenizer):
    windows = evaluate(study(words), tiny_tokenizer())
    count = words // 5
    assert windows.ids.tolist() == [tokens(5 * i, 5 * i + 5) for i in range(count)]
    assert windows.behind.tolist() == tokens(5 * count, words)
    assert (len(windows), windows.seq_len) == (count, 5)
    assert (windows.tokens_in_text, windows.bos, windows.evaluated) == (words, False, False)
    assert windows.source == "text.txt"


def test_the_first_windows_of_the_text(study, tiny_tokenizer):
    windows = evaluate(study(23, windows=2), tiny_tokenizer())
    assert windows.ids.tolist() == [tokens(0, 5), tokens(5, 10)]
    assert windows.behind.tolist() == tokens(10, 23)


# BOS.


@pytest.mark.parametrize(
    ("model_type", "needed"),
    [
        ("gemma", True),
        ("gemma2", True),
        ("gemma3_text", True),
        ("llama", False),
        ("qwen2", False),
        ("qwen3", False),
        ("mistral", False),
        ("gpt2", False),
    ],
)
@pytest.mark.parametrize("bos", ["auto", "yes", "no"])
def test_who_gets_bos(bos, model_type, needed, study, tiny_tokenizer):
    assert needs_bos(model_type) == needed
    windows = evaluate(study(12, bos=bos), tiny_tokenizer(), model_type)
    assert windows.bos == (needed if bos == "auto" else bos == "yes")
    assert all((row[0] == BOS) == windows.bos for row in windows.ids)


@pytest.mark.parametrize("adds_bos", [False, True], ids=["plain", "tokenizer adds BOS"])
def test_bos_leads_every_window_and_is_never_doubled(adds_bos, study, tiny_tokenizer):
    """Four tokens of text each, so still `seq_len - 1` targets, none of them BOS."""
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    windows = evaluate(study(11, bos="yes"), tokenizer)
    assert windows.ids.tolist() == [[BOS, *tokens(0, 4)], [BOS, *tokens(4, 8)]]
    assert windows.behind.tolist() == tokens(8, 11)
    assert windows.tokens_in_text == 11
    targets = windows.ids[:, 1:]
    assert targets.shape == (2, 4)
    assert BOS not in targets


def test_a_tokenizers_own_bos_stays_where_it_put_it(study, tiny_tokenizer):
    """Its defaults, once, at the start of the text: the protocol of papers."""
    windows = evaluate(study(11), tiny_tokenizer(adds_bos=True))
    assert windows.ids.tolist() == [[BOS, *tokens(0, 4)], tokens(4, 9)]
    assert windows.tokens_in_text == 12


def test_bos_that_the_tokenizer_does_not_have(study, tiny_tokenizer):
    with pytest.raises(DataError, match="pass --bos no"):
        evaluate(study(11, bos="yes"), tiny_tokenizer(bos_token=None))


# Calibration.


def test_calibration_from_behind_the_evaluated_windows(study, cut):
    evaluation, calibration = cut(
        study(90, windows=2, calibration_seq_len=9, calibration_windows=100)
    )
    assert calibration.ids.tolist() == [tokens(i, i + 9) for i in range(10, 82, 9)]
    assert calibration.behind.tolist() == tokens(82, 90)
    assert not calibration.evaluated
    assert (calibration.source, calibration.bos) == (evaluation.source, False)


@pytest.mark.parametrize("wanted", [1, 3, 8, 9])
def test_as_many_calibration_windows_as_asked_for(wanted, study, cut):
    """Eight are enough not to touch the evaluated windows, fewer if fewer are asked for."""
    options = {"windows": 1, "calibration_seq_len": 2, "calibration_windows": wanted}
    _, calibration = cut(study(5 + 2 * min(wanted, 8), **options))
    expected = [tokens(i, i + 2) for i in range(5, 5 + 2 * min(wanted, 8), 2)]
    assert calibration.ids.tolist() == expected
    assert not calibration.evaluated


@pytest.mark.parametrize("wanted", [3, 8])
def test_too_little_behind_takes_the_evaluated_text_and_says_so(wanted, study, cut):
    options = {"windows": 1, "calibration_seq_len": 2, "calibration_windows": wanted}
    _, calibration = cut(study(4 + 2 * wanted, **options))
    assert calibration.evaluated
    assert calibration.ids.tolist() == [tokens(i, i + 2) for i in range(0, 2 * wanted, 2)]


@pytest.mark.parametrize(("bos", "lead", "count"), [("no", [], 2), ("yes", [BOS], 3)])
def test_calibration_on_a_text_shorter_than_its_windows(bos, lead, count, study, cut):
    evaluation, calibration = cut(study(13, bos=bos, calibration_seq_len=512))
    assert calibration.evaluated
    assert calibration.ids.tolist() == [[*lead, *tokens(0, 13)]]
    assert len(evaluation) == count


@pytest.mark.parametrize("words", [20, 70])
def test_calibration_windows_have_bos_where_evaluated_ones_do(words, study, cut):
    options = {"windows": 2, "calibration_seq_len": 6, "bos": "yes", "calibration_windows": 99}
    _, calibration = cut(study(words, **options), adds_bos=True)
    assert calibration.evaluated == (words == 20)
    start = 0 if calibration.evaluated else 8
    expected = [[BOS, *tokens(i, i + 5)] for i in range(start, words - 4, 5)]
    assert calibration.ids.tolist() == expected


def test_calibration_text_of_its_own(study, cut, tmp_path):
    (tmp_path / "other.txt").write_text(" ".join(f"w{i}" for i in range(80, 91)))
    own = {"calibration_text": str(tmp_path / "other.txt"), "calibration_seq_len": 4}
    for bos, step in (("no", 4), ("yes", 3)):
        evaluation, calibration = cut(study(60, bos=bos, **own))
        lead = [BOS] * (bos == "yes")
        assert calibration.ids.tolist() == [
            [*lead, *tokens(i, i + step)] for i in range(80, 92 - step, step)
        ]
        assert (calibration.source, calibration.evaluated) == ("other.txt", False)
        assert calibration.text_sha256 != evaluation.text_sha256
    _, one = cut(study(60, **own, calibration_windows=1))
    assert one.ids.tolist() == [tokens(80, 84)]


def test_a_calibration_text_that_is_the_evaluated_one_is_said_to_be(study, cut, tmp_path):
    (tmp_path / "copy.txt").write_text(" ".join(f"w{i}" for i in range(20)))
    own = {"calibration_text": str(tmp_path / "copy.txt"), "calibration_seq_len": 4}
    assert [cut(study(words, **own))[1].evaluated for words in (20, 21)] == [True, False]


@pytest.mark.parametrize("name", [None, "wikitext2"])
def test_wikitext2_calibrates_on_its_train_split(name, cut, monkeypatch):
    words = {"test": range(40), "train": range(50, 90)}
    monkeypatch.setattr(
        "fp4scope.data.windows.dataset",
        lambda name, split="test": Text(
            name=f"{name.value} {split}", content=" ".join(f"w{i}" for i in words[split])
        ),
    )
    options = {"seq_len": 5, "windows": 2, "calibration_seq_len": 4, "calibration_windows": 3}
    evaluation, calibration = cut(Study.build(model="m", dataset=name, **options).data)
    assert (evaluation.source, calibration.source) == ("wikitext2 test", "wikitext2 train")
    assert evaluation.ids.tolist() == [tokens(0, 5), tokens(5, 10)]
    assert calibration.ids.tolist() == [tokens(i, i + 4) for i in (50, 54, 58)]
    assert not calibration.evaluated


def test_a_named_text_without_splits_calibrates_behind_itself(cut):
    options = {"dataset": "pydoc-topics", "windows": 2, "seq_len": 16}
    evaluation, calibration = cut(Study.build(model="m", **options, calibration_seq_len=8).data)
    assert calibration.source == evaluation.source
    assert not calibration.evaluated
    assert len(calibration) == 8
    assert calibration.ids.flatten().tolist() == evaluation.behind[: 8 * 8].tolist()


@pytest.mark.parametrize(
    ("windows", "asked", "expected"),
    [
        (2, "auto", 8),
        (10, "auto", 20),
        (11, "auto", 22),
        (999, "auto", 256),
        (2, 3, 3),
        (2, 300, 300),
    ],
)
def test_calibration_takes_as_many_tokens_as_are_evaluated(windows, asked, expected, cut):
    """Between 8 and 256 windows, unless a number is given."""
    options = {"dataset": "pydoc-topics", "windows": windows, "seq_len": 16}
    sizes = {"calibration_seq_len": 8, "calibration_windows": asked}
    assert len(cut(Study.build(model="m", **options, **sizes).data)[1]) == expected


# Too short.


@pytest.mark.parametrize(("words", "bos"), [(0, "no"), (4, "no"), (3, "yes")])
def test_text_shorter_than_a_window(words, bos, study, tiny_tokenizer):
    with pytest.raises(DataError, match=rf"text\.txt makes {words} tokens, less than one window"):
        evaluate(study(words, bos=bos), tiny_tokenizer())
    assert len(evaluate(study(5 - (bos == "yes"), bos=bos), tiny_tokenizer())) == 1


def test_more_windows_than_the_text_has(study, tiny_tokenizer):
    with pytest.raises(DataError, match=r"23 tokens, 4 windows of 5; 5 were asked for.*windows 4"):
        evaluate(study(23, windows=5), tiny_tokenizer())
    assert len(evaluate(study(23, windows=4), tiny_tokenizer())) == 4


def test_calibration_text_shorter_than_a_window(study, cut, tmp_path):
    (tmp_path / "other.txt").write_text("w1 w2 w3")
    with pytest.raises(DataError, match=r"other\.txt makes 3 .* smaller --calibration-seq-len"):
        cut(study(60, calibration_text=str(tmp_path / "other.txt"), calibration_seq_len=4))


# Hashes.


def test_hashes_say_which_text_and_which_windows(study, tiny_tokenizer):
    def hashes(*args, **options):
        windows = evaluate(study(*args, **options), tiny_tokenizer())
        return windows.text_sha256, windows.sha256

    text, ids = hashes(20)
    assert hashes(20, name="copy.txt") == (text, ids)
    # Other text behind the last window: the same windows.
    assert hashes(22)[0] != text
    assert hashes(22)[1] == ids
    assert hashes(25)[1] != ids
    assert hashes(20, windows=3)[1] != ids
    assert hashes(20, bos="yes")[1] != ids
    assert hashes(20, windows=3)[0] == text


def test_ids_are_64_bit_whatever_the_tokenizer(study, tiny_tokenizer):
    windows = evaluate(study(11, bos="yes"), tiny_tokenizer())
    assert windows.ids.dtype == torch.int64
