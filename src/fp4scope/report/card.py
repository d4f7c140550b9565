"""A few lines of Markdown for a model card: what formats and recipes cost, and how it was told."""

from math import exp
from pathlib import Path

from fp4scope.files import replace_file, text_bytes
from fp4scope.names import markdown as escaped
from fp4scope.report import labels
from fp4scope.report.findings import Findings
from fp4scope.report.given import gigabytes
from fp4scope.report.numbers import number, plain, relative, share
from fp4scope.report.render import as_markdown
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.report.stopping import windows_measured
from fp4scope.stats import Whole


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
    rows = [_row(found, whole) for whole in found.wholes]
    version = results.environment.get("fp4scope", "")
    note = (
        f"Measured with fp4scope {version} on {windows_measured(results)} windows of "
        f"{results.data['seq_len']} tokens of {results.data['source']}, against the "
        f"{labels.full_precision(results)} model, with 95% intervals."
    )
    return f"{as_markdown(Section('What FP4 costs', columns, rows), 2)}\n\n{escaped(note)}\n"


def _row(found: Findings, whole: Whole) -> list[Cell]:
    full, size = whole.is_full_precision, whole.size
    return [
        Cell(labels.full_precision(found.results) if full else whole.name),
        Cell(whole.precision),
        Cell("" if size is None else number(size.bits, digits=2)),
        Cell("" if size is None else gigabytes(size.bytes)),
        plain(exp(whole.nll)),
        Cell() if full else relative(whole.row),
        plain(0.0 if full else whole.costs["kl"].mean),
        share(whole.costs["top1"].mean),
    ]


def write_card(found: Findings, folder: Path) -> Path:
    """Write `card` to a folder's card.md.

    Raises:
        OutputError: It could not be written.
    """
    path = folder / "card.md"
    replace_file(path, text_bytes(card(found)), "choose another folder")
    return path
