"""The claim on an output folder: who writes there, and how long all sessions took together."""

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

from fp4scope.errors import OutputError
from fp4scope.files import open_kept


class Claim:
    """Held by one process at a time. It ends with the process, however that ends.

    Args:
        path: The file that is locked.
        started: When this session began, by `time.monotonic`; now.

    Raises:
        OutputError: Another process holds it.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, started: float | None = None) -> None:
        self._started = time.monotonic() if started is None else started
        self._file = open_kept(path)
        said = self._file.read(200).decode(errors="replace")
        owner, _, seconds = said.partition("\n")
        if not _locked(self._file.fileno()):
            self._file.close()
            raise OutputError(
                f"another run is writing to {path.parent} (process {owner or 'unknown'}); wait for "
                "it, or choose another folder with -o"
            )
        found = re.match(r"\d{1,12}\.\d{1,6} s\b", seconds)
        self._before = float(found[0][:-2]) if found else 0.0
        self.keep_time()

    @property
    def wall_s(self) -> float:
        """Seconds of all sessions together, this one until now."""
        return self._before + time.monotonic() - self._started

    def keep_time(self) -> None:
        """Say who writes and how long it took, for the next session."""
        text = f"{os.getpid()} on {socket.gethostname()}\n{self.wall_s:.3f} s in all sessions\n"
        with suppress(OSError):  # a full disk: the time is not worth a measurement
            self._file.seek(0)
            self._file.truncate(0)
            self._file.write(text.encode())

    def close(self) -> None:
        self.keep_time()
        self._file.close()


def _locked(number: int) -> bool:
    """Lock a file, unless another process has."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
