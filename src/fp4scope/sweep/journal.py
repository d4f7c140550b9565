"""What was measured, kept as it is measured: one line of JSON for each variant and chunk.

The first line says which study this is; named notes hold what the variants depend on, such as
the calibration. A rerun of the same study reads the lines and goes on
behind the last; another study is refused with what differs. A last line that was cut off by
a crash or a full disk is dropped; a damaged line before it is an error.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from fp4scope.errors import OutputError, StudyError
from fp4scope.metrics import WindowMetrics
from fp4scope.records import Observation, Variant

JOURNAL_VERSION = 1


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
        identity = json.loads(json.dumps(identity))
        try:
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from None
        try:
            _lock(self._file, path.parent)
            lines = self._file.readall().split(b"\n")
            self.dropped = lines.pop() != b""
            """Whether a torn last line was dropped."""
            if lines:
                self._load(lines, identity)
            self._size = sum(len(line) + 1 for line in lines)
            self._file.truncate(self._size)
            self._file.seek(self._size)
        except BaseException:
            self._file.close()
            raise
        if not lines:
            self._write({"fp4scope_journal": JOURNAL_VERSION, "study": identity})

    def close(self) -> None:
        self._file.close()

    def missing(self, variant: Variant, windows: list[int]) -> list[int]:
        """Which of these windows the variant has not been measured on."""
        known = self.observations.get(variant.key)
        done = set(known.windows) if known else set()
        return [w for w in windows if w not in done]

    def add(self, variant: Variant, measured: Mapping[int, WindowMetrics]) -> None:
        """Keep what a variant gave on some windows; on disk when this returns.

        Raises:
            OutputError: It could not be written. What was kept before stays good.
        """
        rows = [[w, m.tokens, m.nll, m.kl, m.top1] for w, m in measured.items()]
        self._write({"variant": _variant_fields(variant), "rows": rows})
        self._remember(variant, rows)

    def note(self, name: str, data: Any) -> None:  # noqa: ANN401
        """Keep JSON-able data under a name.

        Raises:
            OutputError: It could not be written.
        """
        self._write({"note": name, "data": data})
        self.notes[name] = data

    def _remember(self, variant: Variant, rows: list[list[Any]]) -> None:
        observation = self.observations.setdefault(variant.key, Observation(variant=variant))
        for window, tokens, nll, kl, top1 in rows:
            observation.add(window, tokens=tokens, nll=nll, kl=kl, top1=top1)

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(28, os.strerror(28))
            os.fsync(self._file.fileno())
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
                else:
                    self._remember(Variant(**record["variant"]), record["rows"])
                    continue
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self.path} is damaged in line {number} ({error}); move it away to start "
                    f"again, or cut it before line {number} to keep what is above"
                ) from None
            _refuse_other_study(self.path.parent, known, identity)


def _lock(file: IO[bytes], folder: Path) -> None:
    """Refuse a folder that another process is writing to. The lock ends with the file."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise OutputError(
            f"another run is writing to {folder}; wait for it, or choose another folder with -o"
        ) from None


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
