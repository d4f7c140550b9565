"""`fp4scope recipe`: from a finished run to a decision, and to a file that can be measured."""

import pytest

import fp4scope
from fp4scope.cli.app import app
from fp4scope.deploy.found import decider
from fp4scope.deploy.written import WrittenRecipe
from fp4scope.treatments import Setting

MXFP8 = Setting.from_json("mxfp8")


@pytest.fixture(scope="module")
def finished(model_folder, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    fp4scope.diagnose(
        model_folder,
        text=str(text_file),
        seq_len=32,
        windows=8,
        calibration_windows=8,
        calibration_seq_len=32,
        all_quantized="",
        formats="nvfp4,mxfp8",
        sweep="layers",
        output_dir=folder,
    )
    return folder


def run(*words):
    with pytest.raises(SystemExit) as stop:
        app([*map(str, words)], standalone_mode=True)
    return stop.value.code


def test_effects_of_groups_are_sums_of_layers(finished):
    results = fp4scope.load(finished).results
    found = decider(results)
    diagnosis = fp4scope.load(finished)
    rows = diagnosis.layers.where(format="nvfp4", block=0)
    for g, group in enumerate(found.kl.groups[:4]):
        own = {site.projection for site in group.sites}
        expected = sum(r["delta_kl"] for r in rows if r["projection"] in own) / 2
        place = [s.format for s in found.kl.settings].index("nvfp4")
        assert found.kl.by_window[:, g, place].mean() == pytest.approx(expected)


def test_a_recipe_is_written_and_can_be_measured(
    finished, tmp_path, capsys, model_folder, text_file
):
    path = tmp_path / "mine.yaml"
    assert run("recipe", finished, "--max-bits", 6, "-o", path) == 0
    shown = capsys.readouterr().out
    assert "mlp.down_proj" in shown
    assert str(path) in shown.replace("\n", "")
    # On windows that the run has not used, under the same bound.
    assert f"fp4scope recommend {finished} --max-bits 6" in shown.replace("\n", "")
    held = WrittenRecipe.read(path)
    results = fp4scope.load(finished).results
    held.require_sites(results.sites)
    assert held.numbers["bits"] == held.recipe.average_bits(list(results.sites)) <= 6
    static = {s.name for s in results.sites if (held.recipe.at(s.name) or MXFP8).input.tensor_scale}
    assert held.input_amax.keys() == static
    again = fp4scope.measure(
        model_folder, [str(path)], text=str(text_file), seq_len=32, windows=2, first_window=8,
        calibration_windows=8, calibration_seq_len=32, all_quantized="", formats="nvfp4",
    )  # fmt: skip
    assert {contrast.unit for contrast in again.results.contrasts} == {None}
    assert again.given[0]["bits"] == held.numbers["bits"]


def test_without_a_bound_the_front_is_shown(finished, capsys):
    assert run("recipe", finished) == 0
    shown = capsys.readouterr().out
    assert "4.50" in shown
    assert "bf16" in shown
    assert not (finished / "recipe.yaml").exists()


def test_the_formats_of_an_engine(finished, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    assert run("recipe", finished, "--max-bits", 6, "-o", path, "--engine", "vllm") == 0
    shown = capsys.readouterr().out
    assert "nvfp4: served as measured by vLLM, SGLang (sm100 on); TensorRT-LLM" in shown
    assert "no engine serves it as measured: inputs measured in mxfp8:e4m3:floor" in shown
    # Without a name, what all engines load: full precision beside NVFP4.
    assert run("recipe", finished, "--max-bits", 6, "-o", path) == 0
    assert "mxfp8" not in capsys.readouterr().out
