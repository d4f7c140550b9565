"""Workers in other processes: the same bytes as one, whatever becomes of them."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import crooked
import fp4scope
import light
from crooked import Crooked, Noting
from fp4scope import preflight
from fp4scope.conductor import workers
from fp4scope.errors import StudyError
from fp4scope.study import Place, Study
from fp4scope.sweep import cluster, crew, memory, remote
from fp4scope.sweep.cluster import connected, ray_library

pytest.importorskip("ray", reason="Ray is not installed, or there is none for this Python")

KEPT = ("projections.csv", "layers.csv", "all_quantized.csv", "activations.csv")
WINDOWS = 60
known = {}
"""What each window gives, once `alone` has measured them."""


@pytest.fixture(autouse=True)
def a_task_for_each_window(monkeypatch):
    monkeypatch.setitem(memory.SIZES, "cpu", replace(memory.SIZES["cpu"], chunk_tokens=1))


@pytest.fixture(scope="module")
def ray():
    """One Ray for all of them, which takes its processes along when it goes."""
    with pytest.MonkeyPatch.context() as patch:
        here = str(Path(crooked.__file__).parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        with connected(Place(4), gpus=False) as ray:
            ours = psutil.Process().children(recursive=True)
            assert any("raylet" in process.name() for process in ours)
            yield ray
    assert psutil.wait_procs(ours, timeout=20)[1] == []


@pytest.fixture(scope="module")
def study(model_folder, text_file):
    return {
        "model": str(model_folder),
        "text": str(text_file),
        "seq_len": 32,
        "windows": WINDOWS,
        "calibration_windows": 2,
        "calibration_seq_len": 32,
        "all_quantized": "",
        "formats": "nvfp4",
        "direction": "keep",
        "sweep": "projections,layers",
        "replicas": 2,
    }


def read(folder):
    """Its tables, and the lines of its journal that have numbers."""
    lines = (folder / "journal.jsonl").read_bytes().splitlines()
    return {name: (folder / name).read_bytes() for name in KEPT} | {
        "jobs": [line for line in lines if line.startswith(b'{"job"')]
    }


@pytest.fixture(scope="module")
def alone(study, tmp_path_factory):
    """What one process leaves, and what each window gave it."""
    folder, table, own = tmp_path_factory.mktemp("alone"), {}, crew.attempt

    def attempt(worker, task, advance):
        outcome = own(worker, task, advance)
        table[task.windows[0]] = [dict(found.values) for found in outcome.rows]
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(memory.SIZES, "cpu", replace(memory.SIZES["cpu"], chunk_tokens=1))
        patch.setattr("fp4scope.report.files.figures", lambda *_, **__: ())
        patch.setattr(crew, "attempt", attempt)
        fp4scope.diagnose(output_dir=folder, **study)
    found = read(folder)
    known.update(table)
    assert len(found["jobs"]) == WINDOWS
    return found


class Gate:
    """Holds this process's own tasks back until it is opened; keeps what was told."""

    def __init__(self, monkeypatch):
        self.opened, self.notes = threading.Event(), []
        own = remote.attempt

        def attempt(worker, task, advance):
            while not self.opened.wait(0.05):
                advance(0.0)  # which ends it when the crew is closed
            return own(worker, task, advance)

        monkeypatch.setattr(remote, "attempt", attempt)

    def listen(self, event):
        if event.note:
            self.notes.append(event.note)

    def told(self, *words):
        """Notes that have all of these words."""
        return [note for note in self.notes if all(word in note for word in words)]


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


def built(monkeypatch, wrap):
    own = workers.blueprint
    monkeypatch.setattr(workers, "blueprint", lambda *args: wrap(own(*args)))


def test_stopped_and_gone_on_with_the_bytes_are_those_of_one_process(
    ray, alone, study, gate, tmp_path
):
    """Others measure, then this process too; between them Ctrl-C, and another number of workers."""

    def interrupt(event):
        gate.listen(event)
        if event.windows == WINDOWS // 3:
            raise KeyboardInterrupt

    def open_it(event):
        if event.done > 0:  # by others: nothing is done here yet
            gate.opened.set()

    with pytest.raises(KeyboardInterrupt):
        fp4scope.diagnose(
            output_dir=tmp_path, workers="ray:2", progress=lambda e: (open_it(e), interrupt(e)),
            **study,
        )  # fmt: skip
    left = read_jobs(tmp_path)
    assert left == alone["jobs"][: len(left)]
    assert 0 < len(left) < WINDOWS
    assert gate.told("starting workers: ray:2")
    fp4scope.diagnose(output_dir=tmp_path, workers=3, **study)
    assert read(tmp_path) == alone


def read_jobs(folder):
    lines = (folder / "journal.jsonl").read_bytes().splitlines()
    return [line for line in lines if line.startswith(b'{"job"')]


def test_killed_twenty_times_at_random_moments(
    ray, alone, study, gate, tmp_path, monkeypatch, capsys
):
    """SIGKILL while they start, load or measure; others take their places, and their windows."""
    signs, out = tmp_path / "signs", tmp_path / "out"
    signs.mkdir()
    monkeypatch.setattr(remote, "Station", light.Station)

    def knows(study, prepared, injector, check):
        witness = remote.witness(prepared.loaded, prepared.windows.ids).numpy()
        return light.Known(asdict(remote.card_of("cpu")), witness, known, signs)

    monkeypatch.setattr(workers, "blueprint", knows)
    monkeypatch.setattr(remote, "_MOST_IN_A_ROW", 1000)
    dice, killed = random.Random(0), set()

    def kill():
        while len(killed) < 20 and not gate.opened.is_set():
            time.sleep(0.3 * dice.random())
            # A quarter of them while they measure: to get there takes each some seconds.
            alive = {int(sign.name) for sign in signs.iterdir()}
            if len(killed) % 4:
                alive = {p.pid for p in psutil.Process().children(recursive=True) if is_worker(p)}
            if alive := sorted(alive - killed):
                killed.add(chosen := dice.choice(alive))
                os.kill(chosen, signal.SIGKILL)
        (signs / "opened").touch()
        gate.opened.set()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        fp4scope.diagnose(output_dir=out, workers="ray:3", progress=gate.listen, **study)
    finally:
        gate.opened.set()
        killer.join()
    assert len(killed) == 20
    assert read(out) == alone
    lost = gate.told("is lost: its process has ended")
    assert len(lost) >= 15  # of the last nobody need hear
    assert any("its window goes to another" in note for note in lost)
    assert capsys.readouterr().out == ""  # Ray would print a page for each


def is_worker(process):
    try:
        return "ray::Station" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_who_hangs_is_given_up_and_who_is_wrong_is_refused(
    ray, alone, study, gate, tmp_path, monkeypatch
):
    faults = ("other weights", "other logits", "raises", "hangs")
    built(monkeypatch, lambda blueprint: Crooked(blueprint, tmp_path, faults))
    monkeypatch.setattr(remote.Patience, "is_over", lambda self, task, seconds: seconds > 2)
    expected = {
        "refused": ["is refused", "it loads other weights"],
        "differs": ["is refused", "its full-precision logits differ"],
        "raises": ["is refused", "has NaN or Inf; that is measured again by this process"],
        "hangs": ["is lost: it has not answered for 2 seconds"],
    }

    def listen(event):
        gate.listen(event)
        if all(gate.told(*words) for words in expected.values()):
            gate.opened.set()

    late = threading.Timer(100, gate.opened.set)
    late.start()
    try:
        fp4scope.diagnose(output_dir=tmp_path, workers="ray:5", progress=listen, **study)
    finally:
        late.cancel()
    assert {name: len(gate.told(*words)) for name, words in expected.items()} == dict.fromkeys(
        expected, 1
    )
    assert read(tmp_path) == alone


def test_a_mixture_of_experts_has_the_same_numbers_by_others(
    ray, study, gate, tiny_model, tiny_tokenizer, tmp_path
):
    """To rounding: what experts give a token may be summed otherwise in another batch."""
    model = tmp_path / "mixture"
    tiny_model("qwen3-moe").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    asked = study | {"model": str(model), "windows": 12, "sweep": "projections"}

    def open_it(event):
        if event.done > 0:  # by others: nothing is done here yet
            gate.opened.set()

    there = fp4scope.diagnose(
        output_dir=tmp_path / "out", workers="ray:2", progress=open_it, **asked
    )
    here = fp4scope.diagnose(output_dir=tmp_path / "alone", **asked)
    assert gate.opened.is_set()
    assert list(there.results.ledger) == list(here.results.ledger)
    for recipe in here.results.ledger:
        one, other = here.results.ledger[recipe], there.results.ledger[recipe]
        assert one.indices == other.indices
        for name in one.values.keys() & {"nll", "kl", "top1"}:
            values = one.values[name], other.values[name]
            np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offload", ["yes", "disk"])
def test_a_host_has_blocks_that_wait_once(ray, alone, study, gate, tmp_path, monkeypatch, offload):
    """In memory of the command's process, or in the checkpoint's file; and the same bytes come."""
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path / "cache"))
    (notes := tmp_path / "notes").mkdir()
    shelves = []

    def noting(blueprint):
        shelves.append(blueprint.shelf)
        return Noting(blueprint, notes)

    built(monkeypatch, noting)

    def listen(event):
        gate.listen(event)
        if len(list(notes.iterdir())) == 3 or gate.told("refused"):
            gate.opened.set()

    fp4scope.diagnose(
        output_dir=tmp_path / "out", workers="ray:4", offload=offload, progress=listen, **study
    )
    assert read(tmp_path / "out") == alone
    assert not gate.told("refused")
    (shelf,) = shelves
    stored = Path(study["model"]) / "model.safetensors"
    inode = stored.stat().st_ino if shelf is None else shelf.identity[1]
    found = [set(note.read_text().split()) for note in notes.iterdir()]
    assert found == 3 * [{str(inode)}]


def test_a_driver_that_is_killed_takes_ray_along(alone, study, tmp_path, monkeypatch):
    """By itself on the command line; then the same command goes on."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in study.items()][1:]
    command = [sys.executable, "-c", STARTED, "run", study["model"], *options]
    command += ["--workers", "2", "-o", str(tmp_path), "--quiet"]
    environment = os.environ | {"COLUMNS": "200"}
    with subprocess.Popen(command, env=environment) as driver:
        journal, ours = tmp_path / "journal.jsonl", []
        while not journal.exists() or b'{"job"' not in journal.read_bytes():
            time.sleep(0.1)
            assert driver.poll() is None
        ours = psutil.Process(driver.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in ours)
        driver.kill()
    assert psutil.wait_procs(ours, timeout=30)[1] == []
    assert 0 < len(read_jobs(tmp_path)) < WINDOWS
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert read(tmp_path) == alone


STARTED = """
import torch
torch.set_num_threads(1)
import time
from dataclasses import replace
from fp4scope.cli import main
from fp4scope.report import files
from fp4scope.sweep import memory, remote
memory.SIZES["cpu"] = replace(memory.SIZES["cpu"], chunk_tokens=1)
files.figures = lambda *_, **__: ()
main()
"""


def test_a_model_in_memory_cannot_be_loaded_by_others(study):
    class Model:
        config = None

    with pytest.raises(StudyError, match="needs its tokenizer"):
        fp4scope.diagnose(Model(), workers=2)


def test_without_ray_one_line_says_how_to_get_it(study, fp4scope, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = fp4scope("run", study["model"], "--workers", "ray:2", "-o", tmp_path)
    assert code == 2
    assert "pip install 'fp4scope[ray]', or leave --workers out" in " ".join(err.split())
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match="it cannot be imported"):
        ray_library()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("way", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_refused_before_the_model_is_read(
    study, fp4scope, monkeypatch, tmp_path, way
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("fp4scope.conductor.prepare.load", None)
    address = f"{way}127.0.0.1:{free_port()}"
    code, _, err = fp4scope("run", study["model"], "--workers", address, "-o", tmp_path)
    assert code == 2
    assert f"workers is {address}, but there is no Ray (Connection refused)" in " ".join(
        err.split()
    )


HTTP = b"HTTP/1.1 400 Bad Request\r\n"
GRPC = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("says", "reason"),
    [(GRPC, None), (HTTP, "not answer as Ray"), (b"", "not answer as Ray"), (None, "timed out")],
)
def test_one_that_listens_is_asked_whether_it_is_ray(monkeypatch, says, reason):
    """A dashboard, one that hangs up, and one that says nothing are not."""
    monkeypatch.setattr(preflight, "_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as thread:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def answer():
            with server.accept()[0] as one:
                if says is None:
                    return one.recv(100), one.recv(1)
                one.sendall(says)
                return one.recv(100), b""

        heard = thread.submit(answer)
        study = Study.build(model="x", workers=address)
        if reason is None:
            preflight._require_ray(study)
        else:
            with pytest.raises(StudyError, match=f"there is no Ray .*{reason}.*its dashboard"):
                preflight._require_ray(study)
        assert heard.result()[0].startswith(b"PRI * HTTP/2.0")


def test_a_client_takes_grpc_and_tls_is_not_talked_to_in_the_clear(monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        preflight._require_ray(Study.build(model="x", workers=address))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "grpc" or None)
        with pytest.raises(StudyError, match=r"takes grpcio.*such as 127\.0\.0\.1:6379"):
            preflight._require_ray(Study.build(model="x", workers=f"ray://{address}"))


def test_versions_that_differ_are_named():
    class Ray:
        def init(self, **options):
            raise RuntimeError("Version mismatch:\n    Ray: 2.1\n    Python: 3.9\n")

    with pytest.raises(StudyError, match=r"\(Version mismatch: Ray: 2.1 Python: 3.9\)"):
        cluster._start(Ray(), Place(None, "head:6379"), "", False)


def test_a_worker_for_each_of_no_gpus_is_refused(study, fp4scope, monkeypatch, tmp_path):
    monkeypatch.setattr("fp4scope.conductor.prepare.load", None)
    code, _, err = fp4scope("run", study["model"], "--workers", "ray", "--device", "cpu",
                            "--text", study["text"], "--seq-len", 32, "-o", tmp_path)  # fmt: skip
    assert code == 2
    assert "say how many, as ray:2" in " ".join(err.split())


def test_more_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(StudyError, match="workers is ray:3, but this host has 2 GPUs"):
        workers.require_same_kind(Place(3), torch.device("cuda"))
    workers.require_same_kind(Place(2), torch.device("cuda"))
    workers.require_same_kind(Place(1), torch.device("mps"))
