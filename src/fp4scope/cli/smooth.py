"""`fp4scope smooth`: a model with smoothing folded into its norms."""

from collections import Counter
from pathlib import Path

from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import command, console, say
from fp4scope.conductor.smooth import smooth
from fp4scope.study import Study


def print_smooth(study: Study, folder: Path, quiet: bool) -> None:
    """Fold, write, and say what was done.

    Args:
        study: Model and text.
        folder: For the new model.
        quiet: Whether no progress is shown.
    """
    with Screen(quiet) as screen:
        found = smooth(study, folder, screen)
    out = console()
    for kind, count in Counter(fold.kind for fold in found.folds).items():
        fold = next(fold for fold in found.folds if fold.kind == kind)
        read = ", ".join(name.rpartition(".")[2] for name in fold.readers)
        say(out, f"{kind}: {count} norms, read by {read}")
    for kind in found.kept:
        say(out, f"{kind}: left alone, since what the model computes would have changed")
    say(
        out,
        f"Logits are the same, bit for bit. Channels are divided by up to {found.largest:g}.",
        style="bold",
    )
    out.print(f"\nWritten: {found.folder}", soft_wrap=True)
    command(out, "Next:", ["fp4scope", "run", str(found.folder), "-o", f"{found.folder}-run"])
