"""What a long run shows: a live bar with rate, time left and the table so far, or plain lines.

On a terminal the screen is redrawn in place; elsewhere (a file, a pipe, CI) a line is
printed when a phase begins and then every quarter of a minute.
"""

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from fp4scope.cli.terminal import clock, console, in_grid, say

if TYPE_CHECKING:
    from fp4scope.conductor import Progress

PLAIN_EVERY_S = 15.0
REDRAW_EVERY_S = 0.5
WIDE = 100
"""Columns of a terminal from which on there is room for the elapsed time."""
_PHASES = {
    "loading": "loading",
    "calibrating": "calibrating on the full-precision model",
    "observing": "observing activations",
    "asking": "asking the server",
    "estimating": "estimating to first order",
    "measuring": "measuring",
    "scoring": "scoring tasks",
    "remedies": "measuring remedies",
    "warming": "warming up",
    "probing": "probing speed and spread",
    "writing": "writing tables, figures and the report",
}


class Screen:
    """A listener for a run; use it in a `with` block.

    Args:
        quiet: Whether to show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._console = console(stderr=True)
        self._console.quiet = quiet
        self._live: Live | None = None
        elapsed = [TimeElapsedColumn()] if self._console.width >= WIDE else []
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            *elapsed,
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            expand=True,
        )
        self._task = TaskID(0)
        self._phase = ""
        self._begun = 0.0
        self._begun_at = 0.0
        self._printed = 0.0
        self._ended = False

    def __enter__(self) -> "Screen":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """One line that stays."""
        say(self._console, text)

    def __call__(self, event: "Progress") -> None:
        if event.note is not None:
            self.note(event.note)
        if event.phase != self._phase:
            self._phase, self._begun, self._begun_at = event.phase, time.monotonic(), event.done
            self._printed, self._ended = 0.0, False
            self.stop()
            if event.total and self._console.is_terminal:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._task = self._bar.add_task(event.phase, total=event.total, detail="")
                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
            elif event.phase == "writing":
                self.note(f"{_PHASES[event.phase]} ...")
        if not event.total:
            return
        if self._live is not None:
            self._bar.update(self._task, completed=event.done, detail=event.detail)
            now = time.monotonic()
            if now - self._printed > REDRAW_EVERY_S or event.done == event.total:
                self._printed = now
                self._live.update(self._picture(event))
        else:
            self._plain_line(event)

    def _picture(self, event: "Progress") -> RenderableType:
        from fp4scope.cli.tables import so_far  # what draws tables takes seconds to import

        # The bar first: what does not fit on the screen is cut at the bottom.
        parts: list[RenderableType] = [self._bar]
        if event.diagnosis is not None and event.diagnosis.all_quantized:
            for section in so_far(event.diagnosis):
                parts += ["", in_grid(section)]
        return Group(*parts)

    def _plain_line(self, event: "Progress") -> None:
        now, ends = time.monotonic(), event.done >= event.total
        if (self._ended and ends) or (not ends and now - self._printed < PLAIN_EVERY_S):
            return
        self._printed, self._ended = now, ends
        pace = (event.done - self._begun_at) / max(now - self._begun, 1e-9)
        left = f", {clock((event.total - event.done) / pace)} left" if pace else ""
        share = f"{event.done / event.total:.0%}"
        self.note(f"{_PHASES[event.phase]}: {share}, {event.detail}{left}")
