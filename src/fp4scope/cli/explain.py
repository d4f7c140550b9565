"""`fp4scope explain`: why a unit costs what it does."""

from pathlib import Path

from fp4scope.diagnosis import load
from fp4scope.names import visible
from fp4scope.report.explained import explained


def print_explanation(out: Path, unit: str | None) -> None:
    """Print what a run says of a unit, or of the most costly one of each format.

    Raises:
        OutputError: There are no finished results.
        StudyError: The run measured no causes, or none of this unit.
    """
    for place, (name, sentences) in enumerate(explained(load(out), unit).items()):
        if place:
            print()
        print(visible(name))
        for sentence in sentences:
            print(f"  {visible(sentence)}")
