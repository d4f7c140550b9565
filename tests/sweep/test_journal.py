"""The journal: what is kept comes back, whatever happens between two lines or inside one."""

import errno
import json

import pytest

from fp4scope.errors import OutputError, StudyError
from fp4scope.metrics import WindowMetrics
from fp4scope.records import REFERENCE, Variant
from fp4scope.sweep import Journal, check_folder

IDENTITY = {"seq_len": 8, "formats": ["nvfp4"], "model": "abc"}
CELL = Variant(
    format="nvfp4", operands="weights", direction="restore", level="cells", unit="q_proj", block=2
)


def metrics(nll):
    return WindowMetrics(tokens=7, nll=nll, kl=nll / 3, top1=5)


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", IDENTITY)
    journal.note("inputs", {"amax": 0.1})
    journal.add(REFERENCE, {0: metrics(1 / 3), 4: metrics(2e-300)})
    journal.add(CELL, {4: metrics(0.1)})
    journal.close()
    return journal.path


def test_a_rerun_finds_exactly_what_was_kept(path):
    journal = Journal(path, IDENTITY)
    assert not journal.dropped
    assert journal.notes == {"inputs": {"amax": 0.1}}
    assert journal.observations[REFERENCE.key].nll == [1 / 3, 2e-300]
    assert journal.observations[CELL.key].variant == CELL
    assert journal.missing(REFERENCE, [0, 1, 4]) == [1]
    assert journal.missing(CELL, [0, 4]) == [0]
    journal.close()


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_dropped_and_overwritten(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path, IDENTITY)
    assert journal.dropped
    assert journal.missing(CELL, [4]) == [4]
    journal.add(CELL, {4: metrics(0.1)})
    journal.close()
    assert path.read_bytes() == whole


def test_every_possible_cut_can_be_resumed(path):
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        Journal(path, IDENTITY).close()


def test_damage_before_the_end_is_an_error_that_names_the_line(path):
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:-9]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(OutputError, match="damaged in line 3"):
        Journal(path, IDENTITY)


def test_another_study_is_refused_with_what_differs(path):
    before = path.read_bytes()
    with pytest.raises(StudyError, match="seq_len is 8 there, 16 here"):
        Journal(path, IDENTITY | {"seq_len": 16})
    assert path.read_bytes() == before


def test_the_folder_can_be_checked_before_the_model_is_loaded(path):
    check_folder(path.parent, {"seq_len": 8, "not known to the journal": 1})
    with pytest.raises(StudyError, match=r'formats is \["nvfp4"\] there, \["mxfp4:even"\] here'):
        check_folder(path.parent, {"formats": ["mxfp4:even"]})
    check_folder(path.parent / "elsewhere", {"seq_len": 99})


def test_a_full_disk_leaves_what_was_kept(path, monkeypatch):
    before = path.read_bytes()
    journal = Journal(path, IDENTITY)

    class FullDisk:
        """Takes part of a line, then fails as a full disk does."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(data[:11])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = journal._file
    journal._file = FullDisk(real)
    with pytest.raises(OutputError, match=r"No space left.*kept.*run the same command again"):
        journal.add(CELL, {5: metrics(1.0)})
    assert path.read_bytes() == before
    assert journal.missing(CELL, [5]) == [5]
    journal._file = real
    journal.add(CELL, {5: metrics(1.0)})
    journal.close()
    assert path.read_bytes().startswith(before)


def test_a_short_write_counts_as_a_full_disk(path):
    journal = Journal(path, IDENTITY)
    real = journal._file

    class ShortWrite:
        def write(self, data):
            return real.write(data[:4])

        def __getattr__(self, name):
            return getattr(real, name)

    journal._file = ShortWrite()
    with pytest.raises(OutputError, match="make room"):
        journal.note("x", 1)
    journal._file = real
    journal.close()
    Journal(path, IDENTITY).close()


def test_lines_are_plain_json(path):
    first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    assert first["study"] == IDENTITY
    assert [set(r) for r in rest] == [{"note", "data"}, {"variant", "rows"}, {"variant", "rows"}]
