"""What recipes lose on tasks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fp4scope.deploy.bar import Bar, Verdict
from fp4scope.report.numbers import measured, number, share
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.table import Table

_POINTS = 100.0


def about_tasks(table: Table, bars: Sequence[Bar] = ()) -> Iterator[Section]:
    """A section for each task, by its first metric; nothing where nothing was scored.

    Args:
        table: As `stats.task_table` makes it.
        bars: Of these those on tasks are judged.
    """
    for task in dict.fromkeys(table["task"]):
        rows = [row for row in table if row["task"] == task and row["main"]]
        bar = next((bar for bar in bars if bar.task == task), None)
        yield _section(task, rows, bar)


def _section(task: str, rows: Sequence[Mapping[str, Any]], bar: Bar | None) -> Section:
    columns = [
        naming("recipe"),
        Column(str(rows[0]["metric"]), "score"),
        Column("points lost", "points lost"),
        Column("documents lost, gained", "lost, gained"),
        *([Column(f"meets {bar.text}", "bar")] if bar else []),
        Column("flips of a second run", "rerun flips"),
        Column("points lost by a second run", "rerun points"),
        Column("documents for 1 point", "for 1 point"),
    ]
    plain = [row for row in rows if row["loss"] is None]
    rest = sorted((row for row in rows if row["loss"] is not None), key=lambda row: row["loss"])
    return Section(
        f"Task {task}: {rows[0]['documents']:,} documents",
        columns,
        [_row(row, bar) for row in (*plain, *rest)],
        note=_note(rows),
        id=f"task-{task}",
    )


def _row(row: Mapping[str, Any], bar: Bar | None) -> list[Cell]:
    full, again = row["loss"] is None, row["rerun_flips"]
    verdict = None if full or bar is None else bar.verdict(row["loss_low"], row["loss_high"])
    rerun = row["rerun_loss"]
    return [
        Cell(row["recipe"]),
        share(row["score"]),
        Cell() if full else measured(row, "loss", _POINTS),
        Cell() if full else Cell(f"{row['lost']}, {row['gained']}", value=row["lost"]),
        *([_judged(verdict)] if bar else []),
        share(again),
        Cell() if rerun is None else Cell(number(_POINTS * rerun, sign=True), value=rerun),
        Cell() if full else _needed(row["documents_for_point"]),
    ]


def _judged(verdict: Verdict | None) -> Cell:
    if verdict is None:
        return Cell()
    return Cell(verdict.value, muted=verdict is Verdict.UNDECIDED)


def _needed(documents: int | None) -> Cell:
    return Cell("unknown") if documents is None else Cell(f"{documents:,}", value=documents)


def _note(rows: Sequence[Mapping[str, Any]]) -> str:
    said = (
        "Points lost: the full-precision model's score less the recipe's, document by document, "
        "with 95% score intervals. Lost: the score fell; gained: it rose. A second run is of the "
        "same recipe, moved by one unit in the last place at every block. "
    )
    if (runs := max(row["runs"] for row in rows)) > 1:
        said += (
            f"Scores and points are over {runs} runs of both models, and documents are counted "
            "once a run; intervals allow for that. "
        )
    problems, documents = rows[0]["problems"], rows[0]["documents"]
    if problems < documents:
        said += f"The documents belong to {problems:,} problems, and intervals allow for that. "
    needed = [row["documents_for_point"] for row in rows if row["documents_for_point"]]
    if needed and max(needed) > documents:
        said += (
            f"So many documents would tell a difference of 1 point, at the flips seen; there are "
            f"{documents:,}, so smaller differences than the intervals are not seen here."
        )
    return said.rstrip()
