"""Writing files in folders that others can write to as well.

A file is written whole or not at all, and in place of an older one. Nothing is written through a
link that somebody has put there, and nothing waits for a pipe.
"""

import os
import stat
from contextlib import suppress
from io import FileIO
from pathlib import Path

from fp4scope.errors import OutputError
from fp4scope.names import visible

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def open_kept(path: Path) -> FileIO:
    """Open a file that is added to, unbuffered; it is made if it is not there.

    Raises:
        OSError: It is a link, no regular file, or cannot be opened.
    """
    number = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK | _NO_WAIT | _BINARY, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(f"{visible(path.name)} is not a regular file; move it away")
    return open(number, "r+b", buffering=0)


def replace_file(path: Path, content: bytes, advice: str) -> None:
    """Write a file, whole or not at all.

    Args:
        path: The file.
        content: What is in it then.
        advice: What a message says after what went wrong.

    Raises:
        OutputError: It could not be written.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        with suppress(FileNotFoundError):
            partial.unlink()
        # Under a name that was not there: what somebody has linked to it stays as it is.
        number = os.open(
            partial,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY,
            0o666,
        )
        with open(number, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OutputError(f"cannot write {path}: {reason(error)}; {advice}") from None


def reason(error: OSError) -> str:
    """Why the system refused, in words."""
    return error.strerror or str(error)


def text_bytes(text: str) -> bytes:
    """Text as UTF-8; what stands for a byte that is not UTF-8 becomes an escape."""
    return text.encode("utf-8", errors="backslashreplace")
