"""Texts: read byte for byte, named by their hash, joined as papers join WikiText-2."""

import hashlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fp4scope.data import Text, dataset, read_text
from fp4scope.errors import DataError
from fp4scope.study import Dataset

WIKITEXT2_TEST = "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "wikitext-2-raw-test.txt"


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets`; its `rows` are what every split holds."""
    asked = []

    def load_dataset(*name, split):
        asked.append((*name, split))
        if isinstance(hub.rows, Exception):
            raise hub.rows
        return {"text": hub.rows}

    config = SimpleNamespace(HF_HUB_OFFLINE=True)
    hub = SimpleNamespace(load_dataset=load_dataset, rows=[], asked=asked, config=config)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    return hub


@pytest.mark.parametrize(
    "content",
    ["a\nb\n", "a\r\nb\r\n", "\n\n a \n", "\ufeffnaïve 日本語 \U0001f600", "", "no newline"],
)
def test_a_file_is_read_as_it_is(content, tmp_path):
    path = tmp_path / "my.txt"
    path.write_bytes(content.encode())
    text = read_text(path)
    assert text == Text(name="my.txt", content=content)
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_hash_is_of_the_content_alone():
    assert Text(name="a", content="x").sha256 == Text(name="b", content="x").sha256
    assert Text(name="a", content="x").sha256 != Text(name="a", content="x ").sha256


@pytest.mark.skipif(not SHARED.exists(), reason="no shared/data with WikiText-2 beside the clone")
def test_wikitext2_as_a_file_has_its_known_hash():
    assert read_text(SHARED).sha256 == WIKITEXT2_TEST


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt: No such file"):
        read_text(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="Is a directory"):
        read_text(tmp_path)


def test_what_has_no_end_or_is_no_file():
    with pytest.raises(DataError, match="/dev/zero: not a regular file"):
        read_text("/dev/zero")
    with pytest.raises(DataError, match="embedded null"):
        read_text("a\0b")


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        read_text(tmp_path / "pipe")


def test_more_text_than_memory_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(10**13)  # takes no room: all of it is a hole
    with pytest.raises(
        DataError, match=r"huge\.txt has 10000000 MB, and to tokenize it takes .* GB"
    ):
        read_text(path)


def test_memory_that_runs_out_while_reading(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("w1 w2")

    def full(self):
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(DataError, match=r"a\.txt, 0\.0 MB: out of memory"):
        read_text(path)


def test_without_the_hub_the_cache_is_asked_at_once(hub, monkeypatch):
    hub.config.HF_HUB_OFFLINE = False
    seen = []

    def load_dataset(*name, split):
        seen.append(hub.config.HF_HUB_OFFLINE)
        return {"text": ["a"]}

    hub.load_dataset = load_dataset
    for error in (None, ConnectionError("no network")):
        monkeypatch.setattr("fp4scope.data.text.hub_error", lambda url, error=error: error)
        dataset(Dataset.WIKITEXT2)
        assert not hub.config.HF_HUB_OFFLINE
    assert seen == [False, True]


def test_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin1.txt"
    path.write_bytes("abc é".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin1\.txt is not UTF-8 \(byte 4\)"):
        read_text(path)


def test_wikitext2_rows_are_joined_by_two_newlines(hub):
    hub.rows = ["", " = Title = \n", "", " A paragraph. \n"]
    text = dataset(Dataset.WIKITEXT2, "validation")
    assert text.content == "\n\n = Title = \n\n\n\n\n A paragraph. \n"
    assert text.name == "wikitext-2-raw-v1 validation"
    assert dataset(Dataset.WIKITEXT2) == Text(name="wikitext-2-raw-v1 test", content=text.content)
    source = ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert hub.asked == [(*source, "validation"), (*source, "test")]


def test_wikitext2_out_of_reach_says_what_else_there_is(hub):
    hub.rows = ConnectionError("no\n network")
    with pytest.raises(DataError, match="no network; give a text of your own with --text FILE"):
        dataset(Dataset.WIKITEXT2)


def test_pydoc_topics_come_with_python():
    text = dataset(Dataset.PYDOC_TOPICS)
    assert text == dataset(Dataset.PYDOC_TOPICS, "train")
    assert len(text.content) > 300_000
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}." in text.name
