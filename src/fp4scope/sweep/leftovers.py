"""What Ray leaves behind when whoever started it is gone, however that was.

Runs as a program beside that process, with a folder and its number: waits for the end of its
input, which comes when nobody writes to it any more. Then it ends Ray's processes that have a file
of the folder open, and removes it. It imports nothing of ours, to be there at once.
"""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_RAY = re.compile(rb"ray(::|let|/)|gcs_server")
"""In the command of a process of Ray's."""
_TIMES = 20
_PAUSE_S = 0.1


def rays(folder: str) -> Iterator[int]:
    """The processes of Ray's that have a file of a folder open: those log there.

    Args:
        folder: It.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # others' processes, and those that have just ended
            if _RAY.search((process / "cmdline").read_bytes()) and _opens(process, folder):
                yield int(process.name)


def _opens(process: Path, folder: str) -> bool:
    for file in (process / "fd").iterdir():
        with suppress(OSError):
            if os.readlink(file).startswith(f"{folder}/"):
                return True
    return False


def main(folder: str, starter: str) -> None:
    """Wait, and clean up.

    Args:
        folder: Of a Ray's own.
        starter: The process that started it, which is spared.
    """
    sys.stdin.read()
    for _ in range(_TIMES):  # one may just have started another
        found = [process for process in rays(folder) if process != int(starter)]
        for process in found:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        if not found:
            break
        time.sleep(_PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
