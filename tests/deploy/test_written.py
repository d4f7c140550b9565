"""Recipes on disk: what is written is what is read, and nothing else is taken for one."""

import pytest
import yaml

from fp4scope.deploy.written import RecipeModel, WrittenRecipe
from fp4scope.errors import FormatError, Fp4ScopeError, StudyError, UnitError
from fp4scope.recipes import Recipe, Site, Sites
from fp4scope.treatments import Setting

SITES = Sites(
    (
        Site(name=f"model.layers.{b}.mlp.{leaf}", block=b, projection=leaf, rows=8, cols=32)
        for b in range(2)
        for leaf in ("gate_proj", "up_proj", "down_proj")
    ),
    blocks=2,
)
DOWN = "model.layers.1.mlp.down_proj"
NVFP4 = Setting.from_json("nvfp4")
WRITTEN = WrittenRecipe(
    Recipe(NVFP4, ((frozenset({DOWN}), None),)),
    RecipeModel("org/model", "main", "ab" * 32),
    "served",
    {DOWN: 1e-07, "model.layers.0.mlp.up_proj": 3.25},
    {"average_bits": 5.25, "measured": {"mnat": [1.5, 1.0, 2.0]}},
)


def test_what_is_written_is_what_is_read(tmp_path):
    WRITTEN.write(tmp_path / "recipe.yaml")
    found = WrittenRecipe.read(tmp_path / "recipe.yaml", SITES)
    assert found == WRITTEN
    assert found.recipe.id() == WRITTEN.recipe.id()
    found.require_sites(SITES)


def test_patterns_of_a_user(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "version: 1\nmodel: org/model\n"
        "recipe: {base: nvfp4, edits: [{sites: '*.1.mlp.down_proj', setting: null}]}\n"
    )
    found = WrittenRecipe.read(path, SITES)
    assert found.recipe == WRITTEN.recipe
    assert found.scales == "own"


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"version": 2}, StudyError, "version is 2, and this fp4scope reads 1"),
        ({"reciep": {}}, StudyError, "did you mean recipe"),
        ({"scales": "shared"}, StudyError, "scales is 'shared'"),
        ({"model": {"name": "m", "rev": "x"}}, StudyError, "did you mean revision"),
        ({"model": {"name": "m", "revision": 12}}, StudyError, "model.revision is 12"),
        ({"model": None}, StudyError, "model is None"),
        ({"input_amax": {DOWN: -1}}, StudyError, "is -1; give a finite number"),
        ({"input_amax": {DOWN: float("nan")}}, StudyError, "is nan"),
        ({"input_amax": {DOWN: True}}, StudyError, "is True"),
        ({"input_amax": [1]}, StudyError, "input_amax is"),
        ({"numbers": 3}, StudyError, "numbers is 3"),
        ({"recipe": {"base": "nvfp5"}}, FormatError, "did you mean nvfp4"),
        ({"recipe": {"base": "nvfp4", "edit": []}}, StudyError, "'edit' is not part"),
        (
            {"recipe": {"edits": [{"sites": ["k_proj"], "setting": "nvfp4"}]}},
            UnitError,
            "'k_proj' matches none",
        ),
    ],
)
def test_what_is_no_recipe(tmp_path, change, kind, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(WRITTEN.to_json() | change))
    with pytest.raises(kind, match="(?s)" + said.replace("(", r"\(")):
        WrittenRecipe.read(path, SITES)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "recipe: [",
        "a: &a [1]\nb: *a",
        "!!python/object/apply:os.system ['true']",
        "[" * 20000,
        "\x00",
    ],
)
def test_files_of_anything(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(Fp4ScopeError, match=r"recipe\.yaml"):
        WrittenRecipe.read(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(StudyError, match="cannot read the recipe"):
        WrittenRecipe.read(tmp_path / "recipe.yaml")


def test_a_recipe_of_another_model():
    other = Sites([Site(name="h.0.c_fc", block=0, projection="c_fc", rows=8, cols=32)], blocks=1)
    with pytest.raises(StudyError, match=f"of org/model, and 2 sites .* {SITES[1].name} first"):
        WRITTEN.require_sites(other)
