"""The ledger: what was found, by subject, sample and replica. Pure Python."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from fp4scope.ledger.measures import MEASURES, Value
from fp4scope.recipes import Recipe

Key = tuple[Recipe, int, str]
"""A subject, its replica, and a measure of it."""


@dataclass
class Rows:
    """What one subject gave: a row for each sample and replica.

    Attributes:
        indices: Which sample, such as the number of a window.
        replicas: Which realisation; 0 is not perturbed.
        tokens: Targets in the sample.
        values: By measure a sum over the sample's targets in each row; None where it is not known.
    """

    indices: list[int] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)
    _at: dict[tuple[int, int], int] | None = field(default=None, repr=False, compare=False)

    def put(self, index: int, replica: int, tokens: int, values: Mapping[str, Value]) -> None:
        """Add a row, or take these values into the row that is there: twice is as once."""
        if self._at is None:
            # Subjects of a file share these lists.
            self.indices, self.replicas = list(self.indices), list(self.replicas)
            self.tokens = list(self.tokens)
            keys = zip(self.indices, self.replicas, strict=True)
            self._at = {key: row for row, key in enumerate(keys)}
        row = self._at.setdefault((index, replica), len(self.indices))
        if row == len(self.indices):
            self.indices.append(index)
            self.replicas.append(replica)
            self.tokens.append(tokens)
            for column in self.values.values():
                column.append(None)
        for name, value in values.items():
            if name not in self.values:
                self.values[name] = [None] * len(self.indices)
            self.values[name][row] = value

    def settled(self, wanted: Set[tuple[int, str]]) -> "Rows | None":
        """In the order of samples, with the digits that mean something; None without any row.

        Args:
            wanted: Replicas and measures, with what belongs beside these; what else there is, is
                left out.
        """
        names = [name for name in MEASURES if name in self.values]
        kept: dict[int, list[str]] = {}
        for row, replica in enumerate(self.replicas):
            of = [
                name
                for name in names
                if (replica, MEASURES[name].beside or name) in wanted
                and self.values[name][row] is not None
            ]
            if of:
                kept[row] = of
        if not kept:
            return None
        order = sorted(kept, key=lambda row: (self.indices[row], self.replicas[row]))
        columns: dict[str, list[Any]] = {}
        for name in dict.fromkeys(name for of in kept.values() for name in of):
            column, measure = self.values[name], MEASURES[name]
            columns[name] = [
                measure.settled(value) if name in kept[row] and (value := column[row]) is not None
                else None
                for row in order
            ]  # fmt: skip
        indices, replicas = [self.indices[r] for r in order], [self.replicas[r] for r in order]
        return Rows(indices, replicas, [self.tokens[r] for r in order], columns)


class Ledger:
    """Rows of every subject on the samples of one dataset.

    Args:
        rows: By subject.
        counted: A subject's value is the mean of so many replicas; those beyond only tell noise.
    """

    def __init__(self, rows: Mapping[Recipe, Rows] | None = None, *, counted: int = 1) -> None:
        self._rows = dict(rows or {})
        self.counted = counted

    def __iter__(self) -> Iterator[Recipe]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ledger):
            return NotImplemented
        return (self.counted, self._rows) == (other.counted, other._rows)

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, subject: Recipe) -> Rows:
        return self._rows[subject]

    def rows(self, subject: Recipe) -> Rows | None:
        """Those of a subject, if it has any."""
        return self._rows.get(subject)

    def open(self, subject: Recipe) -> Rows:
        """Those of a subject, to put more into."""
        if subject not in self._rows:
            self._rows[subject] = Rows()
        return self._rows[subject]

    def settled(self, wanted: Iterable[Key]) -> "Ledger":
        """What results keep: of each subject the replicas and measures that are wanted."""
        by_subject: dict[Recipe, set[tuple[int, str]]] = {}
        for subject, replica, measure in wanted:
            by_subject.setdefault(subject, set()).add((replica, measure))
        found: dict[Recipe, Rows] = {}
        for subject, keys in by_subject.items():
            rows = self._rows.get(subject)
            settled = None if rows is None else rows.settled(keys)
            if settled is not None:
                found[subject] = settled
        return Ledger(found, counted=self.counted)
