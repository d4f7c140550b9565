"""The answer of a study: which format, whether it meets a bar, what to keep, what to do next.

Made once, and shown by each renderer in its own way: at the top of the page, of `report.md` and of
a notebook, and at the end on a terminal.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fp4scope.deploy.bar import Bar, Verdict, verdict
from fp4scope.deploy.exactly import exactly, served
from fp4scope.report import labels
from fp4scope.report.caveats import caveats
from fp4scope.report.choice import which_format
from fp4scope.report.findings import Findings
from fp4scope.report.given import gigabytes
from fp4scope.report.numbers import number, plain, relative, share
from fp4scope.report.repairs import repairs
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.report.trust import trust
from fp4scope.report.verdict import verdicts
from fp4scope.stats import Estimate, Whole, sizes_known

NOT_SERVED = "none as measured"
YARDSTICK = "a yardstick"
DISTRUST = "What to distrust"


@dataclass(frozen=True)
class Answer:
    """What an engineer asks before a model ships, answered.

    Attributes:
        table: Whole models by cost, the full-precision one first.
        points: Under each question its answer in sentences.
        caveats: What to distrust.
    """

    table: Section
    points: Sequence[tuple[str, Sequence[str]]]
    caveats: Sequence[str]

    @property
    def lines(self) -> Iterator[str]:
        """All sentences, one after the other."""
        for _, said in self.points:
            yield from said


def answer(found: Findings) -> Answer:
    """The answer of a study."""
    points = [
        ("Which format?", which_format(found)),
        ("Ship?", verdicts(found)),
        ("Keep what?", repairs(found)),
        ("Can I trust it?", list(trust(found))),
    ]
    return Answer(
        formats(found), [(name, said) for name, said in points if said], list(caveats(found))
    )


def formats(found: Findings) -> Section:
    """Whole models by cost: formats, and recipes that were measured as wholes."""
    sized, bars = sizes_known(found.results), found.bars
    columns = [
        naming("format or recipe"),
        naming("precision"),
        Column("% of PPL", "% of PPL"),
        Column("same top token", "same top"),
        Column("KL, nats per token", "KL"),
        *(_SIZES if sized else ()),
        *([Column(f"meets {' and '.join(b.text for b in bars)}", "bar")] if bars else []),
        Column("served as measured by", "served as measured by"),
    ]
    rows = [
        [*_costs(whole, found), *(_sizes(whole) if sized else ()), *_bar(whole, bars), _by(whole)]
        for whole in found.wholes
    ]
    note = (
        f"From the {labels.full_precision(found.results)} model, with 95% intervals; the cheapest "
        "first. Same top token: how often the most likely next token stays the most likely."
    )
    if sized:
        note += (
            " Bits count the scales of blocks; what is not quantized counts 16, whatever it ran in."
        )
    return Section("Formats by cost", columns, rows, note=note, id="answer")


_SIZES = (
    Column("bits of the linears", "bits"),
    Column("bits of the model"),
    Column("size of the model", "size"),
)


def _costs(whole: Whole, found: Findings) -> Iterator[Cell]:
    full = whole.is_full_precision
    yield Cell(labels.full_precision(found.results) if full else whole.name)
    yield Cell(whole.precision)
    if full:
        ppl = next(iter(found.all_quantized), {}).get("ppl")
        yield Cell("" if ppl is None else f"PPL {number(ppl)}", value=0.0)
    else:
        yield relative(whole.row)
    top1 = whole.costs["top1"]
    yield share(top1.mean) if full else _with_ends(top1, 100.0, "%")
    yield plain(0.0) if full else _with_ends(whole.costs["kl"])


def _with_ends(found: Estimate, scale: float = 1.0, unit: str = "") -> Cell:
    """A number that has no sign, with its interval."""
    digits = 1 if unit else None
    value, low, high = (
        None if end is None else number(scale * end, digits=digits)
        for end in (found.mean, found.low, found.high)
    )
    return Cell(f"{value}{unit}", f"[{low}, {high}]" if low and high else "", found.mean)


def _sizes(whole: Whole) -> Iterator[Cell]:
    size = whole.size
    if size is None:
        yield from [Cell()] * len(_SIZES)
        return
    yield Cell(number(size.bits, digits=2), value=size.bits)
    yield Cell(number(size.model_bits, digits=2), value=size.model_bits)
    yield Cell(gigabytes(size.bytes), value=size.bytes)


def _bar(whole: Whole, bars: Sequence[Bar]) -> list[Cell]:
    if not bars:
        return []
    if whole.is_full_precision:
        return [Cell()]
    found = verdict(bars, whole.costs)
    return [Cell(found.value, muted=found is Verdict.UNDECIDED)]


def _by(whole: Whole) -> Cell:
    """Which engines do exactly this."""
    if whole.is_yardstick:
        return Cell(YARDSTICK)
    return Cell("all" if whole.is_full_precision else served(exactly(whole.recipe)) or NOT_SERVED)
