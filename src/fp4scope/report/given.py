"""The table of recipes that were measured as wholes."""

from collections.abc import Iterator

from fp4scope.report.findings import Findings
from fp4scope.report.numbers import measured, number, plain, relative, share
from fp4scope.report.section import Cell, Column, Section, naming


def given_recipes(found: Findings) -> Iterator[Section]:
    """What each recipe costs and stores; nothing of a study without any."""
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


def gigabytes(size: float | None) -> str:
    """A size as a reader knows it: in GB, or in MB below one.

    Example:
        >>> gigabytes(3.25e9), gigabytes(81.4e6), gigabytes(None)
        ('3.25 GB', '81.40 MB', '')
    """
    if size is None:
        return ""
    return f"{number(size / 1e9)} GB" if size >= 1e9 else f"{number(size / 1e6)} MB"
