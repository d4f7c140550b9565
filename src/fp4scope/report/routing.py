"""The tables of a report about models with routers."""

from collections.abc import Iterator, Mapping
from typing import Any

from fp4scope.report import labels
from fp4scope.report.columns import is_muted
from fp4scope.report.findings import Findings
from fp4scope.report.numbers import measured, plain, share
from fp4scope.report.section import Cell, Column, Section, naming, texts
from fp4scope.treatments import FEWEST_TOKENS

_SEEN = ("count", "fewest", "median", "most", "few")


def about_routing(found: Findings) -> list[Section]:
    """All that is known of routing and of experts; nothing of a model without them."""
    return [*routing(found), *replay(found), *routers(found), *experts_seen(found)]


def routing(found: Findings) -> Iterator[Section]:
    """What whole models leave of the full-precision model's routing, if it has routers."""
    columns = [
        naming("format"), naming("precision"), Column("experts of a token kept", "experts kept"),
        Column("tokens with the same experts", "same experts"),
        Column("gate weight in common", "gate weight"), Column("places moved", "places moved"),
        Column("KL of routers, nats", "router KL"),
    ]  # fmt: skip
    rows = [
        [Cell(row["format"]), Cell(row["precision"])]
        + [share(row[name]) for name in ("kept", "same", "weight", "load")]
        + [plain(row["kl"])]
        for row in found.routing.where(level="model")
    ]
    if rows:
        yield Section(
            "Routing, against the full-precision model",
            columns,
            rows,
            note="Means over routers and tokens. Full precision is the ceiling: its own perturbed "
            "realisations, in which tokens near a tie go to other experts by rounding alone. "
            "Places moved: how much of the load is at other experts in a window. KL: from the "
            "full-precision model's distribution over experts, where routers are a softmax.",
            id="routing",
        )


def replay(found: Findings) -> Iterator[Section]:
    """How much of what quantizing costs is that tokens go to other experts."""
    parts = {"own": "own routing", "values": "full precision's routing", "routing": "difference"}
    columns = [naming("format"), naming("precision"), naming("quantized")] + [
        Column(label, short if measure == "nll" or part == "routing" else None, group)
        for measure, group in (("nll", labels.EFFECT), ("kl", "KL, millinats per token"))
        for (part, label), short in zip(
            parts.items(), ("own", "replayed", _SHORT[measure]), strict=True
        )
    ]
    rows = [
        [*texts(row["format"], row["precision"], _QUANTIZED[row["sites"]])]
        + [
            measured(row, f"{part}_{measure}", muted=is_muted(row, f"p_{measure}"))
            if part == "routing"
            else measured(row, f"{part}_{measure}")
            for measure in ("nll", "kl")
            for part in parts
        ]
        for row in found.replay
    ]
    if rows:
        yield Section(
            "How much of the damage is routing",
            columns,
            rows,
            intro="The same model with its own routing, and with the full-precision model's choice "
            "of experts and their weights forced upon every token. What that leaves is damage to "
            "values; the difference is damage by routing, paired over windows.",
            id="replay",
        )


_SHORT = {"nll": "difference", "kl": "of KL"}
_QUANTIZED = {"all": "everything", "experts": "experts alone"}


def routers(found: Findings) -> Iterator[Section]:
    """The same at every router, formats side by side."""
    whole = [row for row in found.routers if not row["unit"]]
    models = list(dict.fromkeys((row["format"], row["precision"]) for row in whole))
    by_router: dict[tuple[int, str], dict[tuple[str, str], Mapping[str, Any]]] = {}
    for row in whole:
        at = by_router.setdefault((row["block"], row["experts"]), {})
        at[row["format"], row["precision"]] = row
    measures = [("kept", "experts kept", share), ("weight", "gate weight", share)]
    if any(row["kl"] is not None for row in whole):
        measures.append(("kl", "KL, nats", plain))
    columns = [naming("block")] + [
        Column(label, label, " ".join(model).strip())
        for model in models
        for _, label, _ in measures
    ]
    rows = [
        [Cell(str(block), value=block)]
        + [
            show(of[model][name]) if model in of else Cell()
            for model in models
            for name, _, show in measures
        ]
        for (block, _), of in by_router.items()
    ]
    if rows:
        yield Section("Routing by block", columns, rows, id="routers-table")


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
