"""Files and folders that a user names: whatever is wrong with one is one of our errors.

A path may hold a NUL, be longer than the system takes, name somebody's home who is not there, or
a device that never ends. The operating system, `pathlib` and the codecs say so with exceptions
of many kinds; each user's path passes here once, and leaves as a message.

Others can write to our folders as well. A file is written whole or not at all, and in place of an
older one. Nothing is written through a link that somebody has put there, and nothing waits for a
pipe.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from fp4scope.errors import Fp4ScopeError, OutputError, shown
from fp4scope.names import visible

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)


@contextmanager
def refusing(said: str, kind: type[Fp4ScopeError], advice: str = "") -> Iterator[None]:
    """Turn what can go wrong with a path into `kind`, as `said: reason; advice`.

    Args:
        said: What could not be done with which path.
        kind: What to raise.
        advice: What to do next.
    """
    try:
        yield
    except Fp4ScopeError:
        raise
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "out of memory"
        raise kind(f"{said}: {reason}{advice and f'; {advice}'}") from None


def named(path: str | Path) -> str:
    """A path as it is named in a message."""
    text = str(path)
    return text if text.isprintable() and len(text) <= 300 else shown(text)


def at_home(path: str | Path) -> Path:
    """A path with `~` as shells mean it: none of them expands it behind `--out=`.

    Example:
        >>> at_home("a/b").as_posix()
        'a/b'
    """
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a null byte in a user's name
        return Path(path)


def require_file(path: str | Path, what: str, kind: type[Fp4ScopeError]) -> os.stat_result:
    """Refuse what is not a regular file that can be opened.

    Args:
        path: The file.
        what: What it is to the user, such as `text`.
        kind: What to raise.

    Raises:
        Fp4ScopeError: `kind`.
    """
    with refusing(f"cannot read the {what} {named(path)}", kind):
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(0, "Is a directory; give a file")
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a regular file, so it may have no end; give a file")
        os.close(os.open(path, os.O_RDONLY))
    return found


def read_bytes(path: str | Path, what: str, kind: type[Fp4ScopeError]) -> bytes:
    """A regular file's content.

    Args:
        path: The file.
        what: What it is to the user, such as `text`.
        kind: What to raise.

    Raises:
        Fp4ScopeError: `kind`: it is not there, not a regular file, cannot be read, or does not
            fit into memory.
    """
    size = require_file(path, what, kind).st_size
    with refusing(f"cannot read the {what} {named(path)}, {size / 1e6:.1f} MB", kind):
        return Path(path).read_bytes()


def require_memory(needed: int, said: str, kind: type[Fp4ScopeError], advice: str) -> None:
    """Refuse what needs more memory than there is, before the process is ended for it.

    Args:
        needed: How much, in bytes.
        said: What needs it.
        kind: What to raise.
        advice: What to do instead.

    Raises:
        Fp4ScopeError: `kind`.
    """
    if needed > (free := free_memory()):
        raise kind(
            f"{said} takes about {needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are "
            f"free; {advice}"
        )


def free_memory() -> int:
    """Bytes that this process may still take, on the machine and under its own limit."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        import resource
    except ImportError:  # not on Windows
        return free
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return free
    return max(0, min(free, limit - psutil.Process().memory_info().vms))


def writable_folder(path: str | Path) -> Path:
    """A folder that files can be made in; it is made if it is not there.

    Raises:
        OutputError: It is not.
    """
    with refusing(f"cannot write to {named(path)}", OutputError, "choose another folder with -o"):
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return Path(path)


def require_new(folder: Path) -> None:
    """Refuse a folder that is there.

    Raises:
        OutputError: It is.
    """
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{named(folder)} exists; choose a folder that does not")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that is there whole or not at all: what the `with` block writes gets its name last.

    Args:
        folder: It; it must not be there (`require_new`).

    Raises:
        OutputError: It cannot be written.
    """
    with refusing(f"cannot write {named(folder)}", OutputError, "choose another folder"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield partial
            partial.chmod(0o755)  # temporary folders are private
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def require_writable(path: Path) -> None:
    """Refuse a file that cannot be made or written to, before there is something to write.

    Raises:
        OutputError: Its folder is not there, or nobody may write to it.
    """
    with refusing(f"cannot write {named(path)}", OutputError, "choose another file"):
        if path.is_dir():
            raise IsADirectoryError(0, "Is a directory")
        if not path.exists():
            with tempfile.TemporaryFile(dir=path.parent):
                return
        if not os.access(path, os.W_OK):
            raise PermissionError(0, "Permission denied")


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
    with refusing(f"cannot write {path}", OutputError, advice):
        try:
            with suppress(FileNotFoundError):
                partial.unlink()
            # Under a name that was not there: what somebody has linked to it stays as it is.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
            with open(os.open(partial, flags, 0o666), "wb") as file:
                file.write(content)
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise


def text_bytes(text: str) -> bytes:
    """Text as UTF-8; what stands for a byte that is not UTF-8 becomes an escape."""
    return text.encode("utf-8", errors="backslashreplace")
