"""Recipes that a user gives are measured as wholes, beside what a study asks else."""

import json

import pytest
from huggingface_hub.errors import EntryNotFoundError

import fp4scope
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.design import NOTHING
from fp4scope.errors import DataError, FormatError, StudyError, UnitError
from fp4scope.models import load_model
from fp4scope.recipes import Recipe
from fp4scope.stats import Estimate
from fp4scope.stats.findings import exceptions
from fp4scope.study import Given, Study
from fp4scope.treatments import Setting

NVFP4 = Setting.from_json("nvfp4")
OPTIONS = {
    "seq_len": 32,
    "windows": 3,
    "calibration_windows": 8,
    "calibration_seq_len": 32,
    "all_quantized": "",
    "formats": "nvfp4",
    "sweep": "projections:only",
}


@pytest.fixture(scope="module")
def run(model_folder, text_file):
    def diagnose(**more):
        return fp4scope.diagnose(model_folder, text=str(text_file), **OPTIONS | more)

    return diagnose


def test_a_recipe_costs_what_the_same_unit_costs(run, tmp_path):
    written = tmp_path / "downs.yaml"
    written.write_text("edits:\n- sites: ['*.down_proj']\n  setting: nvfp4\n")
    found = run(recipes=[str(written)], output_dir=tmp_path / "out")
    (row,) = found.given
    (unit,) = found.projections.where(projection="down_proj")
    assert row["recipe"] == "downs"
    assert row["delta_nll"] == unit["delta_nll"]
    assert row["kl"] == unit["kl"]
    assert 4.5 < row["bits"] < 16 > row["model_bits"] > row["bits"]
    # What is written is read back, and the study goes on in its folder without the file.
    written.unlink()
    again = fp4scope.load(tmp_path / "out")
    assert again.given.rows == found.given.rows
    study = Study.build(**fp4scope.study.read_options(tmp_path / "out" / "study.yaml"))
    assert study.question.recipes[0].name == "downs"
    assert "Recipes, measured as a whole" in again.report()
    assert "downs" in again.html()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["given"].keys() == {"downs"}


def test_tensor_scales_as_they_are_served_are_another_study(run, tmp_path):
    whole = Recipe(NVFP4)
    own, served = (
        run(recipes={"whole": whole}, sweep=(), scales=word, output_dir=tmp_path / word)
        for word in ("own", "served")
    )
    assert own.given[0]["nll"] != served.given[0]["nll"]
    conditions = fp4scope.compare([tmp_path / "own", tmp_path / "served"]).report()
    assert "NVFP4's weight scales: own (own), served (served)" in conditions
    with pytest.raises(StudyError, match="scales is null there, served here"):
        run(recipes={"whole": whole}, sweep=(), scales="served", output_dir=tmp_path / "own")


def test_a_measured_recipe_is_written_and_exported(run, request, tmp_path):
    """Also one that somebody wrote by hand: the run has what its static scales come from."""
    command = request.getfixturevalue("fp4scope")  # whose name is the package's here
    # What the study leaves out stays out of the file too.
    mine = {"mine": {"base": "nvfp4"}}
    options = {"exclude": "o_proj", "scales": "served", "sweep": ()}
    found = run(recipes=mine, **options, output_dir=tmp_path / "out")
    path = tmp_path / "mine.yaml"
    code, said, _ = command("recipe", tmp_path / "out", "--measured", "mine", "-o", path)
    assert code == 0
    assert "fp4scope export" in said
    written = WrittenRecipe.read(path)
    assert written.scales == "served"
    assert {site.name for site in found.results.sites} == written.recipe.edited
    assert written.recipe.settings == {NVFP4}
    assert written.numbers["measured"]["kl"]["mean"] == found.given[0]["delta_kl"]
    largest = {(a.block, a.projection): a.max for a in found.results.activations}
    assert written.input_amax == {
        site.name: largest[site.block, site.projection] for site in found.results.sites
    }
    exported = fp4scope.export(path, "modelopt", checkpoint=tmp_path / "packed")
    assert exported.files == (tmp_path / "packed",)
    assert not exported.notes
    assert load_model(str(tmp_path / "packed"), device="cpu").prior_quantization
    code, _, complaint = command("recipe", tmp_path / "out", "--measured", "yours")
    assert code == 2
    assert "did you mean mine" in complaint or "choices: mine" in complaint
    code, _, complaint = command(
        "recipe", tmp_path / "out", "--measured", "mine", "--max-bits", "5"
    )
    assert (code, "--max-bits does not go" in " ".join(complaint.split())) == (2, True)


def test_recipes_by_name_in_python(run):
    whole = Recipe(NVFP4)
    mixed = Recipe.from_json({"base": "nvfp4", "edits": [{"sites": "o_proj", "setting": None}]})
    found = run(recipes={"everything": whole, "without o": mixed}, sweep=())
    assert list(found.given["recipe"]) == ["everything", "without o"]
    (all_quantized,) = found.all_quantized.where(format="nvfp4")
    assert found.given[0]["nll"] == all_quantized["nll"]
    assert found.given[0]["bits"] == 4.5 < found.given[1]["bits"]


def test_two_formats_are_swept_and_given_under_one_name(run):
    mixed = "nvfp4:4over6/nvfp4"
    found = run(
        formats=mixed, all_quantized="nvfp4,nvfp4:4over6", recipes={"mine": {"base": mixed}}
    )
    rows = {row["format"]: row for row in found.all_quantized}
    assert rows[mixed]["precision"] == "W4A4"
    assert len({rows[name]["nll"] for name in (mixed, "nvfp4", "nvfp4:4over6")}) == 3
    assert set(found.projections["format"]) == {mixed}
    assert found.given[0]["nll"] == rows[mixed]["nll"]
    assert mixed in found.report()


@pytest.mark.parametrize(
    ("recipe", "kind", "said"),
    [
        ({"edits": [{"sites": ["nothing"], "setting": "nvfp4"}]}, UnitError, "nothing"),
        ({"base": "nvfp5"}, FormatError, "did you mean nvfp4"),
        ({"base": None}, StudyError, "quantizes nothing"),
        ({"bass": "nvfp4"}, StudyError, "bass"),
        ({"edits": 3}, StudyError, "edits is 3"),
        (3, StudyError, "give a mapping"),
    ],
)
def test_what_is_no_recipe_is_refused(run, recipe, kind, said):
    with pytest.raises(kind, match=said) as error:
        run(recipes={"mine": recipe})
    assert "mine" in str(error.value)


def test_files_that_hold_no_recipe(run, tmp_path):
    for content, said in (("[1, 2]", "holds no recipe"), ("a: [", "cannot be read")):
        path = tmp_path / "bad.yaml"
        path.write_text(content)
        with pytest.raises(StudyError, match=said):
            run(recipes=[str(path)])
    with pytest.raises(StudyError, match=r"no recipe\.yaml"):
        run(recipes=str(tmp_path))


def test_a_published_configuration_and_its_exceptions(run, tmp_path):
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    group = {"targets": ["Linear"], "weights": args, "input_activations": args}
    own = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    own |= {"config_groups": {"group_0": group}, "ignore": ["lm_head", "re:.*o_proj$"]}
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({"quantization_config": own}))
    found = run(recipes=[str(path)], sweep=(), windows=8, output_dir=tmp_path / "out")
    whole, without = found.given
    assert [whole["recipe"], without["recipe"]] == ["theirs", "theirs without re:.*o_proj$ in bf16"]
    (everything,) = found.all_quantized.where(format="nvfp4")
    assert without["nll"] == everything["nll"] != whole["nll"]
    # The exception: what it saves, what it stores, and whether it pays.
    (row,) = found.exceptions
    assert (row["recipe"], row["exception"]) == ("theirs", "re:.*o_proj$ in bf16")
    assert row["delta_kl"] == pytest.approx(without["kl"] - whole["kl"])
    assert row["bytes"] == pytest.approx(3 * 64 * 64 * (16 - 4.5) / 8)
    assert row["bits"] == pytest.approx(whole["bits"] - without["bits"])
    assert row["delta_kl_low"] > 0
    assert row["verdict"] == "pays"
    assert "Which exceptions pay" in found.report()
    assert "Which exceptions pay" in found.html()
    assert "theirs,re:.*o_proj$ in bf16,pays" in (tmp_path / "out/exceptions.csv").read_text()
    own["config_groups"]["group_0"]["targets"] = ["another.model"]
    path.write_text(json.dumps({"quantization_config": own}))
    with pytest.raises(UnitError, match=r"theirs: .* of another model"):
        run(recipes=[str(path)])


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ((0.1, 0.3), "pays"),
        ((-0.1, 0.3), "cannot be told"),
        ((-0.3, -0.1), "does not pay"),
        ((None, None), "cannot be told"),
    ],
)
def test_verdicts_on_exceptions(ends, verdict):
    assert exceptions.verdict(Estimate(0.0, 0.1, *ends, 8)) == verdict


def test_a_configuration_is_fetched_from_the_hub_and_nothing_else(tmp_path, monkeypatch):
    """Where config.json says nothing of a quantization, hf_quant_config.json does."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    own = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    fetched = []

    def fetch(name, file):
        fetched.append(file)
        if not (tmp_path / file).exists():
            raise EntryNotFoundError(f"{name} has no {file}")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with pytest.raises(StudyError, match="says nothing of a quantization"):
        Given.parse("org/model-FP4")
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(own))
    found = Given.parse("org/model-FP4")
    assert (found.name, found.data) == ("model-FP4", own)
    assert fetched == 2 * ["config.json", "hf_quant_config.json"]

    def offline(name, file):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(StudyError, match="no network"):
        Given.parse("org/model-FP4")
    with pytest.raises(StudyError, match="No such file"):
        Given.parse("folder/mine.yaml")


def test_windows_may_begin_later(run):
    whole, last = (run(windows=4 - n, first_window=n, sweep=()) for n in (0, 2))
    assert last.results.data["windows"] == 2
    plain = [found.results.ledger[NOTHING] for found in (whole, last)]
    by_window = [
        [v for v, r in zip(rows.values["nll"], rows.replicas, strict=True) if r == 0]
        for rows in plain
    ]
    assert by_window[1] == pytest.approx(by_window[0][2:], rel=1e-6)
    with pytest.raises(DataError, match="first-window"):
        run(first_window=10_000)


def test_the_bar_of_a_run_is_kept_and_a_wrong_one_refused_at_once(run, tmp_path):
    found = run(accept="ppl<900%", sweep=(), windows=8, output_dir=tmp_path / "out")
    assert next(bar.text for bar in found.bars) == "ppl<900%"
    again = fp4scope.load(tmp_path / "out")
    assert [bar.text for bar in again.bars] == [bar.text for bar in found.bars]
    assert "meets ppl<900%" in again.html().replace("&lt;", "<")
    with pytest.raises(StudyError, match="a bar on ppl is written ppl<2%"):
        run(accept="ppl<2", output_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()
