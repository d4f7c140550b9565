"""`fp4scope export`: a recipe as a configuration, or as a packed checkpoint."""

from pathlib import Path

from fp4scope.cli.terminal import console, say
from fp4scope.deploy.exporting import export


def print_export(
    recipe: Path, to: str, checkpoint: Path | None, out: Path | None, model: str | None
) -> None:
    """Export, and say what was written.

    Args:
        recipe: The file with the recipe.
        to: The program that reads the export.
        checkpoint: Where a packed checkpoint is written.
        out: Where the configuration is written; it is shown where neither is given.
        model: Where the recipe's model is, if that is not what it calls it.
    """
    found = export(recipe, to, checkpoint=checkpoint, out=out, model=model)
    screen = console(stderr=True)
    for scheme, members in found.export.schemes.items():
        say(screen, f"{scheme.label}: {len(members)} linears")
    say(screen, f"full precision: {len(found.export.plain)} linears")
    for note in found.notes:
        say(screen, f"note: {note}")
    for path in found.files:
        screen.print(f"Written: {path}", soft_wrap=True)
    if not found.files:
        print(found.text, end="")
