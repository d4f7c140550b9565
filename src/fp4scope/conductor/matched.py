"""What a study is about to quantize, counted before the work starts.

A pattern that matches nothing is an error; one that matches too much, or too little, is a number
that a user sees here.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from fp4scope.design import Design
from fp4scope.recipes import Recipe, Sites

_MOST = 8
"""Lines about recipes: a configuration with many exceptions has one for each."""


def matched(asked: Design, sites: Sites) -> Iterator[str]:
    """Lines such as `quantized: o_proj: 24, down_proj: 24; in nvfp4 W4A4`."""
    whole = [c.family.setting for c in asked.contrasts if c.unit is None]
    if whole:
        settings = dict.fromkeys(f"{s.format} {s.precision}" for s in whole)
        yield f"quantized: {_counts(sites.by_name, sites)}; in {', '.join(settings)}"
    units = {c.unit.name: c.unit for c in asked.contrasts if c.unit is not None}
    for name, unit in units.items():
        if unit.level == "patterns":
            yield f"pattern {name}: {_counts(unit.sites, sites)}"
    for contrast in asked.given[:_MOST]:
        name = "" if contrast.unit is None else contrast.unit.name
        yield f"recipe {name}: {'; '.join(_by_setting(contrast.own, sites))}"
    if (more := len(asked.given) - _MOST) > 0:
        yield f"and {more} more recipes"


def _by_setting(recipe: Recipe, sites: Sites) -> Iterator[str]:
    """`o_proj: 24, nvfp4 W4A4` for each setting, the most common first."""
    found: dict[str, list[str]] = {}
    for name in sites.by_name:
        setting = recipe.at(name)
        how = "full precision" if setting is None else f"{setting.format} {setting.precision}"
        found.setdefault(how, []).append(name)
    for how, names in sorted(found.items(), key=lambda item: -len(item[1])):
        yield f"{_counts(names, sites)}, {how}"


def _counts(names: Iterable[str], sites: Sites) -> str:
    counted = Counter(sites.by_name[name].projection for name in names)
    return ", ".join(f"{p}: {counted[p]}" for p in sites.projections if counted[p])
