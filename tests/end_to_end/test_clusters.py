"""Workers in a Ray cluster that was there before: they join and leave, and the numbers stay."""

import os
import re
import secrets
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

import fp4scope
from fp4scope.sweep import crew, memory, remote

pytest.importorskip("ray", reason="Ray is not installed, or there is none for this Python")

WINDOWS = 24


@pytest.fixture
def cluster(monkeypatch):
    """One whose head takes no workers."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        if not (Path.home() / ".ray" / "auth_token").exists():
            # For good: Ray reads it once in a process.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield made
        finally:
            made.shutdown()


def test_workers_join_when_hosts_are_added_and_leave_with_them(
    cluster, model_folder, text_file, tmp_path, monkeypatch
):
    """This process measures nothing while they do."""
    monkeypatch.setitem(memory.SIZES, "cpu", replace(memory.SIZES["cpu"], chunk_tokens=1))
    monkeypatch.setattr(remote, "_LOOK_FOR_MORE_S", 0.2)
    monkeypatch.setattr("fp4scope.report.files.figures", lambda *_, **__: ())
    study = {
        "text": str(text_file), "seq_len": 32, "windows": WINDOWS, "calibration_windows": 2,
        "calibration_seq_len": 32, "all_quantized": "", "formats": "nvfp4", "sweep": "layers",
        "direction": "keep",
    }  # fmt: skip
    fp4scope.diagnose(str(model_folder), output_dir=tmp_path / "alone", **study)
    hosts, notes = [], []

    class Watched(remote.Remote):
        @property
        def takes_more(self):
            return super().takes_more and (self.ready == 3 or len(hosts) == 3)

        def wait(self, tell):
            if self.ready == len(hosts) + 1 < 3:
                hosts.append(cluster.add_node(num_cpus=1))
            elif len(hosts) == 2 and self.measured.keys() >= {1, 2}:
                cluster.remove_node(hosts[0], allow_graceful=False)
                hosts.append(None)
            return super().wait(tell)

    def attempt(worker, task, advance):
        while len(hosts) < 3:
            advance(0.0)
            time.sleep(0.05)
        return crew.attempt(worker, task, advance)

    monkeypatch.setattr(remote, "Remote", Watched)
    monkeypatch.setattr(remote, "attempt", attempt)
    fp4scope.diagnose(
        str(model_folder), output_dir=tmp_path / "shared", workers=cluster.address,
        progress=lambda event: notes.append(event.note or ""), **study,
    )  # fmt: skip
    assert sum(" is lost: " in note for note in notes) == 1
    said = re.compile(r"this process measured \d+ windows, 2 other workers \d")
    assert any(map(said.match, notes))
    assert len(hosts) == 3  # so both had measured by then
    for name in ("layers.csv", "journal.jsonl"):
        alone, shared = ((tmp_path / of / name).read_bytes() for of in ("alone", "shared"))
        assert jobs(shared) == jobs(alone)


def jobs(content):
    """All of a table; of a journal the lines that have numbers."""
    return [line for line in content.splitlines() if not line.startswith((b'{"session', b'{"note'))]
