"""Files and folders that a user names: whatever is wrong with one is one of our errors.

A path may hold a NUL, be longer than the system takes, name somebody's home who is not there, or
a device that never ends. The operating system, `pathlib` and the codecs say so with exceptions
of many kinds; each user's path passes here once, and leaves as a message.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fp4scope.errors import Fp4ScopeError, OutputError, shown


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
