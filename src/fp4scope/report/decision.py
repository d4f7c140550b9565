"""A decision in tables and words: what each group gets, what each size costs, what engines do."""

from collections.abc import Iterator, Sequence

from fp4scope.deploy.decide import Decider, Decision
from fp4scope.deploy.exactly import exactly, served
from fp4scope.deploy.palette import Choice
from fp4scope.deploy.schemes import kind_of, served_otherwise
from fp4scope.recipes import Recipe
from fp4scope.report.given import gigabytes
from fp4scope.report.numbers import measured, number
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.stats import SingleEffects


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
    return Section(title, columns, rows, note=basis(found))


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


def engine_lines(found: Decider, decision: Decision) -> Iterator[str]:
    """Which engines serve each chosen format exactly as it was measured."""
    for place in sorted(set(decision.options.tolist())):
        choice = found.choices[place]
        if choice.setting is None:
            continue
        own = served(exactly(Recipe(choice.setting)))
        yield f"{choice.name}: {f'served as measured by {own}' if own else _otherwise(choice)}"


def _otherwise(choice: Choice) -> str:
    setting, why = choice.setting, "none loads it layer by layer"
    assert setting is not None
    if setting.weight is not None and setting.input is not None:
        kind = kind_of(setting.input.format)
        why = (kind and served_otherwise(setting.input, kind)) or why
    return f"no engine serves it as measured: {why}"


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
    return measured(decision.predicted[measure].columns("x"), "x")


def _shares(found: Decider, decision: Decision) -> Iterator[float]:
    for option in range(len(found.choices)):
        own = zip(found.kl.groups, decision.options, strict=True)
        yield sum(group.parameters for group, o in own if o == option) / found.parameters


def basis(found: Decider) -> str:
    windows = f"on {len(found.kl.by_window)} windows"
    if isinstance(found.kl, SingleEffects):
        return (
            f"Chosen from effects of layers one at a time, {windows}, as if they added up. The "
            "intervals know of windows, not of what does not add up: measure the recipe as a "
            "whole, on windows that the choice has not seen. A designed sweep (--method designed) "
            "predicts better."
        )
    return (
        f"Chosen from effects of a designed sweep, {windows}. The intervals hold what sums of "
        "effects miss. Measure the recipe as a whole, on windows that the choice has not seen."
    )
