"""`fp4scope recipe`: a decision from a finished run, on the terminal and as a file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fp4scope.cli.terminal import command, console, in_grid, say, show
from fp4scope.deploy.bar import Bar, parse_bar
from fp4scope.deploy.decide import Decider, Decision
from fp4scope.deploy.found import decider, written
from fp4scope.diagnosis import load
from fp4scope.errors import StudyError
from fp4scope.report.given import gigabytes
from fp4scope.report.numbers import measured, number
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.study import parse_memory

FRONT_SHOWN = 9


def print_recipe(
    folder: Path,
    *,
    accept: Sequence[str] = (),
    max_bits: float | None = None,
    max_size: str | None = None,
    palette: str | None = None,
    serve_on: str | None = None,
    out: Path | None = None,
) -> None:
    """Decide, show and write.

    Raises:
        Fp4ScopeError: There is no decision under these bounds.
    """
    bars = bars_of(accept)
    bounds = [b for b in (bars, max_bits, max_size) if b]
    if len(bounds) > 1:
        raise StudyError("give one bound: --accept, --max-bits or --max-size")
    results = load(folder).results
    found = decider(results, palette, serve_on)
    screen = console()
    if not bounds:
        show(screen, in_grid(front_section(found, found.front(FRONT_SHOWN))))
        say(screen, "Choose with --accept, --max-bits or --max-size; this writes a recipe.yaml.")
        return
    decision = found.sure(decide(found, bars, max_bits, max_size))
    show(screen, in_grid(decision_section(found, decision)))
    say(screen, _basis(found))
    path = folder / "recipe.yaml" if out is None else out
    written(results, found, decision).write(path)
    screen.print(f"\nWritten: {path}", soft_wrap=True)
    model = str(results.study.get("model", {}).get("name") or results.model["name"])
    words = ["fp4scope", "run", model, "--recipe", str(path), "-o", "ANOTHER"]
    command(screen, "Measure it as a whole, on other windows:", words)


def bars_of(accept: Sequence[str]) -> list[Bar]:
    """The bars that a user sets, with those that come with them.

    Raises:
        StudyError: One is no bar.
    """
    bars = [parse_bar(text) for text in accept]
    own = {bar.measure for bar in bars}
    more = [bar.companion for bar in bars]
    return bars + [bar for bar in more if bar is not None and bar.measure not in own]


def decide(
    found: Decider, bars: Sequence[Bar], max_bits: float | None, max_size: str | None
) -> Decision:
    """The recipe under the one bound that is given."""
    if bars:
        return found.within(bars)
    if max_size is not None:
        return found.under(found.bits_of(parse_memory(max_size)))
    assert max_bits is not None
    return found.under(max_bits)


def front_section(found: Decider, front: Sequence[Decision]) -> Section:
    """Recipes from the smallest to the largest."""
    columns = [
        naming("bits of the linears"),
        Column("bits of the model", "of the model"),
        Column("size", "size"),
        Column("predicted KL, millinats", "KL, mnat"),
        Column("predicted, millinats per token", "mnat"),
        *(
            Column(choice.name, choice.name, "share of the linears' weights")
            for choice in found.choices
        ),
    ]
    rows = [
        [
            Cell(number(decision.size.bits, digits=2), value=decision.size.bits),
            Cell(number(decision.size.model_bits, digits=2)),
            Cell(gigabytes(decision.size.bytes)),
            *(_predicted(decision, measure) for measure in ("kl", "nll")),
            *(Cell(f"{share:.0%}") for share in _shares(found, decision)),
        ]
        for decision in front
    ]
    title = "What each size costs, if effects add up"
    return Section(title, columns, rows, note=_basis(found))


def decision_section(found: Decider, decision: Decision) -> Section:
    """What each group gets."""
    rows = [
        [
            Cell(name),
            Cell(choice),
            Cell(ranges(blocks)),
            Cell("" if decision.frequency is None else f"{share:.0%}"),
        ]
        for name, choice, blocks, share in found.by_projection(decision)
    ]
    columns = [
        naming("linears that engines have as one"),
        naming("format"),
        Column("blocks", "blocks"),
        Column("chosen over resampled windows", "sure"),
    ]
    kl, nll = (_predicted(decision, measure) for measure in ("kl", "nll"))
    title = (
        f"{number(decision.size.bits, digits=2)} bits a weight, {gigabytes(decision.size.bytes)}: "
        f"predicted {nll} millinats per token, KL {kl}"
    )
    return Section(title, columns, rows)


def ranges(blocks: Sequence[int | None]) -> str:
    """Numbers of blocks, runs of them as one.

    Example:
        >>> ranges([0, 1, 2, 5, None]), ranges([7])
        ('0-2, 5, head', '7')
    """

    def runs() -> Iterator[tuple[int, int]]:
        numbered = sorted(block for block in blocks if block is not None)
        start = 0
        for place, block in enumerate(numbered):
            if place + 1 == len(numbered) or numbered[place + 1] != block + 1:
                yield numbered[start], block
                start = place + 1

    found = [str(a) if a == b else f"{a}-{b}" for a, b in runs()]
    return ", ".join(found + ["head"] * (None in blocks))


def _predicted(decision: Decision, measure: str) -> Cell:
    found = decision.predicted[measure]
    return measured({"x": found.mean, "x_low": found.low, "x_high": found.high}, "x")


def _shares(found: Decider, decision: Decision) -> Iterator[float]:
    for option in range(len(found.choices)):
        own = zip(found.kl.groups, decision.options, strict=True)
        yield sum(group.parameters for group, o in own if o == option) / found.parameters


def _basis(found: Decider) -> str:
    return (
        f"Chosen from effects of layers one at a time, on {len(found.kl.by_window)} windows, as if "
        "they added up. The intervals know of windows, not of what does not add up: measure the "
        "recipe as a whole, on windows that the choice has not seen."
    )
