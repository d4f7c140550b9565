"""The table of recipes that were measured as wholes."""

from collections.abc import Iterator

from fp4scope.report.findings import Findings
from fp4scope.report.numbers import measured, number, plain, relative, share
from fp4scope.report.section import Cell, Column, Section, naming, texts


def given_recipes(found: Findings) -> Iterator[Section]:
    """What each recipe costs and stores, and its exceptions; nothing of a study without any."""
    columns = [
        naming("recipe"),
        Column("bits of the linears", "bits"),
        Column("bits of the model"),
        Column("size", "size"),
        Column("% of PPL", "% of PPL"),
        Column("millinats per token", "mnat"),
        Column("KL, millinats", "KL"),
        Column("PPL"),
        Column("top-1", "top-1"),
        Column("windows"),
    ]
    rows = [
        [
            Cell(row["recipe"]),
            *(
                Cell(number(row[name], digits=2), value=row[name])
                for name in ("bits", "model_bits")
            ),
            Cell(gigabytes(row["bytes"]), value=row["bytes"]),
            relative(row),
            measured(row),
            measured(row, "delta_kl"),
            plain(row["ppl"]),
            share(row["top1"]),
            Cell(str(row["windows"]), value=row["windows"]),
        ]
        for row in found.given
    ]
    if rows:
        yield Section(
            "Recipes, measured as a whole",
            columns,
            rows,
            note="Against the full-precision model, window by window. Bits count the scales of "
            "blocks; those of the model count embeddings, head and norms at 16.",
            id="recipes",
        )
    yield from exceptions(found)


def exceptions(found: Findings) -> Iterator[Section]:
    """Which exceptions of recipes pay; nothing of a study without any."""
    columns = [
        naming("recipe"),
        naming("exception"),
        Column("verdict"),
        Column("KL saved, millinats", "KL saved"),
        Column("millinats per token saved", "mnat saved"),
        Column("stored more", "stored more"),
        Column("bits of the linears more", "bits more"),
    ]
    rows = [
        [
            *texts(row["recipe"], row["exception"], row["verdict"]),
            measured(row, "delta_kl"),
            measured(row),
            Cell(gigabytes(row["bytes"]), value=row["bytes"]),
            Cell(number(row["bits"], digits=2), value=row["bits"]),
        ]
        for row in found.exceptions
    ]
    if rows:
        yield Section(
            "Which exceptions pay",
            columns,
            rows,
            note="What the recipe costs more without the exception. It pays where the interval of "
            "KL is above zero, and does not where it is below. Intervals hold for all exceptions "
            "of a recipe at once.",
            id="exceptions",
        )


def gigabytes(size: float | None) -> str:
    """A size as a reader knows it: in GB, or in MB below one.

    Example:
        >>> gigabytes(3.25e9), gigabytes(81.4e6), gigabytes(None)
        ('3.25 GB', '81.40 MB', '')
    """
    if size is None:
        return ""
    return f"{number(size / 1e9)} GB" if size >= 1e9 else f"{number(size / 1e6)} MB"
