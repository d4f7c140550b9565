"""The journal: what is kept comes back, whatever happens between two lines or inside one."""

import errno
import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace

import psutil
import pytest

from fp4scope.errors import OutputError, StudyError
from fp4scope.metrics import WindowMetrics
from fp4scope.records import REFERENCE, Variant, jitter
from fp4scope.sweep import Journal, Measured, check_folder, claim
from fp4scope.sweep.lines import decode, encode

IDENTITY = {"seq_len": 8, "formats": ["nvfp4"], "model": "abc"}
CELL = Variant(
    format="nvfp4", operands="weights", direction="restore", level="cells", unit="q_proj", block=2
)


SHAPE = {"windows": 2, "groups": 1, "block": 4, "head": 8, "rows": 128, "spill": False}
SMALLER = SHAPE | {"windows": 1}


def metrics(nll):
    return WindowMetrics(tokens=7, nll=nll, kl=nll / 3, top1=5)


def measured(*nll):
    """A chunk: the reference, a cell and its second realisation, and a control."""
    return [
        Measured(REFERENCE, 0, tuple(metrics(x) for x in nll)),
        Measured(CELL, 0, tuple(metrics(2 * x) for x in nll)),
        Measured(CELL, 1, tuple(metrics(3 * x) for x in nll)),
        Measured(jitter(REFERENCE), 1, tuple(metrics(4 * x) for x in nll)),
    ]


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", IDENTITY)
    journal.note("inputs", {"amax": 0.1})
    journal.add([4, 0], measured(2e-300, 1 / 3), SHAPE)
    journal.add([2], measured(0.1), SMALLER)
    journal.close()
    return journal.path


def test_a_rerun_finds_exactly_what_was_kept(path):
    journal = Journal(path, IDENTITY)
    assert not journal.dropped
    assert journal.notes == {"inputs": {"amax": 0.1}}
    assert journal.windows == [4, 0, 2]
    reference = journal.observations[REFERENCE.key]
    assert reference.windows == [4, 0, 2]
    assert reference.replicas == [0, 0, 0]
    assert reference.nll == [2e-300, 1 / 3, 0.1]
    assert reference.kl == [x / 3 for x in reference.nll]
    assert (reference.tokens, reference.top1) == ([7] * 3, [5] * 3)
    cell = journal.observations[CELL.key]
    assert cell.variant == CELL
    assert list(zip(cell.windows, cell.replicas, cell.nll, strict=True)) == [
        (4, 0, 4e-300), (0, 0, 2 / 3), (4, 1, 6e-300), (0, 1, 1.0), (2, 0, 0.2), (2, 1, 0.1 * 3),
    ]  # fmt: skip
    assert journal.observations[jitter(REFERENCE).key].replicas == [1, 1, 1]
    journal.close()


def test_in_memory_is_what_a_rerun_reads(path):
    journal = Journal(path, IDENTITY)
    journal.add([7, 1], measured(1e300, 5e-324), SHAPE)
    kept = journal.observations, journal.windows, journal.shapes, journal.notes
    journal.close()
    again = Journal(path, IDENTITY)
    assert (again.observations, again.windows, again.shapes, again.notes) == kept
    again.close()


def test_shapes_are_kept_as_they_change(path):
    journal = Journal(path, IDENTITY)
    assert journal.shapes == [SHAPE, SMALLER]
    journal.add([5], measured(1.0), SMALLER)
    assert journal.shapes == [SHAPE, SMALLER]
    journal.add([6], measured(1.0), SHAPE)
    assert journal.shapes == [SHAPE, SMALLER, SHAPE]
    journal.close()


@pytest.mark.parametrize("cut", [1, 5, 300])
def test_a_torn_last_line_is_dropped_and_overwritten(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path, IDENTITY)
    assert journal.dropped
    assert journal.windows == [4, 0]
    journal.add([2], measured(0.1), SMALLER)
    journal.close()
    assert path.read_bytes() == whole


def test_every_possible_cut_can_be_resumed(path):
    """Whatever a crash leaves: whole lines are kept, and the journal grows back to the same."""
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        journal = Journal(path, IDENTITY)
        assert journal.dropped == (size not in (0, *ends))
        assert journal.windows == [4, 0][: 2 * (size >= ends[2])]
        assert journal.shapes == [SHAPE][: size >= ends[2]]
        if not journal.notes:
            journal.note("inputs", {"amax": 0.1})
        if not journal.windows:
            journal.add([4, 0], measured(2e-300, 1 / 3), SHAPE)
        journal.add([2], measured(0.1), SMALLER)
        journal.close()
        assert path.read_bytes() == whole


def test_damage_before_the_end_is_an_error_that_names_the_line(path):
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:-9]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(OutputError, match="damaged in line 3"):
        Journal(path, IDENTITY)


@pytest.mark.parametrize(
    "line", [b"{}", b"[1]", b"null", b"\xff", b'{"chunk": [1], "shape": {}, "measured": [{}]}']
)
def test_a_line_that_is_no_record_is_an_error(path, line):
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(OutputError, match=r"(?s)damaged in line 5.*cut it before line 5"):
        Journal(path, IDENTITY)


def test_a_chunk_whose_rows_do_not_fit_its_windows_is_an_error(path):
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"chunk": [4, 0]', b'"chunk": [4]')
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(OutputError, match="damaged in line 3"):
        Journal(path, IDENTITY)


def test_another_version_is_an_error(path):
    path.write_bytes(path.read_bytes().replace(b'"fp4scope_journal": 4', b'"fp4scope_journal": 1'))
    with pytest.raises(OutputError, match=r"damaged in line 1 \(version 1, not 4\)"):
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
        journal.add([5], measured(1.0), SHAPE)
    assert path.read_bytes() == before
    assert journal.windows == [4, 0, 2]
    assert journal.shapes == [SHAPE, SMALLER]
    journal._file = real
    journal.add([5], measured(1.0), SHAPE)
    assert journal.windows == [4, 0, 2, 5]
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


def test_every_line_is_on_disk_when_add_returns(path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(number):
        real(number)
        synced.append(os.fstat(number).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    journal = Journal(path, IDENTITY)
    journal.note("x", 1)
    journal.add([5], measured(1.0), SHAPE)
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert synced == [sum(map(len, lines[:-1])), sum(map(len, lines))]


SECOND_WRITER = """
import sys
from pathlib import Path
from fp4scope.sweep import Journal
journal = Journal(Path(sys.argv[1]), {"seq_len": 8, "formats": ["nvfp4"], "model": "abc"})
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="flock is of POSIX")
def test_a_second_writer_is_refused_by_name_until_the_first_is_gone(path):
    before = path.read_bytes()
    command = [sys.executable, "-c", SECOND_WRITER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "open\n"
        with pytest.raises(
            OutputError, match=rf"another run .*\(process {first.pid} on "
        ) as caught:
            Journal(path, IDENTITY)
        assert "choose another folder with -o" in str(caught.value)
        first.kill()
    assert path.read_bytes() == before
    # A claim ends with its process, however that ended.
    Journal(path, IDENTITY).close()


def test_nothing_stays_open_where_a_journal_cannot_be_opened(tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*journal\.jsonl") as caught:
        Journal(tmp_path / "journal.jsonl", IDENTITY)
    assert caught  # its traceback holds the journal, which would keep what it opened
    assert [f.path for f in psutil.Process().open_files() if f.path.startswith(str(tmp_path))] == []


def test_lines_are_plain_json(path):
    lines = path.read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    for line, record in zip(lines, records, strict=True):
        # Of the line without its last field, which any tool can take away again.
        body = line.removesuffix(b', "crc32": %d}' % record["crc32"]) + b"}"
        assert zlib.crc32(body) == record.pop("crc32")
        assert json.loads(body) == record
    first, note, *chunks = records
    assert first == {"fp4scope_journal": 4, "study": IDENTITY}
    assert note == {"note": "inputs", "data": {"amax": 0.1}}
    for chunk in chunks:
        assert set(chunk) == {"chunk", "shape", "measured"}
        for one in chunk["measured"]:
            assert set(one) == {"variant", "replica", "rows"}
            assert len(one["rows"]) == len(chunk["chunk"])
    assert chunks[1]["measured"][0] == {
        "variant": {"format": "reference", "direction": "reference", "level": "model"},
        "replica": 0,
        "rows": [[7, 0.1, 0.1 / 3, 5]],
    }


def controls(*nll):
    """What a study that only estimates measures."""
    return [m for m in measured(*nll) if m.variant.is_control]


def test_a_window_measured_again_with_more_variants_counts_once(tmp_path):
    everything = [(m.variant, m.replica) for m in measured(1.0)]
    few = [(m.variant, m.replica) for m in controls(1.0)]
    journal = Journal(tmp_path / "journal.jsonl", IDENTITY)
    journal.add([4, 0], controls(1.0, 2.0), SHAPE)
    assert (journal.done(few), journal.done(everything)) == ([4, 0], [])
    assert (journal.last_shape(few), journal.last_shape(everything)) == (SHAPE, None)
    journal.add([0, 2], measured(3.0, 4.0), SMALLER)
    for _ in range(2):
        assert journal.windows == journal.done(few) == [4, 0, 2]
        assert journal.done(everything) == [0, 2]
        assert journal.last_shape(everything) == journal.last_shape(few) == SMALLER
        reference = journal.observations[REFERENCE.key]
        assert (reference.windows, reference.nll) == ([4, 0, 2], [1.0, 3.0, 4.0])
        assert journal.observations[CELL.key].windows == [0, 2, 0, 2]
        journal.close()
        journal = Journal(tmp_path / "journal.jsonl", IDENTITY)
    journal.close()


def test_estimates_come_back_and_a_torn_one_is_made_again(path):
    journal = Journal(path, IDENTITY)
    other = replace(CELL, block=3)
    journal.add_estimates(4, 7, {CELL: 1 / 3, other: -2e-300})
    journal.add_estimates(0, 7, {CELL: 0.5, other: 0.0})
    kept = journal.estimates
    journal.close()
    whole = path.read_bytes()
    again = Journal(path, IDENTITY)
    assert again.estimates == kept
    assert kept.nats == {CELL: [1 / 3, 0.5], other: [-2e-300, 0.0]}
    assert (kept.windows, kept.tokens, again.windows) == ([4, 0], [7, 7], [4, 0, 2])
    assert kept.settled().nats[CELL] == [0.5, 0.333333]
    again.close()
    path.write_bytes(whole[:-5])
    torn = Journal(path, IDENTITY)
    assert torn.dropped
    assert torn.estimates.windows == [4]
    torn.add_estimates(0, 7, {CELL: 0.5, other: 0.0})
    torn.close()
    assert path.read_bytes() == whole


def test_a_window_estimated_twice_is_damage(path):
    journal = Journal(path, IDENTITY)
    journal.add_estimates(4, 7, {CELL: 1.0})
    journal.close()
    line = path.read_bytes().splitlines(keepends=True)[-1]
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(OutputError, match="window 4 is estimated twice"):
        Journal(path, IDENTITY)


def rewritten(path, number, change):
    """Line `number` with something changed in its record, and a checksum that fits."""
    lines = path.read_bytes().splitlines(keepends=True)
    record = decode(lines[number - 1].rstrip(b"\n"))
    change(record)
    lines[number - 1] = encode(record)
    path.write_bytes(b"".join(lines))


def test_one_bit_or_digit_that_rots_is_damage(path):
    whole = path.read_bytes()
    start = whole.index(b'{"chunk"')
    for place in range(start, whole.index(b"\n", start), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(OutputError, match="damaged in line 3"):
            Journal(path, IDENTITY)


CHUNK = 3
DAMAGE = {
    "a window twice": (CHUNK, lambda r: r.update(chunk=[4, 4]), "a window comes twice"),
    "a window too far": (CHUNK, lambda r: r.update(chunk=[4, 9]), "no window 9 among 6"),
    "a negative window": (CHUNK, lambda r: r.update(chunk=[4, -1]), r"chunk\[1\] is -1"),
    "a window that is text": (CHUNK, lambda r: r.update(chunk=[4, "5"]), r"chunk\[1\] is '5'"),
    "half a window": (CHUNK, lambda r: r.update(chunk=[4, 0.5]), r"chunk\[1\] is 0\.5"),
    "a variant twice": (
        CHUNK, lambda r: r["measured"].append(r["measured"][0]), "a variant comes twice"
    ),
    "other tokens": (
        CHUNK, lambda r: r["measured"][1]["rows"].__setitem__(0, [14, 1.0, 0.0, 5]),
        "a window has 14 tokens, and another 7",
    ),
    "more that agree than there are": (
        CHUNK, lambda r: r["measured"][1]["rows"].__setitem__(0, [7, 1.0, 0.0, 8]), "agree"
    ),
    "no shape": (CHUNK, lambda r: r.update(shape={}), r"shape\.windows"),
    "a shape of no windows": (
        CHUNK, lambda r: r["shape"].update(windows=0), r"shape\.windows is 0"
    ),
    "a shape of more": (CHUNK, lambda r: r["shape"].update(more=1), r"shape\.more is 1"),
    "an unknown format": (
        CHUNK, lambda r: r["measured"][1]["variant"].update(format="x"), "'x' with operands"
    ),
    "calibrated twice": (2, lambda r: None, "there is a note 'inputs' already"),
    "a second head": (1, lambda r: None, "a second head"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_no_sweep_can_have_measured_is_damage(kind, tmp_path):
    number, change, words = DAMAGE[kind]
    identity = IDENTITY | {"windows": 6}
    journal = Journal(tmp_path / "journal.jsonl", identity)
    journal.note("inputs", {"amax": 0.1})
    journal.add([4, 0], measured(1.0, 2.0), SHAPE)
    journal.close()
    if number < CHUNK:
        lines = journal.path.read_bytes().splitlines(keepends=True)
        journal.path.write_bytes(b"".join([*lines, lines[number - 1]]))
    else:
        rewritten(journal.path, number, change)
    with pytest.raises(OutputError, match=f"damaged in line .*{words}"):
        Journal(journal.path, identity)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1" + "0" * 400, "1e400", '"1"', "null"])
def test_an_nll_that_is_no_number_is_damage(value, path):
    lines = path.read_bytes().splitlines(keepends=True)
    body = lines[3].rpartition(b', "crc32"')[0].replace(b"0.1,", value.encode() + b",", 1) + b"}"
    assert value.encode() in body
    lines[3] = b'%b, "crc32": %d}\n' % (body[:-1], zlib.crc32(body))
    path.write_bytes(b"".join(lines))
    with pytest.raises(OutputError, match=r"damaged in line 4 \(measured\[0\]\.rows\[0\]"):
        Journal(path, IDENTITY)


def test_a_journal_without_checksums_is_refused_with_what_to_do(path):
    old = {"fp4scope_journal": 3, "study": IDENTITY}
    path.write_text(json.dumps(old) + "\n")
    for opened in (
        lambda: Journal(path, IDENTITY),
        lambda: check_folder(path.parent, {"seq_len": 8}),
    ):
        with pytest.raises(OutputError, match=r"begun by fp4scope 0\.1.*no checksums; finish it"):
            opened()
    assert json.loads(path.read_text()) == old


@pytest.mark.parametrize(
    ("name", "data"), [("sessions", 5), ("self_check", "x"), ("notes", [1]), ("self_check", {})]
)
def test_a_note_that_is_none_of_its_name_is_damage(name, data, tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", IDENTITY)
    journal.note(name, data)
    journal.close()
    with pytest.raises(OutputError, match="damaged in line 2"):
        Journal(journal.path, IDENTITY)


def test_notes_that_say_how_it_went_may_come_again(path):
    journal = Journal(path, IDENTITY)
    for notes in (["a"], ["a", "b"]):
        journal.note("notes", notes)
    journal.close()
    again = Journal(path, IDENTITY)
    assert again.notes["notes"] == ["a", "b"]
    again.close()


def test_estimates_of_other_windows_or_controls_are_damage(tmp_path):
    identity = IDENTITY | {"windows": 6}
    for nats, window, words in (({CELL: 1.0}, 6, "no window 6"), ({REFERENCE: 1.0}, 0, "control")):
        journal = Journal(tmp_path / "journal.jsonl", identity)
        journal.add_estimates(window, 7, nats)
        journal.close()
        with pytest.raises(OutputError, match=f"damaged in line .*{words}"):
            Journal(journal.path, identity)
        journal.path.unlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are of POSIX")
def test_a_journal_that_is_no_file_is_refused_at_once(tmp_path):
    path = tmp_path / "journal.jsonl"
    os.mkfifo(path)
    with pytest.raises(OutputError, match="not a regular file"):
        Journal(path, IDENTITY)
    with pytest.raises(OutputError, match="not a regular file"):
        check_folder(tmp_path, {})


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("name", ["journal.jsonl", "journal.lock"])
def test_a_planted_link_is_not_written_through(name, tmp_path):
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "own.txt")
    with pytest.raises(OutputError, match="cannot write"):
        Journal(tmp_path / "journal.jsonl", IDENTITY)
    assert (tmp_path / "own.txt").read_text() == "mine"


def test_a_folder_that_moved_away_is_noticed_at_the_next_line_and_the_end(path):
    out = path.parent / "out"
    out.mkdir()
    journal = Journal(out / "journal.jsonl", IDENTITY)
    journal.add([4], measured(1.0), SHAPE)
    out.rename(path.parent / "renamed")
    for check in (journal.require_in_place, lambda: journal.note("x", 1)):
        with pytest.raises(OutputError, match=r"moved, removed or replaced.*another name now"):
            check()
    out.mkdir()
    (out / "journal.jsonl").write_bytes(b"")
    with pytest.raises(OutputError, match="moved, removed or replaced"):
        journal.require_in_place()
    journal.close()
    again = Journal(path.parent / "renamed" / "journal.jsonl", IDENTITY)
    assert again.windows == [4]
    again.close()


def test_the_time_of_all_sessions_is_kept_beside_the_journal(path, monkeypatch):
    whole, now = path.read_bytes(), [1000.0]
    monkeypatch.setattr(claim.time, "monotonic", lambda: now[0])
    path.with_suffix(".lock").unlink()
    first = Journal(path, IDENTITY, started=900.0)
    now[0] = 1100.0
    assert first.wall_s == 200.0
    first.close()
    second = Journal(path, IDENTITY)
    now[0] = 1150.0
    assert second.wall_s == 250.0
    second.close()
    assert path.read_bytes() == whole


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(OutputError, match=r"'caf\\udce9' cannot be kept"):
        Journal(tmp_path / "journal.jsonl", IDENTITY | {"patterns": ["caf\udce9"]})
