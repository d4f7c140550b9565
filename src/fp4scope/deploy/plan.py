"""What of a checkpoint is stored how, so that an engine serves a recipe. No weight is read here.

Engines load q, k and v as one matrix, gate and up as another, and all experts of a block at once:
those have one scheme, and one tensor scale each. What cannot be served is refused by name.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fp4scope.deploy.schemes import Scheme, scheme_of, served_otherwise
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.errors import ModelError, StudyError
from fp4scope.formats import BlockFormat
from fp4scope.groups import Group, fused_groups, is_routed, tensor_groups
from fp4scope.models import Piece, Source
from fp4scope.recipes import Site, Sites
from fp4scope.treatments import Setting

Scale = tuple[str, int | None]
"""What shares a tensor scale: the first of its sites, and an expert of it."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A linear of a checkpoint that is stored in a format.

    Attributes:
        key: The tensor of its weight.
        module: What lists of targets call it.
        site: What the recipe calls it.
        scheme: How it is stored and served.
        format: Of its weight.
        scale: What it shares a tensor scale with.
        input_amax: What the static scale of its inputs comes from; None without one.
        size: Outputs and inputs.
    """

    key: str
    module: str
    site: str
    scheme: Scheme
    format: BlockFormat
    scale: Scale
    input_amax: float | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Export:
    """All that an export stores.

    Attributes:
        written: The recipe.
        packed: Linears in a format, in the order of the model.
        plain: Linears in full precision.
        notes: How what is served differs from what was measured.
    """

    written: WrittenRecipe
    packed: tuple[Packed, ...]
    plain: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def schemes(self) -> dict[Scheme, list[Packed]]:
        """Linears by scheme."""
        found: dict[Scheme, list[Packed]] = {}
        for each in self.packed:
            found.setdefault(each.scheme, []).append(each)
        return found

    @property
    def by_key(self) -> dict[str, Packed]:
        """Linears by the tensor of their weight."""
        return {each.key: each for each in self.packed}


def plan_export(written: WrittenRecipe, source: Source) -> Export:
    """How each linear of a checkpoint is stored.

    Raises:
        ModelError: A weight is stored in a way that is not known.
        StudyError: The recipe is of another model, no engine serves it, or it lacks what an engine
            needs.
    """
    sites, pieces = source.sites, source.pieces
    written.require_sites(sites)
    recipe = written.recipe
    if recipe.replay:
        raise StudyError(
            "the recipe replays the full-precision model's routing, which no engine does; leave "
            "`replay` out"
        )
    _require_no_others(written, sites)
    packed: list[Packed] = []
    plain: list[str] = []
    for group in fused_groups(sites):
        setting = _setting(written, group)
        if setting is None:
            plain += [piece.module for site in group.sites for piece in pieces[site.name]]
            continue
        if source.tied and group.block is None:
            raise StudyError(
                f"{group.sites[0].name} shares its weight with the embeddings, which no engine "
                "loads quantized; leave it in full precision"
            )
        packed += _of_group(written, group, setting, pieces)
    if not packed:
        raise StudyError("the recipe quantizes no linear, so there is nothing to export")
    known = dict.fromkeys([*plain, *source.unquantized])
    return Export(written, tuple(packed), tuple(known), tuple(_notes(written, sites)))


def _require_no_others(written: WrittenRecipe, sites: Sites) -> None:
    """Refuse what is quantized beside linears, and weights that several blocks share."""
    for site in sites:
        setting = written.recipe.at(site.name)
        if setting is None:
            continue
        if not site.is_linear:
            raise StudyError(
                f"{site.name} is no linear: the cache and attention are options of the engine "
                "when it starts, so leave them out of a recipe that is exported"
            )
        if len(sites.places[site.key]) > 1:
            raise StudyError(
                f"the weight of {site.name} belongs to several blocks, which no engine is known to "
                "load quantized; leave it in full precision"
            )


def _setting(written: WrittenRecipe, group: Group) -> Setting | None:
    """What all of a group have.

    Raises:
        StudyError: They do not have the same.
    """
    found = {site.name: written.recipe.at(site.name) for site in group.sites}
    (first, setting), *others = found.items()
    for name, other in others:
        if other != setting:
            said = ["full precision" if s is None else s.format for s in (setting, other)]
            raise StudyError(
                f"{first} has {said[0]} and {name} {said[1]}, but engines load them as one; give "
                "all of them one setting"
            )
    return setting


def _of_group(
    written: WrittenRecipe,
    group: Group,
    setting: Setting,
    pieces: Mapping[str, Sequence[Piece]],
) -> Iterator[Packed]:
    scheme = scheme_of(setting, group.sites[0].name)
    assert setting.weight is not None
    fmt = setting.weight.format
    amaxes = _input_amaxes(written, group) if scheme.static else {}
    for together in tensor_groups(group):
        for site in together:
            if not pieces[site.name]:
                raise ModelError(
                    f"the checkpoint stores the weight of {site.name} in a way that export does "
                    "not know (fused experts in one tensor, or transposed); leave it in full "
                    "precision"
                )
            if fmt.block_size > 1 and site.cols % fmt.block_size:
                raise StudyError(
                    f"{site.name} has {site.cols} inputs, which blocks of {fmt.block_size} do not "
                    f"divide, so no engine loads it in {fmt.name}; leave it in full precision"
                )
            for piece in pieces[site.name]:
                yield Packed(
                    key=piece.key,
                    module=piece.module,
                    site=site.name,
                    scheme=scheme,
                    format=fmt,
                    scale=(together[0].name, piece.expert),
                    input_amax=amaxes.get(together[0].name),
                    size=(piece.rows, piece.cols),
                )


def _input_amaxes(written: WrittenRecipe, group: Group) -> dict[str, float]:
    """The amax of what enters those that share a scale, by the first of them.

    Experts that no token of the calibration reached take the largest of their layer: without a
    scale an engine divides by zero.
    """
    found = {
        together[0].name: max(_input_amax(written, site) for site in together)
        for together in tensor_groups(group)
    }
    for together in tensor_groups(group):
        if not found[together[0].name] and is_routed(together[0]):
            layer = [s for s in group.sites if s.projection == together[0].projection]
            found[together[0].name] = max(_input_amax(written, site) for site in layer)
    return found


def _input_amax(written: WrittenRecipe, site: Site) -> float:
    for name in (site.name, site.product):
        if name in written.input_amax:
            return written.input_amax[name]
    raise StudyError(
        f"the recipe has no input_amax of {site.name}, from which the static scale of its NVFP4 "
        "inputs comes; write the recipe with `fp4scope recipe`, or quantize the weight alone"
    )


def _notes(written: WrittenRecipe, sites: Sites) -> Iterator[str]:
    """How what is served differs from what was measured."""
    linears = [site for site in sites if site.is_linear]
    settings = Counter(s for site in linears if (s := written.recipe.at(site.name)) is not None)
    said: Counter[str] = Counter()
    for setting, count in settings.items():
        if setting.input is not None:
            scheme = scheme_of(setting, "a site")
            if text := served_otherwise(setting.input, scheme.kind):
                said[text] += count
    yield from (f"{text} ({count} sites)" for text, count in said.items())
    shared = any(
        len(together) > 1 and s is not None and s.weight and s.weight.format.uses_tensor_amax
        for group in fused_groups(sites)
        for together in tensor_groups(group)
        for s in [written.recipe.at(together[0].name)]
    )
    if written.scales == "own" and shared:
        yield (
            "tensor scales of weights were measured one for each linear; they are stored one for "
            "all that engines fuse, which changes a few weights"
        )
