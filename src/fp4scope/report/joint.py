"""The tables of several studies side by side. Nothing here is rendered."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import combinations

from fp4scope import stats
from fp4scope.ledger import Results
from fp4scope.report.selection import groups
from fp4scope.table import Table

_RUN_COLUMNS = (
    "output", "model", "parameters", "blocks", "dtype", "seq_len", "reference_ppl",
)  # fmt: skip

_BEFORE_AND_AFTER = ("output_before", "output")


class JointFindings:
    """What several outputs say together, as `Table`s.

    Args:
        runs: Results by the name that tables give them; the first is what others are compared with.
    """

    def __init__(self, runs: Mapping[str, Results]) -> None:
        self.runs = dict(runs)

    @cached_property
    def all_quantized(self) -> Table:
        """A row for each output and all-quantized model."""
        rows = []
        columns: tuple[str, ...] = ()
        for name, results in self.runs.items():
            table = stats.all_quantized_table(results)
            columns = table.columns
            about = {"output": name, "model": results.model.get("name")}
            about |= {key: results.model.get(key) for key in ("parameters", "blocks", "dtype")}
            about["seq_len"] = results.data.get("seq_len")
            for row in table:
                if row["format"] == stats.FULL_PRECISION:
                    about["reference_ppl"] = row["ppl"]
                else:
                    rows.append(row | about)
        return Table((*_RUN_COLUMNS, *columns), rows)

    @cached_property
    def projections(self) -> Table:
        """Every output's projections, most costly first, with their `rank` and their tier.

        Of one name in several outputs, those of different kinds (`fp4scope.kinds`) say theirs.
        """
        tables = {n: stats.unit_table(results, "projections") for n, results in self.runs.items()}
        kinds: dict[str, dict[str, str | None]] = {}
        for name, table in tables.items():
            for unit in table["projection"]:
                kinds.setdefault(unit, {})[name] = stats.kind_of(self.runs[name], unit)
        rows = []
        columns: tuple[str, ...] = ()
        for name, table in tables.items():
            columns = table.columns
            found = [dict(row) for row in table if row["delta_nll"] is not None]
            for row in found:
                if len(set((of := kinds[row["projection"]]).values())) > 1:
                    row["projection"] += f" ({of[name] or 'other'})"
            for _, members in groups(Table(columns, found)):
                rows += [row | {"output": name, "rank": i} for i, row in enumerate(members, 1)]
        return Table(("output", "rank", *columns), rows)

    @cached_property
    def agreement(self) -> Table:
        """How alike each two outputs order their units."""
        return self._of_pairs(stats.order_table, combinations(self.runs, 2), ("one", "other"))

    @cached_property
    def changes(self) -> Table:
        """What changed from an output to a later one, unit by unit; see `compared`."""
        return self._of_pairs(stats.change_table, self.compared, _BEFORE_AND_AFTER)

    @cached_property
    def strata(self) -> Table:
        """What changed in each group of targets of whole models, from an output to a later one."""
        return self._of_pairs(stats.stratum_change_table, self.compared, _BEFORE_AND_AFTER)

    def _of_pairs(
        self,
        table_of: Callable[[Results, Results], Table],
        pairs: Iterable[tuple[str, str]],
        names: tuple[str, str],
    ) -> Table:
        """A table of each two outputs, one below the other, with the outputs' names in front."""
        rows = []
        columns: tuple[str, ...] = ()
        for pair in pairs:
            table = table_of(*(self.runs[name] for name in pair))
            columns = table.columns
            rows += [row | dict(zip(names, pair, strict=True)) for row in table]
        return Table((*names, *columns), rows)

    @cached_property
    def scale(self) -> Table:
        """What each format costs from a model to the next larger one."""
        return stats.scale_table(self.runs)

    @cached_property
    def compared(self) -> list[tuple[str, str]]:
        """Each output that is comparable with an earlier one, with the first such before it.

        Those are runs of one model, or of checkpoints of one shape, in the same unit.
        """
        return list(self._compared())

    def _compared(self) -> Iterator[tuple[str, str]]:
        names = list(self.runs)
        for i, new in enumerate(names):
            for old in names[:i]:
                if stats.comparable(self.runs[old], self.runs[new]):
                    yield old, new
                    break

    @cached_property
    def warnings(self) -> list[str]:
        """What was not the same in all outputs, and what then does not compare."""
        return stats.differing_conditions(self.runs)

    def tables(self) -> dict[str, Table]:
        names = ("all_quantized", "projections", "scale", "agreement", "changes", "strata")
        return {name: getattr(self, name) for name in names}
