"""Whole models on several texts, each judged by the domain where it costs most."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from fp4scope.deploy.bar import Bar, Verdict, verdict
from fp4scope.files import replace_file, text_bytes
from fp4scope.report.findings import Findings
from fp4scope.report.joint import JointFindings
from fp4scope.report.numbers import measured, number, relative
from fp4scope.report.render import as_markdown
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.report.side_by_side import markdown
from fp4scope.stats import Whole
from fp4scope.table import Table

COLUMNS = (
    "recipe", "precision", "domain", "delta_nll", "delta_nll_low", "delta_nll_high", "delta_kl",
    "delta_kl_low", "delta_kl_high", "worst",
)  # fmt: skip
_FILES = ("domains.md", "domains.csv")


class Domains:
    """Findings of one model on several texts.

    Args:
        found: By domain.
    """

    def __init__(self, found: Mapping[str, Findings]) -> None:
        self.found = found
        self.bars: list[Bar] = next(iter(found.values())).bars
        names = list(found)
        by_recipe = [{whole.recipe: whole for whole in own.wholes} for own in found.values()]
        self._wholes: list[dict[str, Whole]] = [
            {name: by[recipe] for name, by in zip(names, by_recipe, strict=True)}
            for recipe, whole in by_recipe[0].items()
            if not whole.is_full_precision and all(recipe in by for by in by_recipe)
        ]
        self._wholes.sort(key=lambda own: own[worst(own)].costs["kl"].mean)

    @property
    def table(self) -> Table:
        """A row for each whole model and domain."""
        return Table(
            COLUMNS,
            [
                {"recipe": whole.name, "precision": whole.precision, "domain": name}
                | whole.row
                | {"worst": name == worst(own)}
                for own in self._wholes
                for name, whole in own.items()
            ],
        )

    def section(self) -> Section:
        """What each whole model costs in each domain, the cheapest in its worst domain first."""
        bars = self.bars
        columns = [
            naming("format or recipe"),
            naming("precision"),
            *(Column(f"{name}, % of PPL", name) for name in self.found),
            Column("worst domain, by KL", "worst"),
            Column("KL there, millinats", "KL there"),
            *([Column(f"meets {' and '.join(b.text for b in bars)}", "bar")] if bars else []),
        ]
        rows = [[*self._row(own)] for own in self._wholes]
        note = (
            "Each domain is measured on its own windows, with one calibration for all. A bar is "
            "met where it is met in every domain. Intervals are of one domain each."
        )
        return Section("Whole models by domain", columns, rows, note=note, id="domains")

    def _row(self, own: Mapping[str, Whole]) -> Iterator[Cell]:
        first, name = next(iter(own.values())), worst(own)
        yield Cell(first.name)
        yield Cell(first.precision)
        for whole in own.values():
            yield relative(whole.row)
        yield Cell(name)
        yield measured(own[name].row, "delta_kl")
        if self.bars:
            found = self._verdict(own)
            yield Cell(found.value, muted=found is Verdict.UNDECIDED)

    def _verdict(self, own: Mapping[str, Whole]) -> Verdict:
        each = {verdict(self.bars, whole.costs) for whole in own.values()}
        return next(v for v in (Verdict.MISSED, Verdict.UNDECIDED, Verdict.MET) if v in each)

    @cached_property
    def joint(self) -> JointFindings:
        """The same texts as outputs side by side."""
        return JointFindings({name: own.results for name, own in self.found.items()})

    def sentence(self) -> str:
        """Which of the measured ones holds in all domains."""
        if not self.bars or not self._wholes:
            return ""
        said = " and ".join(bar.text for bar in self.bars)
        met = [own for own in self._wholes if self._verdict(own) is Verdict.MET]
        if not met:
            return f"{said}: met by nothing measured in every domain."
        first = min((next(iter(own.values())) for own in met), key=lambda whole: whole.bits)
        bits = number(first.bits, digits=2)
        return f"{said}: met in every domain by {first.title} ({bits} bits)."

    def write(self, folder: Path) -> list[Path]:
        """Write `domains.md` and `domains.csv`.

        Raises:
            OutputError: One could not be written.
        """
        lines = ["# Domains", "", as_markdown(self.section(), 2), "", self.sentence(), ""]
        texts: Sequence[str] = ("\n".join(lines) + f"\n#{markdown(self.joint)}",
                                self.table.to_csv())  # fmt: skip
        paths = [folder / name for name in _FILES]
        for path, text in zip(paths, texts, strict=True):
            replace_file(path, text_bytes(text), "choose another folder with -o")
        return paths


def worst(own: Mapping[str, Whole]) -> str:
    """The domain in which a whole model costs most, by KL."""
    return max(own, key=lambda name: own[name].costs["kl"].mean)
