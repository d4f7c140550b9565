"""The tables of a report about models with routers."""

from collections.abc import Iterator

from fp4scope.report.findings import Findings
from fp4scope.report.numbers import share
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.treatments import FEWEST_TOKENS

_SEEN = ("count", "fewest", "median", "most", "few")


def about_routing(found: Findings) -> list[Section]:
    """All that is known of routing and of experts; nothing of a model without them."""
    return [*routing(found), *experts_seen(found)]


def routing(found: Findings) -> Iterator[Section]:
    """What whole models leave of the full-precision model's routing, if it has routers."""
    columns = [
        naming("format"), naming("precision"), Column("experts of a token kept", "experts kept"),
        Column("tokens with the same experts", "same experts"),
        Column("gate weight in common", "gate weight"), Column("places moved", "places moved"),
    ]  # fmt: skip
    rows = [
        [Cell(row["format"]), Cell(row["precision"])]
        + [share(row[name]) for name in ("kept", "same", "weight", "load")]
        for row in found.routing.where(level="model")
    ]
    if rows:
        yield Section(
            "Routing, against the full-precision model",
            columns,
            rows,
            note="Means over routers and tokens. Full precision is the ceiling: its own perturbed "
            "realisations, in which tokens near a tie go to other experts by rounding alone. "
            "Places moved: how much of the load is at other experts in a window.",
            id="routing",
        )


def experts_seen(found: Findings) -> Iterator[Section]:
    """How many tokens experts saw at calibration, if there are any."""
    columns = [
        naming("block"), naming("experts"), Column("how many", "how many"),
        Column("fewest tokens", "fewest"), Column("median", "median"), Column("most", "most"),
        Column(f"below {FEWEST_TOKENS} tokens", f"below {FEWEST_TOKENS}"), Column("these"),
    ]  # fmt: skip
    rows = [
        [Cell(str(row["block"]), value=row["block"]), Cell(row["experts"])]
        + [Cell(f"{row[name]:g}", value=row[name]) for name in _SEEN]
        + [Cell(row["below"])]
        for row in found.experts_seen
    ]
    if rows:
        yield Section(
            "Tokens that experts saw at calibration",
            columns,
            rows,
            note=f"An expert that saw fewer than {FEWEST_TOKENS} takes the largest input of its "
            "layer, also where each has a scale of its own.",
            id="experts-seen",
        )
