"""The log of a study: what was measured, kept as it is measured, one line of JSON for each job.

The first line says which study this is; named notes hold what recipes depend on, such as the
calibration; a recipe is written out before the first job that ran it. A job's line has its windows,
the shape of its batches, the session that ran it, and what every recipe gave. A window may come
twice, at first with the full-precision and all-quantized models alone, for a study that only
estimates, later with every recipe: then the later line counts, so that what is compared was
measured together. Reading a line twice changes nothing. A rerun of the same study reads the lines
and goes on behind the last; another study is refused with what differs, but takes the place of one
that has measured nothing. A last line that was cut off by a crash or a full disk is dropped; a line
before it that is damaged, or says what no sweep can, is an error.

Beside it the lock says who writes, and how long all sessions took together: the log of a study
is the same bytes however often it was interrupted.
"""

import errno
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fp4scope.errors import OutputError, StudyError
from fp4scope.files import open_kept, read_bytes, refusing
from fp4scope.ledger.checks import WindowTokens, require_sums
from fp4scope.ledger.claim import Claim
from fp4scope.ledger.lines import LOG_VERSION, decode, encode, version_of
from fp4scope.ledger.measures import Value
from fp4scope.ledger.rows import Key, Ledger
from fp4scope.recipes import Recipe

_AGAIN = ("sessions", "notes")
"""Notes of which a later one replaces the earlier; others come once."""
_NOTE = b'{"note":'
"""How the line of a note begins."""


@dataclass(frozen=True)
class Found:
    """What one realisation of a recipe gave: by measure, its sums on each window of a job."""

    recipe: Recipe
    replica: int
    values: Mapping[str, Sequence[Value]]


@dataclass(frozen=True)
class Job:
    """Windows that were measured together, and what was measured on them."""

    windows: tuple[int, ...]
    keys: frozenset[Key]


class Log:
    """The rows of one study, in memory and in a file.

    Args:
        path: The file. It is made if it is not there.
        identity: What makes two studies the same: flat, JSON-able. Its `windows` and `seq_len` say
            which windows there can be, and how many targets each has.
        counted: How many replicas are the value of a recipe.
        started: When this session began, by `time.monotonic`; now.

    Raises:
        StudyError: The file belongs to another study.
        OutputError: It cannot be read or written, or is damaged.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        *,
        counted: int = 1,
        started: float | None = None,
    ) -> None:
        self.path = path
        self.ledger = Ledger(counted=counted)
        self.notes: dict[str, Any] = {}
        self.jobs: list[Job] = []
        self.shapes: list[dict[str, Any]] = []
        """The different shapes of the jobs' batches, as they came."""
        self._recipes: dict[str, Recipe] = {}
        self._ids: dict[Recipe, str] = {}
        self._keys: dict[frozenset[Key], frozenset[Key]] = {}
        identity = json.loads(json.dumps(identity))
        self._calibration = identity.get("calibration") or ""
        with ExitStack() as opened:
            with refusing(f"cannot write {path}", OutputError, "choose another folder with -o"):
                self._claim = Claim(path.with_suffix(".lock"), started)
                opened.callback(self._claim.close)
                self._file = opened.enter_context(open_kept(path))
            self._windows = WindowTokens(identity)
            lines = self._file.readall().split(b"\n")
            self.dropped = lines.pop() != b""
            """Whether a torn last line was dropped."""
            if lines and _is_other(path, lines, identity) and not _has_measured(lines):
                lines = []
            if lines:
                self._load(lines, identity)
            self._size = sum(len(line) + 1 for line in lines)
            self._file.truncate(self._size)
            self._file.seek(self._size)
            if not lines:
                self._write({"fp4scope_journal": LOG_VERSION, "study": identity})
            self._close = opened.pop_all().close

    @property
    def windows(self) -> list[int]:
        """Windows on which something was measured, not only estimated, in that order."""
        return list(dict.fromkeys(window for job in self._measured for window in job.windows))

    @property
    def _measured(self) -> list[Job]:
        """The jobs that measured something, and did not only estimate."""
        return [job for job in self.jobs if any(name == "nll" for _, _, name in job.keys)]

    @property
    def wall_s(self) -> float:
        """Seconds of all sessions together, this one until now."""
        return self._claim.wall_s

    def close(self) -> None:
        self._close()

    def require_in_place(self) -> None:
        """Refuse to go on where the file is not under its name any more.

        Raises:
            OutputError: The folder, or the file in it, was moved, removed or replaced.
        """
        try:
            found = os.lstat(self.path)
        except OSError:
            found = None
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != self._size:
            raise OutputError(
                f"{self.path} was moved, removed or replaced while this ran; if its folder has "
                "another name now, repeat the command with -o and that name to go on"
            )

    def add(
        self,
        windows: Sequence[int],
        tokens: Sequence[int],
        found: Sequence[Found],
        shape: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep what a job gave; on disk when this returns.

        Args:
            windows: Of the job.
            tokens: Targets of each.
            found: Every realisation that ran.
            shape: How much ran together; rounding may depend on it.

        Raises:
            OutputError: It could not be written. What was kept before stays good.
        """
        fresh = [one.recipe for one in found if one.recipe not in self._ids]
        if fresh:
            named = {recipe.id(self._calibration): recipe.to_json() for recipe in fresh}
            self._write({"recipes": named})
            self._remember_recipes(named)
        record = {
            "job": list(windows),
            "tokens": list(tokens),
            "session": max(0, len(self.notes.get("sessions", [])) - 1),
            "shape": None if shape is None else dict(shape),
            "rows": [
                [self._ids[one.recipe], one.replica, {k: list(v) for k, v in one.values.items()}]
                for one in found
            ],
        }
        self._write(record)
        self._remember(record)

    def done(self, wanted: Iterable[Key]) -> list[int]:
        """Windows on which all of this was measured together."""
        wanted = frozenset(wanted)
        complete = (job for job in self.jobs if wanted <= job.keys)
        return list(dict.fromkeys(window for job in complete for window in job.windows))

    def last_shape(self, wanted: Iterable[Key]) -> dict[str, Any] | None:
        """The shape of the last job, unless that measured less."""
        if not self.shapes:
            return None
        measured = self._measured
        fits = not measured or frozenset(wanted) <= measured[-1].keys
        return self.shapes[-1] if fits else None

    def note(self, name: str, data: Any) -> None:  # noqa: ANN401
        """Keep JSON-able data under a name.

        Raises:
            OutputError: It could not be written.
        """
        self._write({"note": name, "data": data})
        self._remember_note(name, data)

    def _remember_note(self, name: str, data: Any) -> None:  # noqa: ANN401
        if name in self.notes and name not in _AGAIN:
            raise ValueError(f"there is a note {name!r} already")
        self.notes[name] = data

    def _remember_recipes(self, recipes: Mapping[str, Any]) -> None:
        for name, fields in recipes.items():
            recipe = Recipe.from_json(fields)
            if recipe.id(self._calibration) != name:
                raise ValueError(f"{name} is the name of another recipe")
            self._recipes[name] = recipe
            self._ids[recipe] = name

    def _require_possible(self, record: Mapping[str, Any]) -> None:
        """Refuse a job that no sweep of this study can have run.

        Raises:
            ValueError: It is one.
        """
        windows, tokens = record["job"], record["tokens"]
        if len(set(windows)) < len(windows):
            raise ValueError("a window comes twice")
        if len(tokens) != len(windows):
            raise ValueError("not every window has its tokens")
        self._windows.require(windows, tokens)
        if len({(name, replica) for name, replica, _ in record["rows"]}) < len(record["rows"]):
            raise ValueError("a recipe comes twice")
        for name, _, values in record["rows"]:
            if name not in self._recipes:
                raise ValueError(f"there is no recipe {name}")
            if any(len(c) != len(windows) or None in c for c in values.values()):
                raise ValueError("a measure does not have a value for each window")
            require_sums(values, tokens)

    def _remember(self, record: Mapping[str, Any]) -> None:
        if record["shape"] not in (None, *self.shapes[-1:]):
            self.shapes.append(record["shape"])
        keys: list[Key] = []
        for name, replica, values in record["rows"]:
            recipe = self._recipes[name]
            rows = self.ledger.open(recipe)
            keys += [(recipe, replica, measure) for measure in values]
            places = zip(record["job"], record["tokens"], strict=True)
            for place, (window, tokens) in enumerate(places):
                at = {measure: column[place] for measure, column in values.items()}
                rows.put(window, replica, tokens, at)
        # Most jobs have the same keys, which are many.
        shared = frozenset(keys)
        job = Job(tuple(record["job"]), self._keys.setdefault(shared, shared))
        if job not in self.jobs:
            self.jobs.append(job)

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            line = encode(record)
        except UnicodeEncodeError as error:
            start = error.object.rfind('"', 0, error.start) + 1
            name = error.object[start : error.object.find('"', start)]
            raise OutputError(
                f"{name!r} cannot be kept in {self.path}, for it is not UTF-8; rename it"
            ) from None
        self.require_in_place()
        advice = (
            "what was measured before is kept: make room and run the same command again to go on"
        )
        with refusing(f"cannot write {self.path}", OutputError, advice):
            try:
                _append(self._file, line)
            except OSError:
                self._file.truncate(self._size)
                self._file.seek(self._size)
                raise
        self._size += len(line)
        self._claim.keep_time()

    def _load(self, lines: list[bytes], identity: Mapping[str, Any]) -> None:
        _refuse_other_study(self.path.parent, _head(self.path, lines[0]), identity)
        for number, line in enumerate(lines[1:], 2):
            try:
                self._take(decode(line))
            except (ValueError, RecursionError) as error:
                raise _damaged(self.path, number, error) from None

    def _take(self, record: Mapping[str, Any]) -> None:
        if "note" in record:
            self._remember_note(record["note"], record["data"])
        elif "recipes" in record:
            self._remember_recipes(record["recipes"])
        elif "job" in record:
            self._require_possible(record)
            self._remember(record)
        else:
            raise ValueError("a second head")


def _head(path: Path, line: bytes) -> dict[str, Any]:
    """The identity in a journal's first line.

    Raises:
        OutputError: It is damaged, or of another version.
    """
    version = version_of(line)
    if version is not None and version < LOG_VERSION:
        raise OutputError(
            f"{path} was begun by an earlier fp4scope, whose journals have another form; finish it "
            "with that version, move it away to start again, or choose another folder with -o"
        )
    try:
        if version not in (None, LOG_VERSION):
            raise ValueError(f"version {version}, not {LOG_VERSION}")
        record = decode(line)
        if "study" not in record:
            raise ValueError("no head of a journal")
    except (ValueError, RecursionError) as error:
        raise _damaged(path, 1, error) from None
    return record["study"]


def _is_other(path: Path, lines: Sequence[bytes], identity: Mapping[str, Any]) -> bool:
    return _head(path, lines[0]) != identity


def _has_measured(lines: Sequence[bytes]) -> bool:
    """Whether there is more than a head and notes; a damaged line counts as more.

    A study that was refused, or stopped in its calibration, leaves no more than these.
    """
    return not all(line.startswith(_NOTE) for line in lines[1:])


def _damaged(path: Path, number: int, error: Exception) -> OutputError:
    return OutputError(
        f"{path} is damaged in line {number} ({error}); move it away to start again, or cut it "
        f"before line {number} to keep what is above"
    )


def _append(file: IO[bytes], line: bytes) -> None:
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())


def check_folder(folder: Path, known_so_far: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another study, as far as that can be told before loading.

    Args:
        folder: The output folder.
        known_so_far: The part of the identity that is known already.

    Raises:
        StudyError: A difference was found.
        OutputError: Its journal is of another version, or damaged at its beginning.
    """
    path = folder / "journal.jsonl"
    if not os.path.lexists(path):
        return
    lines = read_bytes(path, "journal", OutputError).split(b"\n")
    if not lines[:-1]:
        return  # torn: the journal begins again
    known = _head(path, lines[0])
    if not _has_measured(lines[:-1]):
        return  # what was refused before it measured anything holds no folder
    shared = {name: known[name] for name in known_so_far if name in known}
    _refuse_other_study(folder, shared, {name: known_so_far[name] for name in shared})


def _refuse_other_study(folder: Path, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = [name for name in {**known, **now} if known.get(name) != now.get(name)]
    if names:
        listed = "; ".join(
            f"{n} is {_short(known.get(n))} there, {_short(now.get(n))} here" for n in names
        )
        raise StudyError(
            f"{folder} holds another study: {listed}; give another folder with -o, or the same "
            "options"
        )


def _short(value: Any) -> str:  # noqa: ANN401
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
