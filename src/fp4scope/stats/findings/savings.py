"""What keeping each unit that engines have saves, beside what it stores more.

A unit is what engines hold as one ({q, k, v}, {gate, up}, the experts of a block), in one block or
in all of them. Its saving is that of a designed sweep, or the sum of what its layers or projections
save one at a time; a sum is an approximation, for savings need not add up. Sums are taken window by
window, so that their intervals are right.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fp4scope.design import Contrast
from fp4scope.groups import Group, fused_groups
from fp4scope.ledger import Results
from fp4scope.recipes import Site
from fp4scope.stats.findings.effects import Effects, effects
from fp4scope.stats.findings.mixtures import DESIGNED
from fp4scope.stats.findings.pairing import Pairing
from fp4scope.stats.findings.storage import Storage, sizes_known
from fp4scope.stats.inference.intervals import mean
from fp4scope.stats.inference.multiple import SIGNIFICANCE, holm, p_value
from fp4scope.stats.inference.series import Series, aligned
from fp4scope.table import Table
from fp4scope.treatments import Setting

SAVING_COLUMNS = (
    "format", "precision", "direction", "unit", "block", "added", "delta_nll", "delta_nll_stderr",
    "delta_nll_low", "delta_nll_high", "delta_kl", "delta_kl_stderr", "delta_kl_low",
    "delta_kl_high", "p_holm", "p_holm_kl", "parameters", "bytes_kept", "bits_kept",
    "nll_per_mb", "kl_per_mb", "windows",
)  # fmt: skip


@dataclass(frozen=True)
class _Unit:
    """What an engine holds as one, in one block, or in all of them (no block)."""

    name: str
    block: int | None
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class _Saving:
    """What a unit costs by window, and of how many effects that is the sum."""

    unit: _Unit
    nll: Series
    kl: Series
    added: int


def saving_table(results: Results) -> Table:
    """Every unit under every format, those first that save most of NLL for each byte.

    Differences are in nats per token, `bytes_kept` is what keeping the unit stores more,
    `bits_kept` the average bits of the model then, and `..._per_mb` nats for each million bytes.
    """
    if not sizes_known(results):
        return Table(SAVING_COLUMNS, [])
    storage = Storage(results)
    rows = [
        row
        for (setting, direction), family in _families(results).items()
        for row in _rows(results, storage, setting, direction, family)
    ]
    return Table(SAVING_COLUMNS, rows)


def _rows(
    results: Results,
    storage: Storage,
    setting: Setting,
    direction: str,
    family: Sequence[_Saving],
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    found = [
        {"nll": mean(one.nll.values, anytime=results.anytime),
         "kl": mean(one.kl.values, anytime=results.anytime)}
        for one in family
    ]  # fmt: skip
    tested = {
        measure: holm([p_value(of[measure], anytime=results.anytime) for of in found])
        for measure in ("nll", "kl")
    }
    for place, (one, of) in enumerate(zip(family, found, strict=True)):
        more = storage.kept(setting, [site.key for site in one.unit.sites])
        row: dict[str, object] = {
            "format": setting.format, "precision": setting.precision, "direction": direction,
            "unit": one.unit.name, "block": one.unit.block, "added": one.added,
            "parameters": sum(site.parameters for site in one.unit.sites),
            "bytes_kept": more.bytes, "bits_kept": more.bits,
            "p_holm": tested["nll"][place], "p_holm_kl": tested["kl"][place],
            "windows": of["nll"].n,
        }  # fmt: skip
        for measure, estimate in of.items():
            row |= estimate.columns(f"delta_{measure}")
            row[f"{measure}_per_mb"] = more.per_mb(estimate.mean)
        rows.append(row)
    return sorted(rows, key=lambda row: -float(row["nll_per_mb"] or 0.0))  # type: ignore[arg-type]


def _families(results: Results) -> dict[tuple[Setting, str], list[_Saving]]:
    """By setting and direction. Of a setting that a designed sweep has, only its effects."""
    groups = fused_groups(results.sites)
    found = _designed(results)
    known = {setting for setting, _ in found}
    pairings = [Pairing.of(results, measure) for measure in ("nll", "kl")]
    members: dict[tuple[Setting, str], list[Contrast]] = {}
    for contrast in results.contrasts:
        family = contrast.family
        if contrast.unit is not None and family.direction is not None:
            key = family.setting, family.direction.value
            if family.setting not in known and family.level in ("projections", "layers"):
                members.setdefault(key, []).append(contrast)
    for key, contrasts in members.items():
        if key[1] == "only" and (key[0], "keep") in members:
            continue
        savings = [
            saving
            for unit in (*_everywhere(groups), *_in_blocks(groups))
            for saving in _summed(unit, contrasts, *pairings)
        ]
        if savings:
            found[key] = savings
    return found


def _in_blocks(groups: Iterable[Group]) -> Iterator[_Unit]:
    for group in groups:
        yield _Unit(group.name, group.block, group.sites)


def _everywhere(groups: Iterable[Group]) -> Iterator[_Unit]:
    """The groups of one name in all blocks."""
    by_name: dict[str, list[Group]] = {}
    for group in groups:
        if group.block is not None:
            by_name.setdefault(group.name, []).append(group)
    for name, of in by_name.items():
        if len(of) > 1:
            yield _Unit(name, None, tuple(site for group in of for site in group.sites))


def _summed(
    unit: _Unit, contrasts: Sequence[Contrast], nll: Pairing, kl: Pairing
) -> Iterator[_Saving]:
    """The sum over contrasts of one level that make up the unit's sites, if there are such."""
    wanted = {site.key for site in unit.sites}
    level = "projections" if unit.block is None else "layers"
    own = [
        c
        for c in contrasts
        if c.family.level == level and c.unit is not None and c.unit.sites <= wanted
    ]
    if not own or set[str]().union(*(c.unit.sites for c in own if c.unit is not None)) != wanted:
        return
    sums = [_sum(pairing, own) for pairing in (nll, kl)]
    if sums[0] is not None and sums[1] is not None:
        yield _Saving(unit, sums[0], sums[1], len(own))


def _sum(pairing: Pairing, contrasts: Sequence[Contrast]) -> Series | None:
    found = [pairing.difference(contrast) for contrast in contrasts]
    known = [series for series in found if series is not None]
    if len(known) < len(found):
        return None
    windows, values = aligned(known)
    return Series(windows, values.sum(axis=1)) if len(windows) else None


def _together(found: Effects, groups: Sequence[int], setting: int) -> Series:
    """What these groups cost together, window by window."""
    return Series(found.windows, found.by_window[:, groups, setting].sum(axis=1))


def _designed(results: Results) -> dict[tuple[Setting, str], list[_Saving]]:
    """Effects of a designed sweep: each group, and those of one name together."""
    nll, kl = effects(results, "nll"), effects(results, "kl")
    if nll is None or kl is None:
        return {}
    places = {group: g for g, group in enumerate(kl.groups)}
    members: Mapping[_Unit, list[int]] = {
        unit: [places[group] for group in kl.groups if set(group.sites) <= set(unit.sites)]
        for unit in (*_everywhere(kl.groups), *_in_blocks(kl.groups))
    }
    return {
        (setting, DESIGNED): [
            _Saving(unit, _together(nll, at, s), _together(kl, at, s), len(at))
            for unit, at in members.items()
        ]
        for s, setting in enumerate(kl.settings)
    }


def saves(row: Mapping[str, object], measure: str = "nll") -> bool:
    """Whether keeping a unit saves significantly, among all units of its format."""
    p = row["p_holm" if measure == "nll" else "p_holm_kl"]
    delta = row[f"delta_{measure}"]
    return isinstance(p, float) and p <= SIGNIFICANCE and isinstance(delta, float) and delta > 0
