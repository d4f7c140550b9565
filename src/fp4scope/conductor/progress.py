"""What a run tells whoever listens."""

from collections.abc import Callable
from dataclasses import dataclass

from fp4scope.diagnosis import Diagnosis


@dataclass(frozen=True)
class Progress:
    """Where a run is: `done` of `total` units of work within `phase`.

    `detail` says it in the phase's own terms, such as windows. `note` is a line worth reading
    once; `diagnosis` what is known so far (while measuring).
    """

    phase: str
    done: int | float = 0
    total: int | float = 0
    detail: str = ""
    note: str | None = None
    diagnosis: Diagnosis | None = None


Listener = Callable[[Progress], None]
