"""What was measured, kept as it is measured: one line of JSON for each chunk of windows.

The first line says which study this is; named notes hold what the variants depend on, such as
the calibration. A chunk's line has its windows, the shape of its batches, and what every
variant gave. First-order estimates have lines of their own, a window each, behind one that names
their units. A window may come twice, at first with the reference and baselines alone, for a study
that only estimates, later with every variant: what is measured together counts together, so the
later line replaces the earlier one. A rerun of the same study reads the lines and goes on behind
the last; another study is refused with what differs. A last line that was cut off by a crash or a
full disk is dropped; a line before it that is damaged, or says what no sweep can, is an error.

Beside it the lock says who writes, and how long all sessions took together: the journal of a study
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

from fp4scope.checks import WindowTokens, require_units
from fp4scope.errors import OutputError, StudyError
from fp4scope.files import open_kept, reason
from fp4scope.metrics import WindowMetrics
from fp4scope.paths import read_bytes
from fp4scope.records import Estimates, Observation, Variant
from fp4scope.sweep.claim import Claim
from fp4scope.sweep.lines import JOURNAL_VERSION, WITHOUT_CHECKSUMS, decode, encode, version_of

_AGAIN = ("sessions", "notes")
"""Notes of which a later one replaces the earlier; others come once."""


@dataclass(frozen=True)
class Measured:
    """What one realisation of a variant gave on each window of a chunk."""

    variant: Variant
    replica: int
    metrics: tuple[WindowMetrics, ...]


class Journal:
    """The observations of one study, in memory and in a file.

    Args:
        path: The file. It is made if it is not there.
        identity: What makes two studies the same: flat, JSON-able. Its `windows` and `seq_len` say
            which windows there can be, and how many targets each has.
        started: When this session began, by `time.monotonic`; now.

    Raises:
        StudyError: The file belongs to another study.
        OutputError: It cannot be read or written, or is damaged.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], *, started: float | None = None
    ) -> None:
        self.path = path
        self.observations: dict[str, Observation] = {}
        self.notes: dict[str, Any] = {}
        self.estimates = Estimates()
        self.chunks: list[list[int]] = []
        """The windows of each chunk, as they were measured; `done` says with which variants."""
        self.shapes: list[dict[str, Any]] = []
        """The different shapes of the chunks, as they came."""
        self._together: dict[int, frozenset[tuple[str, int]]] = {}
        self._with_units: set[int] = set()
        self._units: list[Variant] = []
        identity = json.loads(json.dumps(identity))
        with ExitStack() as opened:
            try:
                self._claim = Claim(path.with_suffix(".lock"), started)
                opened.callback(self._claim.close)
                self._file = opened.enter_context(open_kept(path))
            except OSError as error:
                raise OutputError(
                    f"cannot write {path}: {reason(error)}; choose another folder with -o"
                ) from None
            self._windows = _known_windows(identity)
            lines = self._file.readall().split(b"\n")
            self.dropped = lines.pop() != b""
            """Whether a torn last line was dropped."""
            if lines:
                self._load(lines, identity)
            self._size = sum(len(line) + 1 for line in lines)
            self._file.truncate(self._size)
            self._file.seek(self._size)
            if not lines:
                self._write({"fp4scope_journal": JOURNAL_VERSION, "study": identity})
            self._close = opened.pop_all().close

    @property
    def windows(self) -> list[int]:
        """Windows that were measured, in that order; `done` says with which variants."""
        return [window for chunk in self.chunks for window in chunk]

    @property
    def chunks_of_units(self) -> list[list[int]]:
        """Chunks on which more was measured than the reference and baselines."""
        return [chunk for chunk in self.chunks if chunk[0] in self._with_units]

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
        self, windows: Sequence[int], measured: Sequence[Measured], shape: Mapping[str, Any]
    ) -> None:
        """Keep what every variant gave on a chunk; on disk when this returns.

        Args:
            windows: The chunk.
            measured: Every variant, its metrics in the order of the windows.
            shape: How much ran together; rounding may depend on it.

        Raises:
            OutputError: It could not be written. What was kept before stays good.
        """
        rows = [
            {
                "variant": _variant_fields(m.variant),
                "replica": m.replica,
                "rows": [[x.tokens, x.nll, x.kl, x.top1] for x in m.metrics],
            }
            for m in measured
        ]
        record = {"chunk": list(windows), "shape": dict(shape), "measured": rows}
        self._write(record)
        self._remember(record)

    def add_estimates(self, window: int, tokens: int, nats: Mapping[Variant, float]) -> None:
        """Keep a window's first-order estimates; on disk when this returns.

        Args:
            window: Which one.
            tokens: Its targets.
            nats: What quantizing each unit costs, summed over the targets.

        Raises:
            OutputError: It could not be written.
        """
        if self._units != list(nats):
            self._write({"units": [_variant_fields(variant) for variant in nats]})
            self._units = list(nats)
        self._write({"estimated": window, "tokens": tokens, "nats": list(nats.values())})
        self.estimates.add(window, tokens=tokens, nats=nats)

    def done(self, realisations: Iterable[tuple[Variant, int]]) -> list[int]:
        """Windows on which all these variants and replicas were measured together."""
        wanted = {(variant.key, replica) for variant, replica in realisations}
        return [window for window in self.windows if wanted <= self._together[window]]

    def last_shape(self, realisations: Iterable[tuple[Variant, int]]) -> dict[str, Any] | None:
        """The shape of the last chunk, unless that was one of fewer variants."""
        if not self.shapes:
            return None
        wanted = {(variant.key, replica) for variant, replica in realisations}
        fits = not self.windows or wanted <= self._together[self.windows[-1]]
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

    def _remember_units(self, record: Mapping[str, Any]) -> None:
        require_units(record["units"])
        self._units = [Variant(**fields) for fields in record["units"]]

    def _require_possible(self, record: Mapping[str, Any]) -> None:
        """Refuse a chunk that no sweep of this study can have measured.

        Raises:
            ValueError: It is one.
        """
        windows, measured = record["chunk"], record["measured"]
        if len(set(windows)) < len(windows):
            raise ValueError("a window comes twice")
        if len({(Variant(**m["variant"]).key, m["replica"]) for m in measured}) < len(measured):
            raise ValueError("a variant comes twice")
        for one in measured:
            if len(one["rows"]) != len(windows):
                raise ValueError("a variant does not have a row for each window")
            self._windows.require(windows, [row[0] for row in one["rows"]])
            if any(top1 > tokens for tokens, _, _, top1 in one["rows"]):
                raise ValueError("more targets agree than there are")

    def _remember(self, record: Mapping[str, Any]) -> None:
        if record["shape"] not in self.shapes[-1:]:
            self.shapes.append(record["shape"])
        if before := self._together.keys() & record["chunk"]:
            left = [[w for w in chunk if w not in before] for chunk in self.chunks]
            self.chunks = [chunk for chunk in left if chunk]
            for observation in self.observations.values():
                observation.discard(list(before))
        for measured in record["measured"]:
            variant = Variant(**measured["variant"])
            observation = self.observations.setdefault(variant.key, Observation(variant=variant))
            for window, row in zip(record["chunk"], measured["rows"], strict=True):
                tokens, nll, kl, top1 = row
                replica = measured["replica"]
                observation.add(window, replica, tokens=tokens, nll=nll, kl=kl, top1=top1)
        self.chunks.append(record["chunk"])
        variants = [Variant(**m["variant"]) for m in record["measured"]]
        together = frozenset(
            (v.key, m["replica"]) for v, m in zip(variants, record["measured"], strict=True)
        )
        self._together |= dict.fromkeys(record["chunk"], together)
        if not all(variant.is_control for variant in variants):
            self._with_units.update(record["chunk"])

    def _remember_estimates(self, record: Mapping[str, Any]) -> None:
        self._windows.require([record["estimated"]], [record["tokens"]])
        nats = dict(zip(self._units, record["nats"], strict=True))
        self.estimates.add(record["estimated"], tokens=record["tokens"], nats=nats)

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
        try:
            _append(self._file, line)
        except OSError as error:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise OutputError(
                f"cannot write {self.path}: {reason(error)}; what was measured before is kept: "
                "make room and run the same command again to go on"
            ) from None
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
        elif "units" in record:
            self._remember_units(record)
        elif "estimated" in record:
            self._remember_estimates(record)
        elif "chunk" in record:
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
    if version == WITHOUT_CHECKSUMS:
        raise OutputError(
            f"{path} was begun by fp4scope 0.1, whose journals have no checksums; finish it with "
            "that version, move it away to start again, or choose another folder with -o"
        )
    try:
        if version not in (None, JOURNAL_VERSION):
            raise ValueError(f"version {version}, not {JOURNAL_VERSION}")
        record = decode(line)
        if "study" not in record:
            raise ValueError("no head of a journal")
    except (ValueError, RecursionError) as error:
        raise _damaged(path, 1, error) from None
    return record["study"]


def _damaged(path: Path, number: int, error: Exception) -> OutputError:
    return OutputError(
        f"{path} is damaged in line {number} ({error}); move it away to start again, or cut it "
        f"before line {number} to keep what is above"
    )


def _known_windows(identity: Mapping[str, Any]) -> WindowTokens:
    windows, seq_len = identity.get("windows"), identity.get("seq_len")
    return WindowTokens(windows, None if seq_len is None else seq_len - 1)


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
    line, end, _ = read_bytes(path, "journal", OutputError).partition(b"\n")
    if not end:
        return  # torn: the journal begins again
    known = _head(path, line)
    shared = {name: known[name] for name in known_so_far if name in known}
    _refuse_other_study(folder, shared, {name: known_so_far[name] for name in shared})


def _variant_fields(variant: Variant) -> dict[str, Any]:
    return {name: value for name, value in vars(variant).items() if value not in ("", None)}


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
