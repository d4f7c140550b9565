"""A few lines of Markdown for a model card: what formats and recipes cost, and how it was told."""

from pathlib import Path

from fp4scope.files import replace_file, text_bytes
from fp4scope.names import markdown as escaped
from fp4scope.report import labels
from fp4scope.report.findings import Findings
from fp4scope.report.given import gigabytes
from fp4scope.report.numbers import number, plain, relative, share
from fp4scope.report.render import as_markdown
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.report.selection import by_cost
from fp4scope.report.stopping import windows_measured


def card(found: Findings) -> str:
    """A section to paste into a model card, with the numbers of a study.

    Args:
        found: Of the study.
    """
    columns = [
        naming("format or recipe"), naming("precision"), Column("bits of the linears"),
        Column("size"), Column("perplexity"), Column("more perplexity"),
        Column("KL, nats per token"), Column("same top token"),
    ]  # fmt: skip
    results = found.results
    rows = [
        [
            Cell(labels.format_name(row, results)), Cell(row["precision"]), Cell(), Cell(),
            plain(row["ppl"]), relative(row), plain(row["kl"]), share(row["top1"]),
        ]
        for row in by_cost(found.all_quantized)
    ]  # fmt: skip
    rows += [
        [
            Cell(row["recipe"]), Cell(), Cell(number(row["bits"], digits=2)),
            Cell(gigabytes(row["bytes"])), plain(row["ppl"]), relative(row), plain(row["kl"]),
            share(row["top1"]),
        ]
        for row in found.given
    ]  # fmt: skip
    version = results.environment.get("fp4scope", "")
    note = (
        f"Measured with fp4scope {version} on {windows_measured(results)} windows of "
        f"{results.data['seq_len']} tokens of {results.data['source']}, against the "
        f"{labels.full_precision(results)} model, with 95% intervals."
    )
    return f"{as_markdown(Section('What FP4 costs', columns, rows), 2)}\n\n{escaped(note)}\n"


def write_card(found: Findings, folder: Path) -> Path:
    """Write `card` to a folder's card.md.

    Raises:
        OutputError: It could not be written.
    """
    path = folder / "card.md"
    replace_file(path, text_bytes(card(found)), "choose another folder")
    return path
