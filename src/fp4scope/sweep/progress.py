"""What a run tells whoever listens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        phase: What is being done, such as `measuring`.
        done: Work within the phase so far.
        total: All of it; 0 where nobody knows.
        detail: The same in the phase's own terms, such as windows.
        note: A line worth reading once.
        windows: How many windows have been measured.
        so_far: While measuring, makes the `Diagnosis` of what is known; see `diagnosis`.
    """

    phase: str
    done: int | float = 0
    total: int | float = 0
    detail: str = ""
    note: str | None = None
    windows: int = 0
    so_far: Callable[[], Any] | None = None

    @property
    def diagnosis(self) -> Any:  # noqa: ANN401
        """While measuring, the `Diagnosis` of what is known so far; made when it is asked for."""
        return None if self.so_far is None else self.so_far()


Listener = Callable[[Progress], None]
