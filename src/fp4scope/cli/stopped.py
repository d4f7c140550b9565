"""A command that ends before its answer: one line on stderr says so, and what to do next."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """Ctrl-C ends the command with one line of advice."""
    try:
        yield
    except KeyboardInterrupt:
        complain(f"stopped; {advice}")
        sys.exit(2)


def complain(text: str) -> None:
    """One message on stderr."""
    from fp4scope.cli.terminal import console, say

    say(console(stderr=True), f"fp4scope: {text}")
