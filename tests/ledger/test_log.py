"""The log of a study: what is kept comes back, whatever happens between two lines or inside one."""

import errno
import json
import os
import subprocess
import sys
import zlib

import psutil
import pytest

from asking import REFERENCE, asked
from fp4scope.errors import OutputError, StudyError
from fp4scope.ledger import Found, Job, Log, check_folder, claim
from fp4scope.ledger.lines import decode, encode

IDENTITY = {"seq_len": 8, "formats": ["nvfp4"], "model": "abc"}
NOTHING = REFERENCE.recipe
_OF = {"format": "nvfp4", "precision": "W4A16", "direction": "keep", "level": "layers"}
LAYER, OTHER = (asked(**_OF, unit="q_proj", block=block).recipe for block in (2, 3))

SHAPE = {"windows": 2, "groups": 1, "block": 4, "head": 8, "rows": 128, "spill": False}
SMALLER = SHAPE | {"windows": 1}


def values(*nll):
    return {"nll": list(nll), "kl": [x / 3 for x in nll], "top1": [5] * len(nll)}


def measured(*nll):
    """A job: the full-precision model, a layer, its second realisation, and a control."""
    return [
        Found(NOTHING, 0, values(*nll)),
        Found(LAYER, 0, values(*(2 * x for x in nll))),
        Found(LAYER, 1, values(*(3 * x for x in nll))),
        Found(NOTHING, 1, values(*(4 * x for x in nll))),
    ]


def keys(found):
    return [(one.recipe, one.replica, name) for one in found for name in one.values]


@pytest.fixture
def path(tmp_path):
    log = Log(tmp_path / "journal.jsonl", IDENTITY)
    log.note("inputs", {"amax": 0.1})
    log.add([4, 0], [7, 7], measured(2e-300, 1 / 3), SHAPE)
    log.add([2], [7], measured(0.1), SMALLER)
    log.close()
    return log.path


def test_a_rerun_finds_exactly_what_was_kept(path):
    log = Log(path, IDENTITY)
    assert not log.dropped
    assert log.notes == {"inputs": {"amax": 0.1}}
    assert log.windows == [4, 0, 2]
    reference = log.ledger[NOTHING]
    assert reference.indices == [4, 0, 4, 0, 2, 2]
    assert reference.replicas == [0, 0, 1, 1, 0, 1]
    assert reference.tokens == [7] * 6
    assert reference.values == values(2e-300, 1 / 3, 8e-300, 4 / 3, 0.1, 0.4)
    layer = log.ledger[LAYER]
    assert list(zip(layer.indices, layer.replicas, layer.values["nll"], strict=True)) == [
        (4, 0, 4e-300), (0, 0, 2 / 3), (4, 1, 6e-300), (0, 1, 1.0), (2, 0, 0.2), (2, 1, 0.1 * 3),
    ]  # fmt: skip
    assert log.jobs == [Job(w, frozenset(keys(measured(1.0)))) for w in ((4, 0), (2,))]
    log.close()


def test_in_memory_is_what_a_rerun_reads(path):
    log = Log(path, IDENTITY)
    log.add([7, 1], [7, 7], measured(100.0, 5e-324), SHAPE)
    log.close()
    again = Log(path, IDENTITY)
    for subject in (NOTHING, LAYER):
        assert again.ledger[subject] == log.ledger[subject]
    assert (again.jobs, again.shapes, again.notes) == (log.jobs, log.shapes, log.notes)
    again.close()


def test_a_line_twice_changes_nothing(path):
    once = Log(path, IDENTITY)
    once.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, *lines[2:]]))
    twice = Log(path, IDENTITY)
    assert [twice.ledger[s] for s in twice.ledger] == [once.ledger[s] for s in once.ledger]
    assert (twice.jobs, twice.windows) == (once.jobs, once.windows)
    twice.close()


def test_shapes_are_kept_as_they_change(path):
    log = Log(path, IDENTITY)
    assert log.shapes == [SHAPE, SMALLER]
    log.add([5], [7], measured(1.0), SMALLER)
    assert log.shapes == [SHAPE, SMALLER]
    log.add([6], [7], measured(1.0), SHAPE)
    assert log.shapes == [SHAPE, SMALLER, SHAPE]
    log.close()


@pytest.mark.parametrize("cut", [1, 5, 300])
def test_a_torn_last_line_is_dropped_and_overwritten(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    log = Log(path, IDENTITY)
    assert log.dropped
    assert log.windows == [4, 0]
    log.add([2], [7], measured(0.1), SMALLER)
    log.close()
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_every_possible_cut_can_be_resumed(path):
    """Whatever a crash leaves: whole lines are kept, and the journal grows back to the same."""
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        log = Log(path, IDENTITY)
        assert log.dropped == (size not in (0, *ends))
        assert log.windows == [4, 0][: 2 * (size >= ends[3])]
        assert log.shapes == [SHAPE][: size >= ends[3]]
        if not log.notes:
            log.note("inputs", {"amax": 0.1})
        if not log.windows:
            log.add([4, 0], [7, 7], measured(2e-300, 1 / 3), SHAPE)
        log.add([2], [7], measured(0.1), SMALLER)
        log.close()
        assert path.read_bytes() == whole


def test_damage_before_the_end_is_an_error_that_names_the_line(path):
    lines = path.read_bytes().split(b"\n")
    lines[3] = lines[3][:-9]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(OutputError, match="damaged in line 4"):
        Log(path, IDENTITY)


@pytest.mark.parametrize(
    "line", [b"{}", b"[1]", b"null", b"\xff", b'{"job": [1], "shape": {}, "rows": [[]]}']
)
def test_a_line_that_is_no_record_is_an_error(path, line):
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(OutputError, match=r"(?s)damaged in line 6.*cut it before line 6"):
        Log(path, IDENTITY)


def test_a_chunk_whose_rows_do_not_fit_its_windows_is_an_error(path):
    lines = path.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b'"job": [4, 0]', b'"job": [4]')
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(OutputError, match="damaged in line 4"):
        Log(path, IDENTITY)


def test_another_version_is_an_error(path):
    path.write_bytes(path.read_bytes().replace(b'"fp4scope_journal": 5', b'"fp4scope_journal": 6'))
    with pytest.raises(OutputError, match=r"damaged in line 1 \(version 6, not 5\)"):
        Log(path, IDENTITY)


def test_another_study_is_refused_with_what_differs(path):
    before = path.read_bytes()
    with pytest.raises(StudyError, match="seq_len is 8 there, 16 here"):
        Log(path, IDENTITY | {"seq_len": 16})
    assert path.read_bytes() == before


def test_the_folder_can_be_checked_before_the_model_is_loaded(path):
    check_folder(path.parent, {"seq_len": 8, "not known to the journal": 1})
    with pytest.raises(StudyError, match=r'formats is \["nvfp4"\] there, \["mxfp4:even"\] here'):
        check_folder(path.parent, {"formats": ["mxfp4:even"]})
    check_folder(path.parent / "elsewhere", {"seq_len": 99})


def test_another_study_takes_the_place_of_one_that_has_measured_nothing(tmp_path):
    """It was refused after its notes, and says to give other options."""
    log = Log(tmp_path / "journal.jsonl", IDENTITY)
    log.note("inputs", {"amax": 0.1})
    log.close()
    other = IDENTITY | {"seq_len": 16}
    check_folder(tmp_path, other)
    log = Log(log.path, other)
    assert log.notes == {}
    log.add([4], [15], measured(0.1), SHAPE)
    log.close()
    with pytest.raises(StudyError, match="seq_len is 16 there, 8 here"):
        check_folder(tmp_path, IDENTITY)
    again = Log(log.path, other)
    assert again.windows == [4]
    again.close()


def test_notes_that_are_damaged_are_not_thrown_away(tmp_path):
    log = Log(tmp_path / "journal.jsonl", IDENTITY)
    log.note("inputs", {"amax": 0.1})
    log.close()
    log.path.write_bytes(log.path.read_bytes() + b"rows?\n")
    with pytest.raises(StudyError, match="seq_len is 8 there, 16 here"):
        Log(log.path, IDENTITY | {"seq_len": 16})


def test_a_full_disk_leaves_what_was_kept(path, monkeypatch):
    before = path.read_bytes()
    log = Log(path, IDENTITY)

    class FullDisk:
        """Takes part of a line, then fails as a full disk does."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(data[:11])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = log._file
    log._file = FullDisk(real)
    with pytest.raises(OutputError, match=r"No space left.*kept.*run the same command again"):
        log.add([5], [7], measured(1.0), SHAPE)
    assert path.read_bytes() == before
    assert log.windows == [4, 0, 2]
    assert log.shapes == [SHAPE, SMALLER]
    log._file = real
    log.add([5], [7], measured(1.0), SHAPE)
    assert log.windows == [4, 0, 2, 5]
    log.close()
    assert path.read_bytes().startswith(before)


def test_a_short_write_counts_as_a_full_disk(path):
    log = Log(path, IDENTITY)
    real = log._file

    class ShortWrite:
        def write(self, data):
            return real.write(data[:4])

        def __getattr__(self, name):
            return getattr(real, name)

    log._file = ShortWrite()
    with pytest.raises(OutputError, match="make room"):
        log.note("x", 1)
    log._file = real
    log.close()
    Log(path, IDENTITY).close()


def test_every_line_is_on_disk_when_add_returns(path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(number):
        real(number)
        synced.append(os.fstat(number).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    log = Log(path, IDENTITY)
    log.note("x", 1)
    log.add([5], [7], measured(1.0), SHAPE)
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert synced == [sum(map(len, lines[:-1])), sum(map(len, lines))]


SECOND_WRITER = """
import sys
from pathlib import Path
from fp4scope.ledger import Log
log = Log(Path(sys.argv[1]), {"seq_len": 8, "formats": ["nvfp4"], "model": "abc"})
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
            Log(path, IDENTITY)
        assert "choose another folder with -o" in str(caught.value)
        first.kill()
    assert path.read_bytes() == before
    # A claim ends with its process, however that ended.
    Log(path, IDENTITY).close()


def test_nothing_stays_open_where_a_journal_cannot_be_opened(tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*journal\.jsonl") as caught:
        Log(tmp_path / "journal.jsonl", IDENTITY)
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
    first, note, recipes, *jobs = records
    assert first == {"fp4scope_journal": 5, "study": IDENTITY}
    assert note == {"note": "inputs", "data": {"amax": 0.1}}
    assert recipes["recipes"] == {r.id(): r.to_json() for r in (NOTHING, LAYER)}
    for job in jobs:
        assert set(job) == {"job", "tokens", "session", "shape", "rows"}
        for _, _, columns in job["rows"]:
            assert {len(column) for column in columns.values()} == {len(job["job"])}
    assert jobs[1]["rows"][0] == [NOTHING.id(), 0, {"nll": [0.1], "kl": [0.1 / 3], "top1": [5]}]


def controls(*nll):
    """What a study that only estimates measures."""
    return [one for one in measured(*nll) if one.recipe == NOTHING]


def test_a_window_measured_again_with_more_recipes_counts_once(tmp_path):
    everything, few = keys(measured(1.0)), keys(controls(1.0))
    log = Log(tmp_path / "journal.jsonl", IDENTITY)
    log.add([4, 0], [7, 7], controls(1.0, 2.0), SHAPE)
    assert (log.done(few), log.done(everything)) == ([4, 0], [])
    assert (log.last_shape(few), log.last_shape(everything)) == (SHAPE, None)
    log.add([0, 2], [7, 7], measured(3.0, 4.0), SMALLER)
    for _ in range(2):
        assert log.windows == log.done(few) == [4, 0, 2]
        assert log.done(everything) == [0, 2]
        assert log.last_shape(everything) == log.last_shape(few) == SMALLER
        rows = log.ledger[NOTHING].settled({(0, "nll"), (1, "nll")})
        assert (rows.indices, rows.replicas) == ([0, 0, 2, 2, 4, 4], [0, 1] * 3)
        assert rows.values["nll"] == [3.0, 12.0, 4.0, 16.0, 1.0, 4.0]
        assert log.ledger[LAYER].indices == [0, 2, 0, 2]
        log.close()
        log = Log(tmp_path / "journal.jsonl", IDENTITY)
    log.close()


def estimated(one, other):
    return [Found(LAYER, 0, {"gradient": [one]}), Found(OTHER, 0, {"gradient": [other]})]


def test_estimates_come_back_beside_what_is_measured_and_a_torn_one_is_made_again(path):
    log = Log(path, IDENTITY)
    log.add([4], [7], estimated(1 / 3, -2e-300))
    log.add([0], [7], estimated(0.5, 0.0))
    log.close()
    whole = path.read_bytes()
    again = Log(path, IDENTITY)
    assert again.ledger[LAYER] == log.ledger[LAYER]
    assert again.ledger[LAYER].values["gradient"][:2] == [1 / 3, 0.5]
    assert again.ledger[LAYER].values["nll"][:2] == [4e-300, 2 / 3]
    assert again.ledger[OTHER].values == {"gradient": [-2e-300, 0.0]}
    assert again.done([(LAYER, 0, "gradient")]) == [4, 0]
    assert (again.windows, again.shapes) == ([4, 0, 2], [SHAPE, SMALLER])
    assert again.ledger[OTHER].settled({(0, "nll")}) is None
    again.close()
    path.write_bytes(whole[:-5])
    torn = Log(path, IDENTITY)
    assert torn.dropped
    assert torn.done([(LAYER, 0, "gradient")]) == [4]
    torn.add([0], [7], estimated(0.5, 0.0))
    torn.close()
    assert path.read_bytes() == whole


def rewritten(path, number, change):
    """Line `number` with something changed in its record, and a checksum that fits."""
    lines = path.read_bytes().splitlines(keepends=True)
    record = decode(lines[number - 1].rstrip(b"\n"))
    change(record)
    lines[number - 1] = encode(record)
    path.write_bytes(b"".join(lines))


def test_one_bit_or_digit_that_rots_is_damage(path):
    whole = path.read_bytes()
    start = whole.index(b'{"job"')
    for place in range(start, whole.index(b"\n", start), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(OutputError, match="damaged in line 4"):
            Log(path, IDENTITY)


JOB = 4
DAMAGE = {
    "a window twice": (JOB, lambda r: r.update(job=[4, 4]), "a window comes twice"),
    "a window too far": (JOB, lambda r: r.update(job=[4, 9]), "no window 9 among 6"),
    "a negative window": (JOB, lambda r: r.update(job=[4, -1]), r"job\[1\] is -1"),
    "a window that is text": (JOB, lambda r: r.update(job=[4, "5"]), r"job\[1\] is '5'"),
    "half a window": (JOB, lambda r: r.update(job=[4, 0.5]), r"job\[1\] is 0\.5"),
    "a recipe twice": (JOB, lambda r: r["rows"].append(r["rows"][0]), "a recipe comes twice"),
    "other tokens": (
        JOB, lambda r: r.update(tokens=[14, 7]), "a window has (14|7) tokens, and another (14|7)"
    ),
    "too few tokens": (JOB, lambda r: r.update(tokens=[7]), "not every window has its tokens"),
    "more that agree than there are": (
        JOB, lambda r: r["rows"][1][2].update(top1=[8, 5]), "top1 has 8 of 7 tokens"
    ),
    "too large": (JOB, lambda r: r["rows"][1][2].update(kl=[1e9, 0.0]), "beyond any prediction"),
    "a value too few": (
        JOB, lambda r: r["rows"][1][2].update(nll=[1.0]), "does not have a value for each window"
    ),
    "an unknown measure": (JOB, lambda r: r["rows"][1][2].update(x=[1.0, 1.0]), "x is"),
    "an unknown recipe": (
        JOB, lambda r: r["rows"].append(("ab", 0, {"nll": [1.0, 1.0]})), "no recipe ab"
    ),
    "no shape": (JOB, lambda r: r.update(shape={}), r"shape\.windows"),
    "a shape of no windows": (
        JOB, lambda r: r["shape"].update(windows=0), r"shape\.windows is 0"
    ),
    "a shape of more": (JOB, lambda r: r["shape"].update(more=1), r"shape\.more is 1"),
    "another recipe under the name": (
        JOB - 1, lambda r: r["recipes"][LAYER.id()].update(base=None), "the name of another recipe"
    ),
    "an unknown format": (
        JOB - 1, lambda r: r["recipes"][LAYER.id()].update(base="x"), "x"
    ),
    "calibrated twice": (2, None, "there is a note 'inputs' already"),
    "a second head": (1, None, "a second head"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_no_sweep_can_have_measured_is_damage(kind, tmp_path):
    number, change, words = DAMAGE[kind]
    identity = IDENTITY | {"windows": 6}
    log = Log(tmp_path / "journal.jsonl", identity)
    log.note("inputs", {"amax": 0.1})
    log.add([4, 0], [7, 7], measured(1.0, 2.0), SHAPE)
    log.close()
    if change is None:
        lines = log.path.read_bytes().splitlines(keepends=True)
        log.path.write_bytes(b"".join([*lines, lines[number - 1]]))
    else:
        rewritten(log.path, number, change)
    with pytest.raises(OutputError, match=f"damaged in line .*{words}"):
        Log(log.path, identity)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1" + "0" * 400, "1e400", '"1"', "null"])
def test_an_nll_that_is_no_number_is_damage(value, path):
    lines = path.read_bytes().splitlines(keepends=True)
    body = (
        lines[4].rpartition(b', "crc32"')[0].replace(b"[0.1]", b"[" + value.encode() + b"]", 1)
        + b"}"
    )
    assert value.encode() in body
    lines[4] = b'%b, "crc32": %d}\n' % (body[:-1], zlib.crc32(body))
    path.write_bytes(b"".join(lines))
    with pytest.raises(OutputError, match=r"damaged in line 5 \((rows\[0\]|a measure)"):
        Log(path, IDENTITY)


@pytest.mark.parametrize("version", [3, 4])
def test_a_journal_of_an_earlier_version_is_refused_with_what_to_do(path, version):
    old = {"fp4scope_journal": version, "study": IDENTITY}
    path.write_text(json.dumps(old) + "\n")
    for opened in (
        lambda: Log(path, IDENTITY),
        lambda: check_folder(path.parent, {"seq_len": 8}),
    ):
        with pytest.raises(OutputError, match=r"begun by an earlier fp4scope.*finish it with"):
            opened()
    assert json.loads(path.read_text()) == old


@pytest.mark.parametrize(
    ("name", "data"), [("sessions", 5), ("self_check", "x"), ("notes", [1]), ("self_check", {})]
)
def test_a_note_that_is_none_of_its_name_is_damage(name, data, tmp_path):
    log = Log(tmp_path / "journal.jsonl", IDENTITY)
    log.note(name, data)
    log.close()
    with pytest.raises(OutputError, match="damaged in line 2"):
        Log(log.path, IDENTITY)


def test_notes_that_say_how_it_went_may_come_again(path):
    log = Log(path, IDENTITY)
    for notes in (["a"], ["a", "b"]):
        log.note("notes", notes)
    log.close()
    again = Log(path, IDENTITY)
    assert again.notes["notes"] == ["a", "b"]
    again.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are of POSIX")
def test_a_journal_that_is_no_file_is_refused_at_once(tmp_path):
    path = tmp_path / "journal.jsonl"
    os.mkfifo(path)
    with pytest.raises(OutputError, match="not a regular file"):
        Log(path, IDENTITY)
    with pytest.raises(OutputError, match="not a regular file"):
        check_folder(tmp_path, {})


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("name", ["journal.jsonl", "journal.lock"])
def test_a_planted_link_is_not_written_through(name, tmp_path):
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "own.txt")
    with pytest.raises(OutputError, match="cannot write"):
        Log(tmp_path / "journal.jsonl", IDENTITY)
    assert (tmp_path / "own.txt").read_text() == "mine"


def test_a_folder_that_moved_away_is_noticed_at_the_next_line_and_the_end(path):
    out = path.parent / "out"
    out.mkdir()
    log = Log(out / "journal.jsonl", IDENTITY)
    log.add([4], [7], measured(1.0), SHAPE)
    out.rename(path.parent / "renamed")
    for check in (log.require_in_place, lambda: log.note("x", 1)):
        with pytest.raises(OutputError, match=r"moved, removed or replaced.*another name now"):
            check()
    out.mkdir()
    (out / "journal.jsonl").write_bytes(b"")
    with pytest.raises(OutputError, match="moved, removed or replaced"):
        log.require_in_place()
    log.close()
    again = Log(path.parent / "renamed" / "journal.jsonl", IDENTITY)
    assert again.windows == [4]
    again.close()


def test_the_time_of_all_sessions_is_kept_beside_the_journal(path, monkeypatch):
    whole, now = path.read_bytes(), [1000.0]
    monkeypatch.setattr(claim.time, "monotonic", lambda: now[0])
    path.with_suffix(".lock").unlink()
    first = Log(path, IDENTITY, started=900.0)
    now[0] = 1100.0
    assert first.wall_s == 200.0
    first.close()
    second = Log(path, IDENTITY)
    now[0] = 1150.0
    assert second.wall_s == 250.0
    second.close()
    assert path.read_bytes() == whole


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(OutputError, match=r"'caf\\udce9' cannot be kept"):
        Log(tmp_path / "journal.jsonl", IDENTITY | {"patterns": ["caf\udce9"]})
