"""Code that a model wrote, run where it can do little harm.

A fresh interpreter in a temporary folder, without this process's environment, under limits of time,
memory, file size and open files, and where the system allows it without a network. That holds
accidents, such as endless loops and full memory. It is no wall against an attack: what must not be
reached belongs on another machine, or behind a container.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache

TIMEOUT_S = 10.0
"""For a program, wall-clock."""
_MEMORY = 2 << 30
_FILE = 1 << 20
_FILES = 64

# Runs in the child. The verdict goes to a copy of stdout that the program does not know of, so that
# a program that only ends early, or prints, does not pass.
_CHILD = """
import ctypes, io, json, os, sys
given = json.loads(sys.stdin.read())
import resource
for name, most in given["limits"].items():
    try:
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    except (AttributeError, ValueError, OSError):
        pass  # this one is not to be had here; the others are
cut = False
if sys.platform == "linux":
    libc = ctypes.CDLL(None, use_errno=True)
    cut = libc.unshare(0x10000000 | 0x40000000) == 0
out = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
try:
    # As an import: what stands behind `if __name__ == "__main__":` is no part of an answer.
    exec(compile(given["code"], "program.py", "exec"), {"__name__": "program"})
    said = "passed"
except BaseException as error:
    said = type(error).__name__
os.write(out, json.dumps([given["token"], said, cut]).encode())
os._exit(0)
"""


def run_program(code: str, timeout_s: float = TIMEOUT_S) -> str:
    """What became of a program: `passed`, the name of its exception, `timed out` or `ended early`.

    Args:
        code: Python.
        timeout_s: After so many seconds it is killed, and what it has started in its group.

    Example:
        >>> run_program("assert 1 + 1 == 2"), run_program("assert 1 + 1 == 3")
        ('passed', 'AssertionError')
    """
    return _run(code, timeout_s)[0]


@cache
def cuts_network() -> bool:
    """Whether programs here run without a network."""
    return _run("", TIMEOUT_S)[1]


def can_run() -> bool:
    """Whether this system limits what a program takes."""
    return os.name == "posix"


def _run(code: str, timeout_s: float) -> tuple[str, bool]:
    token = secrets.token_hex(8)
    limits = {
        "RLIMIT_AS": _MEMORY,
        "RLIMIT_CPU": int(timeout_s) + 1,
        "RLIMIT_FSIZE": _FILE,
        "RLIMIT_NOFILE": _FILES,
        "RLIMIT_CORE": 0,
    }
    given = json.dumps({"code": code, "token": token, "limits": limits}).encode()
    with tempfile.TemporaryDirectory(prefix="fp4scope-program-") as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "PATH": os.defpath},
            start_new_session=True,
        )
        try:
            answer, _ = child.communicate(given, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return "timed out", False
        finally:
            # What it has started, unless that left the group that it leads.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            # What has left its group may hold the pipe: nobody waits for the pipe's end.
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            child.wait()
    try:
        own, said, cut = json.loads(answer)
    except ValueError:
        return "ended early", False
    return (str(said), bool(cut)) if own == token else ("ended early", False)
