"""What a study asks for: recipes and signed contrasts, small however many sites there are."""

import pytest

from fp4scope.design import NOTHING, design
from fp4scope.errors import UnitError
from fp4scope.recipes import Recipe, Site, Sites
from fp4scope.study import Direction, Study

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def model(blocks=2, experts=1):
    """Blocks of experts, each with three projections."""
    return Sites(
        [
            Site(
                name=f"layers.{b}.experts.{e}.{c}",
                block=b,
                projection=f"experts.{e}.{c}" if experts > 1 else c,
                rows=8,
                cols=16,
            )
            for b in range(blocks)
            for e in range(experts)
            for c in PROJECTIONS
        ],
        blocks,
    )


def asked(sites, **options):
    return design(Study.build(**{"model": "m", "all_quantized": ""} | options), sites)


def test_signs_say_that_positive_costs():
    sites = model()
    for contrast in asked(sites, sweep="projections,layers", formats="nvfp4").contrasts:
        (more, plus), (less, minus) = contrast.terms
        assert (plus, minus) == (1, -1)
        done = [dict(recipe.in_block(sites)) for recipe in (more, less)]
        assert done[1].items() < done[0].items()
        switched = set(done[0]) - set(done[1])
        assert switched == (contrast.unit.sites if contrast.unit else set(sites.by_name))


def test_directions_compare_with_the_end_that_they_start_from():
    sites = model()
    for contrast in asked(sites, sweep="layers", formats="mxfp4").contrasts[1:]:
        recipes = [recipe for recipe, _ in contrast.terms]
        keep = contrast.family.direction is Direction.KEEP
        assert (Recipe(contrast.family.setting) if keep else NOTHING) in recipes
        assert contrast.own in recipes
        assert contrast.own not in (NOTHING, Recipe(contrast.family.setting))


def test_what_is_kept_together_is_one_unit_in_one_direction():
    sites = model(blocks=3)
    keep = ["*.1.*", "re:.*down_proj"]
    _, kept = asked(sites, sweep="", keep=keep, formats="nvfp4").contrasts
    assert kept.family.direction is Direction.KEEP
    assert kept.unit.name == "*.1.* or re:.*down_proj"
    assert kept.unit.sites == sites.match("*.1.*") | sites.match("down_proj")
    assert dict(kept.own.in_block(sites)).keys() == set(sites.by_name) - kept.unit.sites
    with pytest.raises(UnitError, match="matches none"):
        asked(sites, sweep="", keep=["*.1.*", "nothing"], formats="nvfp4")


def test_every_unit_of_every_level_once_in_each_direction():
    sites = model(blocks=3)
    found = asked(
        sites, sweep="projections,blocks,layers", patterns=["*.1.*"], formats="nvfp4"
    ).contrasts
    by_level = {}
    for contrast in found[1:]:
        key = contrast.family.level, contrast.family.direction
        by_level.setdefault(key, []).append(contrast.unit)
    for direction in Direction:
        sizes = {level: len(set(units)) for (level, d), units in by_level.items() if d is direction}
        assert sizes == {"projections": 3, "blocks": 3, "patterns": 1, "layers": 9}
    layers = [(u.name, u.block) for u in by_level["layers", Direction.KEEP]]
    assert layers == [(c, b) for c in PROJECTIONS for b in range(3)]


def test_a_format_without_a_tensor_scale_is_one_recipe_whatever_its_amax():
    sites = model()
    recipes = [
        asked(sites, formats="mxfp4,nvfp4", activation_scale=scale, sweep=()).contrasts
        for scale in ("calibrated", "dynamic")
    ]
    mxfp4, nvfp4 = zip(*([c.own for c in found] for found in recipes), strict=True)
    assert mxfp4[0] == mxfp4[1]
    assert nvfp4[0] != nvfp4[1]


def test_whole_costs_of_further_settings_have_no_units():
    found = asked(model(), formats="nvfp4", baselines="mxfp4:even/weights", sweep="projections")
    assert [c.unit for c in found.contrasts].count(None) == 2
    assert {c.family.setting.precision for c in found.contrasts if c.unit} == {"W4A4"}


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(UnitError, match="matches none of the 6 linears"):
        asked(model(), patterns=["*.lm_head"])


def test_a_kept_site_among_thousands_is_one_base_and_one_edit():
    sites = model(blocks=48, experts=128)
    assert len(sites) == 18432
    found = asked(sites, formats="nvfp4", sweep="layers").contrasts
    assert len(found) == 1 + 2 * 18432
    assert all(len(c.own.edits) == 1 and len(c.own.edited) == 1 for c in found[1:])
