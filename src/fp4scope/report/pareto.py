"""Bits against damage: what each size costs, measured and predicted."""

from dataclasses import dataclass

from fp4scope.report.findings import Findings
from fp4scope.report.numbers import interval, measured, number
from fp4scope.table import Interval

FEWEST = 3
"""Points that a chart is worth."""


@dataclass(frozen=True)
class Point:
    """A model of some size.

    Attributes:
        kind: `format`, `recipe` or `predicted`.
        name: What it is.
        bits: Of each parameter of the model; of the linears where the others are not counted.
        kl: Nats per token above the full-precision model; above zero.
        text: All of it in words.
    """

    kind: str
    name: str
    bits: float
    kl: float
    text: str


def pareto_points(found: Findings) -> list[Point]:
    """Formats and recipes that were measured, then predicted ones; none where sizes are unknown.

    What is not above zero has no place on a logarithmic axis.
    """
    points: list[Point] = []
    for whole in found.wholes:
        if whole.size is None or whole.is_full_precision:
            continue
        bits = whole.size.model_bits or whole.size.bits
        said = f"{whole.title}: {number(bits, digits=2)} bits, KL {interval(whole.row, 'delta_kl')}"
        kind = "recipe" if whole.given else "format"
        kl = whole.costs["kl"].mean
        points.append(Point(kind, whole.title, bits, kl, f"{said} millinats, measured"))
    for decision in found.front if points else ():
        bits, kl = decision.size.model_bits or decision.size.bits, decision.predicted["kl"]
        if decision.recipe.settings:
            cell = measured(Interval(kl.mean, kl.low, kl.high).columns("kl"), "kl")
            said = f"a recipe of {number(bits, digits=2)} bits: KL {cell} millinats, predicted"
            points.append(Point("predicted", "predicted recipe", bits, kl.mean, said))
    shown = [point for point in points if point.kl > 0]
    return shown if len(shown) >= FEWEST else []
