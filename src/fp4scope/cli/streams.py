"""stdout and stderr as they may be: of another encoding, full, closed, or read by nobody."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

_PLAIN = {
    "\N{MINUS SIGN}": "-", "\N{PLUS-MINUS SIGN}": "+/-", "\N{MULTIPLICATION SIGN}": "x",
    "\N{HORIZONTAL ELLIPSIS}": "...", "\N{NO-BREAK SPACE}": " ", "\N{MIDDLE DOT}": "-",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
}  # fmt: skip
"""What our own texts have beyond ASCII: a console of Windows has no minus of its own."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What stands for letters that an encoding lacks: their like, or else their escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(plain), error.end


codecs.register_error("fp4scope.plain", _plainly)


class Watched:
    """A stream that remembers what kept it from being written; a `patient` one goes on.

    Progress on stderr must not end a measurement. What stdout loses is lost, so that is an error.
    """

    def __init__(self, stream: Any, patient: bool) -> None:  # noqa: ANN401
        self._stream = stream
        self._patient = patient
        self.failed: OSError | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            return self._lost(error, len(text))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error, 0)

    def _lost(self, error: OSError, length: int) -> int:
        if self.failed is None:
            self.failed = error
            # Python flushes once more when it ends, and would complain.
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
            if not self._patient:
                raise error
        return length


@contextmanager
def watched_streams() -> Iterator[Watched | None]:
    """Watch both streams, and write plainly what their encoding lacks. Gives stdout's."""
    with ExitStack() as replaced:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="fp4scope.plain")
        stdout = None
        if sys.stderr is not None:
            replaced.enter_context(redirect_stderr(Watched(sys.stderr, patient=True)))  # type: ignore[type-var]
        if sys.stdout is not None:
            stdout = Watched(sys.stdout, patient=False)
            replaced.enter_context(redirect_stdout(stdout))  # type: ignore[type-var]
        yield stdout
