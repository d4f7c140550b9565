"""Results of version 4, which 0.1 wrote: variants named by strings, without their sites.

A variant has a format, operands, a direction, a level and a unit. `jitter` is an all-quantized or
the full-precision model again under perturbations, compared with itself; `replica` the same,
compared with full precision. Both are further replicas of one recipe now.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, TypeAdapter
from typing_extensions import TypedDict

from fp4scope.design import NOTHING, Contrast, Unit, of_units, whole
from fp4scope.errors import UnitError
from fp4scope.formats import FORMATS
from fp4scope.ledger.results import Results
from fp4scope.ledger.rows import Ledger
from fp4scope.ledger.schema import (
    STRICT,
    Block,
    Conditions,
    Count,
    Number,
    Positive,
    Replica,
    Text,
)
from fp4scope.recipes import Recipe, Site, Sites
from fp4scope.study import Direction, Operands
from fp4scope.treatments import Amax, Configuration

VERSION = 4
_LEVELS = {
    "components": "projections",
    "blocks": "blocks",
    "cells": "layers",
    "patterns": "patterns",
}
_DIRECTIONS = {"restore": "keep", "isolate": "only"}
_PRECISION = {
    "weights+activations": "W{0}A{0}", "weights": "W{0}A16", "activations": "W16A{0}",
}  # fmt: skip
_SEARCHED = ("format", "operands", "level", "direction")


class _Variant(TypedDict, total=False):
    format: str
    operands: Literal["", "weights+activations", "weights", "activations"]
    direction: Literal["reference", "baseline", "jitter", "replica", "restore", "isolate"]
    level: Literal["model", "components", "blocks", "cells", "patterns"]
    unit: Text
    block: Block | None


def _real(variant: _Variant) -> _Variant:
    """Only what a study can measure."""
    direction, level = variant.get("direction"), variant.get("level", "model")
    if direction is None or (direction in _DIRECTIONS) == (level == "model"):
        raise ValueError(f"no variant has direction {direction!r} and level {level!r}")
    name, operands = variant.get("format"), variant.get("operands", "")
    plain = name == "reference" and not operands and direction in ("reference", "jitter")
    if not plain and (name not in FORMATS or not operands or direction == "reference"):
        raise ValueError(f"{name!r} with operands {operands!r} is no {direction}")
    named, placed = bool(variant.get("unit")), variant.get("block") is not None
    if named != (level in ("components", "cells", "patterns")) or placed != (
        level in ("blocks", "cells")
    ):
        raise ValueError(f"its unit or its block is not that of level {level!r}")
    return variant


_VariantFields = Annotated[_Variant, AfterValidator(_real)]


class _Place(TypedDict):
    windows: list[Count]
    replicas: list[Replica]
    tokens: list[Positive]


class _Sums(TypedDict):
    variant: _VariantFields
    place: Count
    nll: list[Number]
    kl: list[Number]
    top1: list[Count]


class _Estimate(TypedDict):
    variant: _VariantFields
    nats: list[Number]


class _Estimates(TypedDict):
    windows: list[Count]
    tokens: list[Positive]
    units: list[_Estimate]


class _Projection(TypedDict):
    projection: Text
    path: Text
    blocks: list[Block]


@STRICT
class Fields(Conditions):
    version: Literal[4]
    paths: list[_Projection]
    places: list[_Place]
    observations: list[_Sums]
    estimates: _Estimates


_TODAY = {"component": "projection", "components": "projections", "cells": "layers"}


def _renamed(data: Any) -> Any:  # noqa: ANN401
    """Under the names of today."""
    if isinstance(data, list):
        return [_renamed(item) for item in data]
    if isinstance(data, dict):
        return {_TODAY.get(name, name): _renamed(value) for name, value in data.items()}
    return data


def _in_words_of_today(data: Any) -> Any:  # noqa: ANN401
    if not isinstance(data, dict):
        return data
    model, protocol = data.get("model"), data.get("protocol")
    paths = model.pop("projections", []) if isinstance(model, dict) else []
    stopping = protocol.get("stopping") if isinstance(protocol, dict) else None
    families = stopping.get("families") if isinstance(stopping, dict) else None
    for family in families if isinstance(families, list) else ():
        if isinstance(family, dict):
            fmt, operands, level, direction = (str(family.pop(name, None)) for name in _SEARCHED)
            bits = FORMATS[fmt].element.bits if fmt in FORMATS else 4
            family["precision"] = _PRECISION.get(operands, "").format(bits)
            family |= {"format": fmt, "level": _LEVELS.get(level, "")}
            family["direction"] = _DIRECTIONS.get(direction, "")
    told = {name: _renamed(data.get(name)) for name in ("model", "activations")}
    return data | told | {"paths": _renamed(paths)}


FILE = TypeAdapter(Annotated[Fields, BeforeValidator(_in_words_of_today)])


def results(data: Fields) -> Results:
    """The same in today's words.

    Raises:
        ValueError: Something in it does not fit the rest.
    """
    sites = _sites(data)
    amax = data["protocol"].get("activation_scale", "calibrated")
    reader = _Reader(sites, Amax.CALIBRATED if amax == "calibrated" else Amax.WINDOW)
    numerics = data["study"].get("numerics")
    counted = numerics.get("replicas", 1) if isinstance(numerics, dict) else 1
    ledger = Ledger(counted=counted if isinstance(counted, int) else 1)
    contrasts: dict[Contrast, None] = {}
    seen: set[tuple[Any, ...]] = set()
    for i, sums in enumerate(data["observations"]):
        variant = sums["variant"]
        key = tuple(variant.get(name) for name in _Variant.__annotations__)
        if key in seen or sums["place"] >= len(data["places"]):
            raise ValueError(f"observations[{i}]: its variant comes twice, or has no place")
        seen.add(key)
        subject, contrast = reader.read(variant)
        if contrast is not None:
            contrasts[contrast] = None
        _take(ledger, subject, sums, data["places"][sums["place"]])
    estimates = data["estimates"]
    for unit in estimates["units"]:
        subject, contrast = reader.read(unit["variant"])
        if contrast is None or contrast.unit is None:
            raise ValueError("estimates: a control is not estimated")
        contrasts[contrast] = None
        rows = zip(estimates["windows"], estimates["tokens"], unit["nats"], strict=True)
        for window, tokens, nats in rows:
            ledger.open(subject).put(window, 0, tokens, {"gradient": nats})
    return Results.under(data, sites=reader.sites, contrasts=list(contrasts), ledger=ledger)


def _take(ledger: Ledger, subject: Recipe, sums: _Sums, place: _Place) -> None:
    again = sums["variant"].get("direction") == "jitter" and subject != NOTHING
    kl, top1 = ("rerun_kl", "rerun_top1") if again else ("kl", "top1")
    rows = ledger.open(subject)
    if not rows.indices:
        values = {"nll": sums["nll"], kl: sums["kl"], top1: sums["top1"]}
        rows.indices, rows.replicas = place["windows"], place["replicas"]
        rows.tokens, rows.values = place["tokens"], dict(values)
        return
    where = zip(place["windows"], place["replicas"], place["tokens"], strict=True)
    columns = zip(sums["nll"], sums["kl"], sums["top1"], strict=True)
    for (window, replica, tokens), (nll, own_kl, own_top1) in zip(where, columns, strict=True):
        rows.put(window, replica, tokens, {"nll": nll, kl: own_kl, top1: own_top1})


def _sites(data: Fields) -> Sites:
    """One site for each layer that the file knows of; its real name was not kept."""
    found = {(b, of["projection"]): of["path"] for of in data["paths"] for b in of["blocks"]}
    if not found:
        layers = [(record.block, record.projection) for record in data["activations"]]
        variants: Iterable[Mapping[str, Any]] = [
            *(sums["variant"] for sums in data["observations"]),
            *(unit["variant"] for unit in data["estimates"]["units"]),
        ]
        layers += [
            (v.get("block") or 0, v.get("unit") or "")
            for v in variants
            if v.get("level") == "cells"
        ]
        found = {(block, projection): projection for block, projection in layers}
    most = max((block for block, _ in found), default=-1) + 1
    return Sites(
        (
            Site(name=f"blocks.{block}.{path}", block=block, projection=name, rows=0, cols=0)
            for (block, name), path in sorted(found.items(), key=lambda item: item[0][0])
        ),
        max(most, data["model"].get("blocks", 0)),
    )


class _Reader:
    """Variants to recipes and contrasts."""

    def __init__(self, sites: Sites, amax: Amax) -> None:
        self.sites = sites
        self._amax = amax

    def read(self, variant: _Variant) -> tuple[Recipe, Contrast | None]:
        """What was run, and what it was run for; None for the reference and further replicas."""
        direction = variant.get("direction", "")
        if variant.get("format") == "reference":
            return NOTHING, None
        operands = Operands(variant.get("operands"))
        named = Configuration.parse(variant.get("format", ""))
        setting = named.setting(operands.treated, self._amax)
        if direction in ("baseline", "jitter", "replica"):
            return Recipe(setting), whole(setting) if direction == "baseline" else None
        [contrast] = of_units([self._unit(variant)], setting, Direction(direction))
        return contrast.own, contrast

    def _unit(self, variant: _Variant) -> Unit:
        level, name = _LEVELS[variant.get("level", "")], variant.get("unit", "")
        block = variant.get("block")
        if level == "patterns":
            return Unit(level, name, None, self._matching(name))
        chosen = frozenset(
            site.name
            for site in self.sites
            if block in (None, site.block) and name in ("", site.projection)
        )
        return Unit(level, name, block, chosen or self._named(name or f"block {block}"))

    def _matching(self, pattern: str) -> frozenset[str]:
        """Its sites, or a site of that name where names do not tell."""
        try:
            return self.sites.match(pattern)
        except (UnitError, IndexError):
            return self._named(pattern)

    def _named(self, name: str) -> frozenset[str]:
        if name not in self.sites.by_name:
            site = Site(name=name, block=0, projection=name, rows=0, cols=0)
            self.sites = Sites((*self.sites, site), max(1, len(self.sites.blocks)))
        return frozenset([name])
