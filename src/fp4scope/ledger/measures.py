"""What is measured, as data. Pure Python.

Every value but `kl_max` is a sum over the targets of one sample, such as the 2047 targets of a
window, so that means of any weighting can be taken later.
"""

from dataclasses import dataclass

Value = float | int | list[float | None] | list[int] | list[list[float]] | list[list[int]]
"""A number, one for each router, a count for each bin, or one for each stratum of each kind."""


@dataclass(frozen=True)
class Measure:
    """A number that a subject has on each sample.

    Attributes:
        name: As it stands in files.
        unit: Of the sum; `1` for a count.
        digits: How many mean something, for its terms come from FP32 logits; None for a count.
        beside: Another measure, where this one belongs to what some models have beside it.
    """

    name: str
    unit: str
    digits: int | None
    beside: str | None = None

    def settled(self, value: Value) -> Value:
        """The value with the digits that mean something."""
        if self.digits is None:
            return value
        if isinstance(value, list):
            return [v if v is None else self.settled(v) for v in value]  # type: ignore[return-value]
        return float(f"{value:.{self.digits}g}")


MOST_BINS = 178
"""As many bins as `kl_bins` can have."""
_KINDS = ("kept", "same", "weight", "load", "kl")
ROUTING = {kind: f"routing_{kind}" for kind in _KINDS}
"""Measures of models with routers, means over these."""
ROUTERS = {kind: f"router_{kind}" for kind in _KINDS}
"""The same router by router: of each sample a list, with None where it is not known."""
STRATA = {kind: f"strata_{kind}" for kind in ("tokens", "nll", "kl", "reference")}
"""Measures of whole models: targets of each stratum (`strata`), and sums over these. That of the
reference is its NLL on the very targets; some earlier results have none."""
MEASURES = {
    measure.name: measure
    for measure in (
        Measure("nll", "nat", 9),
        Measure("kl", "nat", 6),  # KL(full precision || subject)
        Measure("top1", "1", None),  # targets with the full-precision model's most likely token
        # The same two against the unperturbed realisation of the subject itself.
        Measure("rerun_kl", "nat", 6),
        Measure("rerun_top1", "1", None),
        # What is left of the full-precision model's routing (`sweep.routing`).
        *(
            Measure(name, "nat" if kind == "kl" else "1", 9 if kind != "kl" else 6, "nll")
            for names in (ROUTING, ROUTERS)
            for kind, name in names.items()
        ),
        # Of whole models, how KL spreads over targets: the largest, and how many targets are in
        # each bin (`stats.inference.tails`).
        Measure("kl_max", "nat", 6, "nll"),
        Measure("kl_bins", "1", None, "nll"),
        # The same models' sums over strata of the targets.
        Measure(STRATA["tokens"], "1", None, "nll"),
        Measure(STRATA["nll"], "nat", 9, "nll"),
        Measure(STRATA["kl"], "nat", 6, "nll"),
        Measure(STRATA["reference"], "nat", 9, "nll"),
        # First-order estimate of what a contrast costs; its subject is the contrast's own recipe.
        Measure("gradient", "nat", 6),
    )
}
