"""The units of a study: which sites of a model are switched together. Pure data."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from fp4scope.design.contrasts import Unit
from fp4scope.errors import UnitError
from fp4scope.recipes import Sites
from fp4scope.study import Direction, Level, Study

_K = TypeVar("_K")


def units_of(study: Study, sites: Sites) -> Iterator[tuple[Unit, tuple[Direction, ...]]]:
    """Every unit, and the directions in which its effect is asked for."""
    if directions := study.question.directions(Level.PROJECTIONS):
        for unit in _projections(sites):
            yield unit, directions
    if directions := study.question.directions(Level.BLOCKS):
        for block, names in _grouped(
            (s.block, s.name) for s in sites if s.block is not None
        ).items():
            yield Unit("blocks", "", block, names), directions
    if directions := study.question.directions(Level.EXPERTS):
        for (block, path), names in _experts(sites).items():
            yield Unit("experts", path, block, names), directions
    for pattern in study.question.patterns:
        yield Unit("patterns", pattern, None, sites.match(pattern)), study.question.directions(None)
    if kept := study.question.keep:
        together = frozenset().union(*map(sites.match, kept))
        yield Unit("patterns", " or ".join(kept), None, together), (Direction.KEEP,)
    if directions := study.question.directions(Level.LAYERS):
        for unit in _chosen_layers(study, sites):
            yield unit, directions


def of_level(level: Level, study: Study, sites: Sites) -> Iterator[Unit]:
    """Projections, or the layers that a study asks for."""
    return _projections(sites) if level is Level.PROJECTIONS else _chosen_layers(study, sites)


def _projections(sites: Sites) -> Iterator[Unit]:
    for projection, names in _grouped((s.projection, s.name) for s in sites).items():
        yield Unit("projections", projection, None, names)


def _chosen_layers(study: Study, sites: Sites) -> Iterator[Unit]:
    """Those that the study asks for."""
    chosen = frozenset().union(*map(sites.match, study.question.layers or ("*",)))
    return (unit for unit in _layers(sites) if chosen & unit.sites)


def _experts(sites: Sites) -> dict[tuple[int, str], frozenset[str]]:
    """All of one routed expert of a block, by its path there.

    Raises:
        UnitError: The model has none.
    """
    single = [
        (block, site)
        for block, members in enumerate(sites.blocks)
        for site in members
        if site.expert is not None or "*" in site.projection
    ]
    if not single:
        raise UnitError("sweep: experts, but the model has no routed experts that are quantized")
    return _grouped(((block, s.path.rpartition(".")[0]), s.name) for block, s in single)


def _layers(sites: Sites) -> Iterator[Unit]:
    """One projection in one block each, projection by projection."""
    inside = ((block, site) for block, members in enumerate(sites.blocks) for site in members)
    layers = _grouped(((s.projection, block), s.name) for block, s in inside)
    order = {projection: place for place, projection in enumerate(sites.projections)}
    for projection, block in sorted(layers, key=lambda layer: (order[layer[0]], layer[1])):
        yield Unit("layers", projection, block, layers[projection, block])


def _grouped(pairs: Iterable[tuple[_K, str]]) -> dict[_K, frozenset[str]]:
    """Names by key, keys in the order in which they come first."""
    found: dict[_K, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return {key: frozenset(names) for key, names in found.items()}
