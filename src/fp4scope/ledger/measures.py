"""What is measured, as data. Pure Python.

Every value is a sum over the targets of one sample, such as the 2047 targets of a window, so that
means of any weighting can be taken later.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A number that a subject has on each sample.

    Attributes:
        name: As it stands in files.
        unit: Of the sum; `1` for a count.
        digits: How many mean something, for its terms come from FP32 logits; None for a count.
    """

    name: str
    unit: str
    digits: int | None

    def settled(self, value: float | int) -> float | int:
        """The value with the digits that mean something."""
        return value if self.digits is None else float(f"{value:.{self.digits}g}")


ROUTING = {name: f"routing_{name}" for name in ("kept", "same", "weight", "load")}
"""Measures of models with routers, by their names in `metrics.Routing`."""
MEASURES = {
    measure.name: measure
    for measure in (
        Measure("nll", "nat", 9),
        Measure("kl", "nat", 6),  # KL(full precision || subject)
        Measure("top1", "1", None),  # targets with the full-precision model's most likely token
        # The same two against the unperturbed realisation of the subject itself.
        Measure("rerun_kl", "nat", 6),
        Measure("rerun_top1", "1", None),
        # What is left of the full-precision model's routing (`metrics.Routing`).
        *(Measure(name, "1", 9) for name in ROUTING.values()),
        # First-order estimate of what a contrast costs; its subject is the contrast's own recipe.
        Measure("gradient", "nat", 6),
    )
}
