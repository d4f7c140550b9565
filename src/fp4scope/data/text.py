"""Texts by name or file, each with the hash that says which one it was."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4scope.errors import DataError
from fp4scope.files import at_home, read_bytes
from fp4scope.preflight import check_text, hub_error
from fp4scope.study import Dataset

_WIKITEXT = "Salesforce/wikitext"


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
        DataError: It cannot be read, is not UTF-8, or is more than fits into memory.
    """
    check_text(path)
    try:
        content = read_bytes(at_home(path), "text", DataError)
        return Text(name=Path(path).name, content=content.decode())
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

        with cached_only_if_unreachable():
            rows = datasets.load_dataset(_WIKITEXT, "wikitext-2-raw-v1", split=split)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"cannot get WikiText-2 ({split}) from the hub: {reason}; give a text of your own with "
            "--text FILE, or --dataset pydoc-topics, which every Python carries"
        ) from error
    return Text(name=f"wikitext-2-raw-v1 {split}", content="\n\n".join(rows["text"]))


@contextmanager
def cached_only_if_unreachable() -> Iterator[None]:
    """Let `datasets` look into its cache at once where the hub does not answer."""
    import datasets
    from huggingface_hub import hf_hub_url

    config: Any = datasets.config  # pyright: ignore[reportAttributeAccessIssue]
    wanted = config.HF_HUB_OFFLINE
    if not wanted and hub_error(hf_hub_url(_WIKITEXT, "README.md", repo_type="dataset")):
        config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = wanted


def pydoc_topics() -> Text:
    """The help topics of the running Python, joined by blank lines; they differ by version."""
    from pydoc_data.topics import topics

    version = ".".join(map(str, sys.version_info[:3]))
    content = "\n\n".join(topics[name] for name in sorted(topics))
    return Text(name=f"pydoc topics of Python {version}", content=content)


def dataset(name: Dataset, split: str = "test") -> Text:
    """A text by its name.

    Raises:
        DataError: It cannot be had.
    """
    return wikitext2(split) if name is Dataset.WIKITEXT2 else pydoc_topics()
