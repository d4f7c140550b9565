"""Texts: read byte for byte, named by their hash, joined as papers join WikiText-2."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fp4scope.data import Text, dataset, read_text
from fp4scope.errors import DataError

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

    hub = SimpleNamespace(load_dataset=load_dataset, rows=[], asked=asked)
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


def test_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin1.txt"
    path.write_bytes("abc é".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin1\.txt is not UTF-8 \(byte 4\)"):
        read_text(path)


def test_wikitext2_rows_are_joined_by_two_newlines(hub):
    hub.rows = ["", " = Title = \n", "", " A paragraph. \n"]
    text = dataset("wikitext2", "validation")
    assert text.content == "\n\n = Title = \n\n\n\n\n A paragraph. \n"
    assert text.name == "wikitext-2-raw-v1 validation"
    assert dataset("wikitext2") == Text(name="wikitext-2-raw-v1 test", content=text.content)
    source = ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert hub.asked == [(*source, "validation"), (*source, "test")]


def test_wikitext2_out_of_reach_says_what_else_there_is(hub):
    hub.rows = ConnectionError("no\n network")
    with pytest.raises(DataError, match="no network; give a text of your own with --text FILE"):
        dataset("wikitext2")


def test_pydoc_topics_come_with_python():
    text = dataset("pydoc-topics")
    assert text == dataset("pydoc-topics", "train")
    assert len(text.content) > 300_000
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}." in text.name


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(DataError, match="unknown dataset 'wikitext-2'; did you mean wikitext2"):
        dataset("wikitext-2")
