"""Treatments, settings and recipes: canonical, equal where they do the same, readable back."""

import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fp4scope.errors import FormatError, StudyError, UnitError
from fp4scope.recipes import Recipe, Site, Sites
from fp4scope.treatments import Setting, Treatment

NAMES = [f"model.layers.{b}.{c}" for b in range(2) for c in ("attn.q_proj", "mlp.down_proj")]
SITES = Sites(
    [
        Site(
            name=name, block=int(name.split(".")[2]), projection=name.split(".")[-1], rows=8, cols=c
        )
        for name, c in zip(NAMES, (16, 48, 16, 48), strict=True)
    ],
    blocks=3,
)
SETTINGS = [None, *map(Setting.from_json, ("nvfp4", "mxfp4:even", {"weight": "mxfp8:e4m3"}))]


def plainly(recipe_parts):
    """What base and edits do to each site, by the words: later edits win."""
    base, edits = recipe_parts
    found = dict.fromkeys(NAMES, base)
    for names, setting in edits:
        found |= dict.fromkeys(names, setting)
    return found


parts = st.tuples(
    st.sampled_from(SETTINGS),
    st.lists(st.tuples(st.frozensets(st.sampled_from(NAMES)), st.sampled_from(SETTINGS))),
)


@given(parts)
def test_later_edits_win(recipe_parts):
    recipe = Recipe(recipe_parts[0], tuple(recipe_parts[1]))
    assert {name: recipe.at(name) for name in NAMES} == plainly(recipe_parts)
    done = {n: s for n, s in plainly(recipe_parts).items() if s is not None}
    assert dict(recipe.in_block(SITES)) == done


@given(parts, parts)
def test_one_base_and_one_deed_are_one_recipe(first, second):
    """However edits were ordered, split or overlapping; and another deed is another recipe."""
    one, other = (Recipe(base, tuple(edits)) for base, edits in (first, second))
    if first[0] == second[0]:
        same = plainly(first) == plainly(second)
        assert (one == other) == same
        assert (one.id() == other.id()) == same
        assert (hash(one) == hash(other)) >= same


@given(parts)
def test_json_and_yaml_hold_all_of_it(recipe_parts):
    recipe = Recipe(recipe_parts[0], tuple(recipe_parts[1]))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), SITES) == recipe
    assert Recipe.from_json(yaml.safe_load(yaml.safe_dump(recipe.to_json())), SITES) == recipe


def test_a_user_writes_patterns():
    text = """
    base: nvfp4
    edits:
      - sites: down_proj
        setting: null
      - sites: ['re:.*layers\\.1\\..*q_proj$']
        setting: {weight: mxfp8:e4m3}
    """
    recipe = Recipe.from_json(yaml.safe_load(text), SITES)
    written = {name: recipe.at(name) and recipe.at(name).to_json() for name in NAMES}
    assert written == {
        NAMES[0]: {"weight": "nvfp4", "input": "nvfp4"},
        NAMES[1]: None,
        NAMES[2]: {"weight": "mxfp8:e4m3:floor"},
        NAMES[3]: None,
    }


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], StudyError, "not part of a recipe"),
        ({"bases": None}, StudyError, "'bases' is not part of a recipe"),
        ({"base": "nvpf4"}, FormatError, "did you mean nvfp4"),
        ({"base": {}}, StudyError, "treats neither operand"),
        ({"base": {"weights": "nvfp4"}}, StudyError, "did you mean weight"),
        ({"base": 4}, StudyError, "4 is not a setting"),
        ({"base": {"input": {"amax": "window"}}}, StudyError, "names no format"),
        ({"base": {"input": {"format": "nvfp4", "amax": "x"}}}, StudyError, "unknown 'x'"),
        ({"edits": "x"}, StudyError, "edits is 'x'"),
        ({"edits": [{"sites": []}]}, StudyError, "not of the form"),
        ({"edits": [{"sites": [3], "setting": None}]}, StudyError, "give names or patterns"),
        ({"edits": [{"sites": "*.up_proj", "setting": None}]}, UnitError, "matches none of the 4"),
        ({"edits": [{"sites": "re:(", "setting": None}]}, UnitError, "no regular expression"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_sentence(data, error, message):
    with pytest.raises(error, match=message):
        Recipe.from_json(data, SITES)


def test_average_bits_count_parameters():
    """Hand computed: 16 and 48 columns of 8 rows in each of two blocks."""
    nvfp4 = Setting.from_json("nvfp4")
    assert Recipe().average_bits(SITES) == 16
    assert Recipe(nvfp4).average_bits(SITES) == 4.5
    kept = Recipe(nvfp4, ((SITES.match("down_proj"), None),))
    assert kept.average_bits(SITES) == (4.5 * 16 + 16 * 48) / 64
    inputs = Setting(input=Treatment.from_json("nvfp4"))
    assert Recipe(inputs).average_bits(SITES) == 16


def test_only_static_scales_tie_an_id_to_the_calibration():
    def ids(data):
        recipe = Recipe.from_json({"base": data}, SITES)
        return {recipe.id(), recipe.id("one"), recipe.id("other")}

    assert len(ids("nvfp4")) == 3
    assert len(ids("mxfp4")) == len(ids({"weight": "nvfp4"})) == len(ids(None)) == 1
    assert len(ids({"input": {"format": "nvfp4", "amax": "window"}})) == 1


@pytest.mark.parametrize(
    ("data", "precision"),
    [("nvfp4", "W4A4"), ({"weight": "nvfp4"}, "W4A16"), ({"input": "mxfp8:e4m3"}, "W16A8")],
)
def test_precision_is_what_the_field_writes(data, precision):
    assert Setting.from_json(data).precision == precision


def test_replay_is_part_of_a_recipe_and_of_its_name():
    own = Recipe(Setting.from_json("mxfp4"))
    forced = replace(own, replay=True)
    assert forced != own
    assert forced.id() != own.id()
    assert "replay" not in own.to_json()
    assert Recipe.from_json(forced.to_json()) == forced
    with pytest.raises(StudyError, match="replay is 'yes'"):
        Recipe.from_json({"base": "mxfp4", "replay": "yes"})
