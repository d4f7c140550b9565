"""`fp4scope recommend`: choose, refine, certify, write; stopped and gone on with."""

import json

import pytest

import fp4scope as package
from fp4scope.deploy.written import WrittenRecipe

BASE = {"--seq-len": 32, "--calibration-windows": 8, "--calibration-seq-len": 32}


@pytest.fixture
def recommend(fp4scope, model_folder, text_file, tmp_path):
    def run(*more, windows=24):
        options = [str(word) for pair in BASE.items() for word in pair]
        return fp4scope(
            "recommend", str(model_folder), "--text", str(text_file), "--windows", str(windows),
            "--formats", "nvfp4,mxfp8", *options, "-o", str(tmp_path / "out"), *map(str, more),
        )  # fmt: skip

    return run


def test_a_recipe_under_a_bound_on_bits(recommend, fp4scope, tmp_path):
    code, shown, _ = recommend("--max-bits", 7)
    assert code == 0
    out = tmp_path / "out"
    recipe = WrittenRecipe.read(out / "recipe.yaml")
    assert recipe.numbers["bits"] <= 7
    assert json.loads(json.dumps(recipe.numbers)) == recipe.numbers
    proof = recipe.numbers["measured"]
    assert proof["windows"] == 8
    certify = package.load(out / "certify")
    (row,) = [r for r in certify.given if r["bits"] == recipe.numbers["bits"]]
    assert proof["nll"]["mean"] == row["delta_nll"]
    # Together the intervals of all recipes are wider than each alone.
    assert proof["nll"]["low"] < row["delta_nll_low"]
    # Three runs of windows, none in two of them.
    parts = [package.load(out / name).results for name in ("choose", "refine", "certify")]
    firsts = [part.study["data"]["first_window"] for part in parts]
    assert [part.data["windows"] for part in parts] == [8, 8, 8]
    assert firsts == [0, 8, 16]
    assert len({part.data["sha256"] for part in parts}) == 3
    assert "windows that nothing was chosen on" in shown
    assert recipe.numbers["chosen_over_resampled_windows"]
    assert "%" in next(line for line in shown.splitlines() if "mlp.down_proj" in line)
    assert "Written:" in shown
    # Again: nothing is measured twice.
    before = {path: path.read_bytes() for path in out.glob("*/journal.jsonl")}
    assert recommend("--max-bits", 7)[0] == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_bar_that_is_met_and_one_that_is_not(recommend, tmp_path):
    code, shown, _ = recommend("--accept", "kl<50")
    assert code == 0
    recipe = WrittenRecipe.read(tmp_path / "out" / "recipe.yaml")
    assert recipe.numbers["measured"]["verdict"] == "met"
    assert "kl<50: met" in shown
    assert recipe.numbers["bits"] == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("more", "windows", "said"),
    [
        ((), 24, "give one of --accept"),
        (("--max-bits", 5, "--accept", "kl<1"), 24, "two bounds"),
        (("--max-bits", 3), 24, "smallest has 4.5"),
        (("--max-bits", "nan"), 24, "max_bits is nan"),
        (("--max-size", "lots"), 24, "max_size is 'lots'"),
        (("--accept", "ppl<2"), 24, "written ppl<2%"),
        (("--max-bits", 5), 20, "cannot be cut into three"),
        (("--max-bits", 5, "--palette", "fp3,bf16"), 24, "unknown format"),
    ],
)
def test_bad_bounds(recommend, tmp_path, more, windows, said):
    code, _, complaint = recommend(*more, windows=windows)
    assert code == 2
    assert said in " ".join(complaint.split())
    assert not (tmp_path / "out" / "recipe.yaml").exists()
