"""What was measured, kept as it is measured: one line of JSON for each chunk of windows.

The first line says which study this is; named notes hold what the variants depend on, such as
the calibration. A chunk's line has its windows, the shape of its batches, and what every
variant gave. First-order estimates have lines of their own, a window each, behind one that names
their units. A window may come twice, at first with the reference and baselines alone, for a study
that only estimates, later with every variant: what is measured together counts together, so the
later line replaces the earlier one. A rerun of the same study reads the lines and goes on behind
the last; another study is refused with what differs. A last line that was cut off by a crash or a
full disk is dropped; a damaged line before it is an error.
"""

import errno
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fp4scope.errors import OutputError, StudyError
from fp4scope.metrics import WindowMetrics
from fp4scope.records import Estimates, Observation, Variant

JOURNAL_VERSION = 3


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
        identity: What makes two studies the same: flat, JSON-able.

    Raises:
        StudyError: The file belongs to another study.
        OutputError: It cannot be read or written, or is damaged.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
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
                lock = opened.enter_context(path.with_suffix(".lock").open("a+b", buffering=0))
                mode = "r+b" if path.exists() else "w+b"
                self._file = opened.enter_context(path.open(mode, buffering=0))
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}") from None
            _claim(lock, path.parent)
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

    def close(self) -> None:
        self._close()

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
        self.notes[name] = data

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
        nats = dict(zip(self._units, record["nats"], strict=True))
        self.estimates.add(record["estimated"], tokens=record["tokens"], nats=nats)

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        try:
            _append(self._file, line)
        except OSError as error:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; what was measured before is kept: "
                "make room and run the same command again to go on"
            ) from None
        self._size += len(line)

    def _load(self, lines: list[bytes], identity: Mapping[str, Any]) -> None:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if number == 1:
                    version, known = record["fp4scope_journal"], record["study"]
                    if version != JOURNAL_VERSION:
                        raise ValueError(f"version {version}, not {JOURNAL_VERSION}")
                elif "note" in record:
                    self.notes[record["note"]] = record["data"]
                    continue
                elif "units" in record:
                    self._units = [Variant(**fields) for fields in record["units"]]
                    continue
                elif "estimated" in record:
                    self._remember_estimates(record)
                    continue
                else:
                    self._remember(record)
                    continue
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self.path} is damaged in line {number} ({error}); move it away to start "
                    f"again, or cut it before line {number} to keep what is above"
                ) from None
            _refuse_other_study(self.path.parent, known, identity)


def _append(file: IO[bytes], line: bytes) -> None:
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())


def _claim(lock: IO[bytes], folder: Path) -> None:
    """Refuse a folder that another process is writing to. The claim ends with the process."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    lock.seek(0)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = lock.read().decode(errors="replace").strip() or "unknown"
        raise OutputError(
            f"another run is writing to {folder} (process {owner}); wait for it, or choose another "
            "folder with -o"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()} on {socket.gethostname()}\n".encode())


def check_folder(folder: Path, known_so_far: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another study, as far as that can be told before loading.

    Args:
        folder: The output folder.
        known_so_far: The part of the identity that is known already.

    Raises:
        StudyError: A difference was found.
    """
    try:
        with (folder / "journal.jsonl").open("rb") as file:
            known = json.loads(file.readline())["study"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no journal, or one that `Journal` will complain about
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
