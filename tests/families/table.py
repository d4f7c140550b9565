"""The table of families in docs/models.md: written by `scripts/families`, held by tests.

Its first line says the version of transformers that it was made with.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import transformers

from families.examined import BLOCKS, REFUSED, UNTRIED, WHOLE, Row, examined, families

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
_BEGIN, _END = "<!-- families: made by scripts/families -->\n", "<!-- end of families -->\n"
_HEAD = (
    "| family | measured | quantized | left alone | projections, or why not |\n"
    "| --- | --- | --- | --- | --- |\n"
)


def summary(rows: list[Row], version: str) -> str:
    """How many families run, in sentences."""
    count = {kind: sum(row.measured == kind for row in rows) for kind in _kinds(rows)}
    run = count.get(BLOCKS, 0) + count.get(WHOLE, 0)
    enough = sum(row.enough for row in rows)
    return (
        f"transformers {version} has {len(rows)} such families. Of these {run} run: "
        f"{count.get(BLOCKS, 0)} block by block, {count.get(WHOLE, 0)} by whole forwards. "
        f"{count.get(REFUSED, 0)} are refused, {count.get(UNTRIED, 0)} were not tried. In "
        f"{enough} at least 95% of the blocks is reached: {enough / len(rows):.1%} of all "
        f"families, {enough / run:.1%} of those that run.\n"
    )


def _kinds(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.measured for row in rows))


def written(rows: list[Row], version: str) -> str:
    """The section of docs/models.md between its marks."""
    lines = "".join(row.line + "\n" for row in rows)
    return f"{_BEGIN}{summary(rows, version)}\n{_HEAD}{lines}{_END}"


def section(text: str) -> str:
    """What stands between the marks, with them."""
    start = text.index(_BEGIN)
    return text[start : text.index(_END) + len(_END)]


def rows_in(text: str) -> dict[str, Row]:
    """The rows by family."""
    lines = section(text).partition(_HEAD)[2].removesuffix(_END).splitlines()
    return {row.family: row for row in map(Row.of, lines)}


def version_of(text: str) -> str:
    """Of transformers, when the table was made."""
    return section(text).removeprefix(_BEGIN).split()[1]


def main(chosen: list[str]) -> None:
    """Write the rows of some families, of all by default, and the summary."""
    transformers.logging.set_verbosity_error()
    text = DOCS.read_text(encoding="utf-8")
    kept = rows_in(text) if chosen else {}
    with ProcessPoolExecutor() as pool:
        rows = kept | {row.family: row for row in pool.map(examined, chosen or families())}
    ordered = [rows[family] for family in sorted(rows)]
    new = text.replace(section(text), written(ordered, transformers.__version__))
    DOCS.write_text(new, encoding="utf-8")
    sys.stdout.write(summary(ordered, transformers.__version__))


if __name__ == "__main__":
    main(sys.argv[1:])
