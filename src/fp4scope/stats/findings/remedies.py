"""Remedies: what else was done to the most costly units, where everything else is quantized.

The damage of a unit is what keeping it in full precision saves; a remedy removes a share of it.
Units were chosen on other windows than these. One takes the best of the remedies of a unit, so
that their intervals hold for all of them at once.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from fp4scope.design import Contrast, Unit
from fp4scope.ledger import Results
from fp4scope.stats.findings.attribution import attributions
from fp4scope.stats.findings.pairing import Pairing
from fp4scope.stats.inference.intervals import Estimate, mean, ratio, simultaneous
from fp4scope.stats.inference.series import Floats, Series, aligned
from fp4scope.study import Direction
from fp4scope.table import Table
from fp4scope.treatments import Setting, stored_bits

REMEDY_COLUMNS = (
    "level", "unit", "block", "format", "precision", "cause", "damage", "damage_low", "damage_high",
    "remedy", "removed", "removed_low", "removed_high", "share", "share_low", "share_high",
    "removed_nll", "removed_nll_low", "removed_nll_high", "bits", "bytes", "tried", "windows",
)  # fmt: skip
FULL = "bf16"
"""The name of full precision, as palettes have it."""


def costly_units(
    results: Results, levels: Sequence[str], count: int, windows: range
) -> list[tuple[Unit, Setting]]:
    """The units that cost the most on some windows, each with the setting that it costs it in.

    Cost is KL: what keeping a unit saves, or what quantizing it alone costs where that was not
    measured. Units that cost nothing are left out, and settings that treat one operand.

    Args:
        results: Of the study.
        levels: Of units.
        count: How many of each level and setting.
        windows: By their numbers.
    """
    found: list[tuple[Unit, Setting]] = []
    costs = _costs(results, windows)
    for level in levels:
        for setting in dict.fromkeys(setting for _, setting, _ in costs):
            ways = [
                costs.get((level, setting, way), {}) for way in (Direction.KEEP, Direction.ONLY)
            ]
            own = ways[0] or ways[1]
            ranked = sorted(own, key=lambda unit: -own[unit])
            found += [(unit, setting) for unit in ranked[:count] if own[unit] > 0]
    return found


def _costs(
    results: Results, windows: range
) -> dict[tuple[str, Setting, Direction], dict[Unit, float]]:
    """Mean KL of each unit of linears on these windows, by level, setting and direction."""
    pairing = Pairing(results.ledger, "kl")
    linear = {site.name for site in results.sites if site.is_linear}
    found: dict[tuple[str, Setting, Direction], dict[Unit, float]] = {}
    for contrast in (*results.contrasts, *results.causes):
        unit, family = contrast.unit, contrast.family
        if unit is None or family.direction is None or family.setting.operands != "WA":
            continue
        if any(t is not None and t.fault for t in (family.setting.weight, family.setting.input)):
            continue
        series = pairing.difference(contrast) if unit.sites <= linear else None
        if series is None:
            continue
        chosen = (series.windows >= windows.start) & (series.windows < windows.stop)
        level = "projections" if unit.block is None else "layers"
        own = found.setdefault((level, family.setting, family.direction), {})
        if chosen.any() and family.level in ("causes", level):
            own[Unit(level, unit.name, unit.block, unit.sites)] = float(
                series.values[chosen].mean()
            )
    return found


def remedy_table(results: Results) -> Table:
    """A row for each remedy of each unit and format; the last of a unit keeps it.

    `damage` and `removed` are nats of KL per token, `share` is the second over the first; it is
    left out where the damage is not significantly positive. `bits` are more for each weight of the
    unit, `bytes` for all of them. `tried`: for how many remedies the intervals hold at once.
    """
    causes = attributions(results) if results.remedies else {}
    pairings = {name: Pairing(results.remedied, name) for name in ("kl", "nll")}
    rows: list[dict[str, Any]] = []
    for (unit, setting), contrasts in _by_unit(results).items():
        level = "projections" if unit.block is None else "layers"
        names = {"format": setting.format, "precision": setting.precision}
        labels = {"level": level, "unit": unit.name, "block": unit.block} | names
        labels["cause"] = causes.get(tuple(labels.values()), "")
        kl, nll = (
            [pairing.difference(contrast) for contrast in contrasts]
            for pairing in pairings.values()
        )
        for contrast, found in zip(contrasts, _measured(kl, nll), strict=True):
            rows.append(labels | found | _stored(results, unit, setting, contrast))
    return Table(REMEDY_COLUMNS, rows)


def _by_unit(results: Results) -> dict[tuple[Unit, Setting], list[Contrast]]:
    found: dict[tuple[Unit, Setting], list[Contrast]] = {}
    for contrast in results.remedies:
        if contrast.unit is not None:
            found.setdefault((contrast.unit, contrast.family.setting), []).append(contrast)
    return found


def _measured(
    kl: Sequence[Series | None], nll: Sequence[Series | None]
) -> Iterator[dict[str, Any]]:
    """What each remedy of a unit removes; the last keeps it in full precision."""
    windows, of_kl = aligned([series for series in kl if series is not None])
    _, of_nll = aligned([series for series in nll if series is not None])
    tried = len(kl) - 1
    whole: Floats = of_kl[:, -1]
    damage = mean(whole)
    for place in range(len(kl)):
        row = _columns("damage", damage) | {"tried": tried, "windows": len(windows)}
        own, loss = of_kl[:, place], of_nll[:, place]
        row |= _columns("removed", simultaneous(mean(own), tried))
        row |= _columns("removed_nll", simultaneous(mean(loss), tried))
        known = damage.low is not None and damage.low > 0
        share = ratio(own, whole) if known and place < tried else None
        yield row | ({} if share is None else _columns("share", simultaneous(share, tried)))


def _stored(results: Results, unit: Unit, setting: Setting, contrast: Contrast) -> dict[str, Any]:
    """The remedy's name, and what it stores more."""
    own = contrast.own.at(min(unit.sites))
    sites = [site for site in results.sites if site.name in unit.sites]
    more = sum(
        (stored_bits(own, site.cols) - stored_bits(setting, site.cols)) * site.parameters
        for site in sites
    )
    bits = more / sum(site.parameters for site in sites)
    return {"remedy": FULL if own is None else own.name, "bits": bits, "bytes": more / 8}


def _columns(name: str, found: Estimate) -> dict[str, Any]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
