"""Texts by name or file, each with the hash that says which one it was."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from fp4scope.errors import DataError, nearest

WIKITEXT2, PYDOC_TOPICS = "wikitext2", "pydoc-topics"
DATASETS = (WIKITEXT2, PYDOC_TOPICS)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text, and where it comes from in words."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


def read_text(path: str | Path) -> Text:
    """A UTF-8 file, exactly as it is: no newline is translated.

    Raises:
        DataError: It cannot be read, or is not UTF-8.
    """
    try:
        return Text(name=Path(path).name, content=Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv"
        ) from None


def wikitext2(split: str) -> Text:
    """WikiText-2 raw from the hub: the split's rows joined by two newlines.

    Raises:
        DataError: The dataset cannot be had.
    """
    try:
        import datasets

        rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"cannot get WikiText-2 ({split}) from the hub: {reason}; give a text of your own with "
            "--text FILE, or --dataset pydoc-topics, which every Python carries"
        ) from error
    return Text(name=f"wikitext-2-raw-v1 {split}", content="\n\n".join(rows["text"]))


def pydoc_topics() -> Text:
    """The help topics of the running Python, joined by blank lines; they differ by version."""
    from pydoc_data.topics import topics

    version = ".".join(map(str, sys.version_info[:3]))
    content = "\n\n".join(topics[name] for name in sorted(topics))
    return Text(name=f"pydoc topics of Python {version}", content=content)


def dataset(name: str, split: str = "test") -> Text:
    """A text by its name in `DATASETS`.

    Raises:
        DataError: There is no such name.
    """
    if name == WIKITEXT2:
        return wikitext2(split)
    if name == PYDOC_TOPICS:
        return pydoc_topics()
    raise DataError(f"unknown dataset {name!r}; {nearest(name, DATASETS)}")
