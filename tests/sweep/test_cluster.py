"""A Ray of our own leaves nothing behind, however it is stopped."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from fp4scope.sweep import leftovers
from fp4scope.sweep.cluster import _undisturbed

STARTED = """
import sys, time
from fp4scope.study import Place
from fp4scope.sweep.cluster import connected
try:
    with connected(Place(2), gpus=False):
        time.sleep(100)
except KeyboardInterrupt:
    sys.exit(2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray has to end by itself")
@pytest.mark.parametrize(
    ("how", "late_s"), [(signal.SIGINT, 1.5), (signal.SIGINT, 3.0), (signal.SIGKILL, 3.0)]
)
def test_stopped_while_it_starts(how, late_s):
    """Ctrl-C goes to the whole group, as a terminal sends it."""
    pytest.importorskip("ray", reason="Ray is not installed, or there is none for this Python")
    with subprocess.Popen([sys.executable, "-c", STARTED], start_new_session=True) as driver:
        ours, commands = {}, []

        def look():
            for process in psutil.Process(driver.pid).children(recursive=True):
                ours[process.pid] = process
                with suppress(psutil.Error):
                    commands.append(process.cmdline())
            time.sleep(0.02)

        try:
            while not any("gcs_server" in " ".join(command) for command in commands):
                look()
            until = time.monotonic() + late_s
            while time.monotonic() < until:
                look()
            os.killpg(driver.pid, how)
            assert driver.wait(60) == (2 if how == signal.SIGINT else -how)
        finally:
            driver.kill()
    assert psutil.wait_procs(ours.values(), timeout=20)[1] == []
    (folder,) = {command[-2] for command in commands if command[-3:-2] == [leftovers.__file__]}
    assert not os.path.exists(folder)


def test_ctrl_c_waits_and_a_second_one_does_not():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    done = []

    def work(times):
        with _undisturbed():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            done.append(times)

    work(0)
    with pytest.raises(KeyboardInterrupt):
        work(1)
    with pytest.raises(KeyboardInterrupt):
        work(2)
    assert done == [0, 1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
