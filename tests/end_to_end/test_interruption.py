"""Killed at any moment, a study goes on and ends with the very bytes of one that was not."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

import fp4scope
from fp4scope.sweep import memory

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

# A process that has everything imported and forks for each line: a fault and a study. A fault is
# where to die (SIGKILL, so that no handler and no buffer of Python's gets another turn), at which
# call, and how much of a line is on disk by then.
SERVER = """
import json, os, signal, sys
from dataclasses import replace
import torch
torch.set_num_threads(1)
import fp4scope
from fp4scope.conductor import diagnose
from fp4scope.models import BlockStack, LoadedModel
from fp4scope.report import files
from fp4scope.ledger import log
from fp4scope.sweep import memory

memory.SIZES["cpu"] = replace(memory.SIZES["cpu"], chunk_tokens=1)  # a task for each window
files.figures = lambda *_, **__: ()  # slow, and not what this is about


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(owner, name, call):
    own, calls = getattr(owner, name), iter(range(call))

    def counted(*args, **kwargs):
        if next(calls, None) is None:
            die()
        return own(*args, **kwargs)

    setattr(owner, name, counted)


def kill_in_a_line(call, kind, share, sync):
    own, calls = log._append, iter(range(call))

    def append(file, line):
        if line.startswith(kind.encode()) and next(calls, None) is None:
            file.write(line[: int(share * len(line))])
            if sync:
                os.fsync(file.fileno())
            die()
        own(file, line)

    log._append = append


def arm(fault, call, *rest):
    if fault == "line":
        kill_in_a_line(call, *rest)
    elif fault == "block":
        kill_at(BlockStack, "run", call)
    elif fault == "forward":
        kill_at(LoadedModel, "logits", call)
    elif fault == "replace":
        kill_at(os, "replace", call)


print("ready", flush=True)
for line in sys.stdin:
    fault, options = json.loads(line)
    child = os.fork()
    if not child:
        try:
            if fault:
                arm(*fault)
            diagnose(**options)
        except BaseException:
            import traceback
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

KEPT = ("projections.csv", "layers.csv", "all_quantized.csv", "activations.csv", "journal.jsonl")


@pytest.fixture(scope="module")
def command(model_folder, text_file):
    """`command(folder, fault=None)`: a W4A4 study in a process of its own; its exit status."""
    study = {
        "model": str(model_folder),
        "text": str(text_file),
        "seq_len": 32,
        "windows": 4,
        "calibration_windows": 4,
        "calibration_seq_len": 32,
        "all_quantized": "",
        "formats": "nvfp4",
        "direction": "keep",
        "sweep": "projections,layers",
    }
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout.readline() == "ready\n"

        def run(folder, fault=None):
            options = study | {"output_dir": str(folder)}
            server.stdin.write(json.dumps([fault, options]) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        run.study = study
        yield run
        server.stdin.close()


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert command(folder) == 0
    return {name: (folder / name).read_bytes() for name in KEPT}


def read(folder):
    return {name: (folder / name).read_bytes() for name in KEPT}


def test_the_same_study_twice_is_the_same_bytes(command, whole, tmp_path, monkeypatch):
    """In another folder, and in another process."""
    assert command(tmp_path / "other") == 0
    assert read(tmp_path / "other") == whole
    monkeypatch.setitem(memory.SIZES, "cpu", replace(memory.SIZES["cpu"], chunk_tokens=1))
    fp4scope.diagnose(output_dir=tmp_path / "here", **command.study)
    assert read(tmp_path / "here") == whole
    assert whole["journal.jsonl"].count(b'{"job"') == 4


HEAD, INPUTS, CHUNK = '{"fp4scope_journal"', '{"note": "inputs"', '{"job"'
FAULTS = {
    "before the first byte of the journal": (["line", 0, HEAD, 0.0, True], 0),
    "inside the head of the journal": (["line", 0, HEAD, 0.5, True], 0),
    "inside the calibration's line": (["line", 0, INPUTS, 0.5, True], 0),
    "inside the first chunk's line": (["line", 0, CHUNK, 0.3, True], 0),
    "all of a chunk's line but its end": (["line", 2, CHUNK, 0.99999, True], 2),
    "behind a chunk's line, before fsync": (["line", 2, CHUNK, 1.0, False], 3),
    "behind a chunk's line, after fsync": (["line", 2, CHUNK, 1.0, True], 3),
    "inside the last chunk's line": (["line", 3, CHUNK, 0.5, True], 3),
    "during calibration": (["forward", 2], 0),
    "in the self-check": (["block", 1], 0),
    "in the first chunk": (["block", 20], 0),
    "in a later chunk": (["block", 60], None),
    "before the study's file": (["replace", 0], 0),
    "among the outputs": (["replace", 4], 4),
}


@pytest.mark.parametrize("moment", FAULTS)
def test_killed_and_resumed_equals_run_through(moment, command, whole, tmp_path):
    fault, windows = FAULTS[moment]
    assert command(tmp_path, fault) == -signal.SIGKILL
    left = (tmp_path / "journal.jsonl").read_bytes()
    kept = left[: left.rfind(b"\n") + 1]
    assert whole["journal.jsonl"].startswith(kept)
    if windows is None:
        assert 0 < kept.count(b'{"job"') < 4
    else:
        assert kept.count(b'{"job"') == windows
    assert command(tmp_path) == 0
    assert read(tmp_path) == whole


def test_killed_again_and_again(command, whole, tmp_path):
    """Each attempt keeps one more line and dies in the next."""
    statuses = []
    while len(statuses) < 20 and 0 not in statuses:
        statuses.append(command(tmp_path, ["line", 1, "{", 0.6, True]))
    assert statuses[-1] == 0
    assert len(statuses) > 4
    assert set(statuses[:-1]) == {-signal.SIGKILL}
    assert read(tmp_path) == whole


def test_no_half_written_output_is_left_under_its_name(command, whole, tmp_path):
    assert command(tmp_path, ["replace", 3]) == -signal.SIGKILL
    for name in KEPT:
        if (tmp_path / name).exists():
            assert (tmp_path / name).read_bytes() == whole[name]
