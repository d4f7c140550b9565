"""A table: rows with named columns, and numbers in them that have intervals."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from fp4scope.names import cell, visible

_SHOWN = 60
"""Rows of a table that a notebook shows."""


class Interval(NamedTuple):
    """A number of a row with its interval: the columns NAME, NAME_low and NAME_high."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str) -> "Interval":
        """What a row has under a name."""
        return cls(row[name], row[f"{name}_low"], row[f"{name}_high"])

    def columns(self, name: str) -> dict[str, float | None]:
        """What a row has to hold."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def times(self, scale: float) -> "Interval":
        """In another unit; the ends change places where the scale is negative."""
        value, *ends = (None if end is None else scale * end for end in self)
        low, high = ends if scale > 0 else reversed(ends)
        return Interval(value, low, high)

    @property
    def half(self) -> float | None:
        """Half its width, where there is one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def holds_zero(self) -> bool:
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


class Table(Sequence[dict[str, Any]]):
    """Rows with named columns: a list of dicts that knows CSV, and pandas if you ask."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.columns = tuple(columns)
        self.rows: list[dict[str, Any]] = [{c: row.get(c) for c in self.columns} for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        if isinstance(index, str):
            return [row[index] for row in self.rows]
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def where(self, **values: Any) -> "Table":  # noqa: ANN401
        """The rows in which every named column has the given value."""
        rows = [r for r in self.rows if all(r[c] == v for c, v in values.items())]
        return Table(self.columns, rows)

    def to_csv(self) -> str:
        """One line a row; an empty field where there is no value. No name is a formula."""
        file = StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(row[c]) for c in self.columns] for row in self.rows)
        return file.getvalue()

    def write_csv(self, path: Path) -> None:
        """Write `to_csv` to a file."""
        path.write_text(self.to_csv(), encoding="utf-8", newline="")

    def to_pandas(self, *, short: bool = False) -> Any:  # noqa: ANN401
        """The table as a `pandas.DataFrame` (needs the `pandas` extra).

        Args:
            short: Without standard errors, and without what no row has or all rows have in common.
        """
        import pandas as pd

        columns = self._telling() if short else list(self.columns)
        return pd.DataFrame(self.rows, columns=columns)

    def _telling(self) -> list[str]:
        """Columns in which rows differ; of a single row those with a value."""

        def tells(name: str) -> bool:
            values = self[name]
            if len(values) == 1:
                return values[0] is not None
            return any(value != values[0] for value in values)

        return [c for c in self.columns if not c.endswith("_stderr") and tells(c)]

    def _repr_html_(self) -> str:
        """The first rows, as a notebook shows them."""
        shown = [[escape(_brief(row[c])) for c in self.columns] for row in self.rows[:_SHOWN]]
        head = "".join(f"<th>{escape(c)}</th>" for c in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{v}</td>' for v in row)}</tr>" for row in shown)
        more = f"<p>{_SHOWN} of {len(self)} rows</p>" if len(self) > _SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    def __repr__(self) -> str:
        return f"Table({len(self)} rows: {', '.join(self.columns)})"


def _brief(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def _cell(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return cell(value)
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else value
