"""Programs that a model wrote: what passes, and what they cannot do."""

import os
import sys
import time

import pytest

from fp4scope.tasks.sandbox import cuts_network, run_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits are of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems ignore this limit")


@pytest.mark.parametrize(
    ("program", "became"),
    [
        ("import math\nassert math.gcd(4, 6) == 2", "passed"),
        ("assert False", "AssertionError"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early"),
        ("print('passed'); raise KeyError", "KeyError"),
        ("import sys; assert sys.stdin.read() == ''", "passed"),
        ("import torch", "ModuleNotFoundError"),
        ("if __name__ == '__main__': raise KeyError", "passed"),
    ],
)
def test_only_what_runs_to_its_end_passes(program, became):
    assert run_program(program) == became


def test_it_ends_with_its_time():
    assert run_program("while True: pass", timeout_s=0.5) == "timed out"
    # What it has started ends too: it would hold stdout open.
    child = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; "
    assert run_program(f"{child}time.sleep(60)'])", timeout_s=20.0) == "passed"


def test_nobody_waits_for_what_left_its_group():
    code = "import os, time\nif not os.fork(): os.setsid()\ntime.sleep(15)"
    # The child holds the pipe of the verdict for a while longer.
    begun = time.monotonic()
    assert run_program(code, timeout_s=0.5) == "timed out"
    assert time.monotonic() - begun < 10


@linux
def test_memory_and_files_are_limited():
    assert run_program("bytearray(1 << 34)") == "MemoryError"
    assert run_program("open('large', 'w').write('a' * (1 << 22))") == "OSError"


def test_it_sees_nothing_of_this_process(monkeypatch, tmp_path):
    monkeypatch.setenv("FP4SCOPE_SECRET", "x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    assert run_program("import os; assert 'FP4SCOPE_SECRET' not in os.environ") == "passed"
    assert run_program("import os; assert os.listdir() == []") == "passed"


@linux
def test_where_it_says_so_there_is_no_network():
    asked = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    reached = run_program(f"{asked}s.connect(('192.0.2.1', 9))")
    assert reached == "OSError" if cuts_network() else reached in ("passed", "OSError")
