"""Causes of a tiny model: measured, gone on with, read again, and shown."""

from dataclasses import replace

import pytest

import fp4scope
from fp4scope.diagnosis import Diagnosis
from fp4scope.errors import StudyError
from fp4scope.report.explained import explained
from fp4scope.study import Study


@pytest.fixture(scope="module")
def asked(text_file):
    return {
        "text": str(text_file),
        "seq_len": 32,
        "windows": 8,
        "calibration_windows": 4,
        "calibration_seq_len": 32,
        "formats": "mxfp4,nvfp4",
        "sweep": "layers:only",
        "layers": "1.*",
        "causes": "layers",
    }


@pytest.fixture(scope="module")
def found(model_folder, asked, tmp_path_factory):
    return fp4scope.diagnose(model_folder, **asked, output_dir=tmp_path_factory.mktemp("out"))


PROJECTIONS, LAYERS = 7, 7


def test_every_unit_is_split_by_operand(found):
    rows = found.split
    assert len(rows) == 2 * 2 * (PROJECTIONS + LAYERS)
    assert {row["level"] for row in rows} == {"projections", "layers"}
    for row in rows.where(measure="kl"):
        assert min(row["both"], row["weights"], row["inputs"]) > 0
    # The same layer quantized alone, as the sweep has it.
    for row in found.layers:
        unit = {"unit": row["projection"], "block": row["block"], "format": row["format"]}
        [own] = rows.where(measure="nll", level="layers", **unit)
        assert own["both"] == pytest.approx(row["delta_nll"])


def test_noise_and_gains_are_near_what_rounding_does(found):
    rows = found.gains.where(level="layers")
    assert len(rows) == 2 * LAYERS
    for row in rows:
        assert 0.2 < row["against_noise"] < 5
        assert 0.5 < row["linear"] < 1.5
        assert -40 < row["error_db"] < -8
        assert 0.2 < row["over_predicted"] < 5


def test_errors_are_taken_apart(found):
    rows = found.errors
    assert len(rows) == 2 * 2 * 3 * PROJECTIONS
    for row in rows:
        assert row["rounding"] + row["clipping"] + row["flushing"] == pytest.approx(1)
        assert (row["headroom_above"] is None) == (row["format"] == "nvfp4")
    weights = rows.where(operand="weights", format="nvfp4")
    assert max(weights["clipped"]) == 0


def test_results_have_it_all(found):
    again = fp4scope.load(found.folder)
    for name in ("split", "gains", "errors"):
        assert list(getattr(again, name)) == list(getattr(found, name))
        assert (found.folder / f"{name}.csv").exists()


def test_reports_say_why(found):
    for text in (found.report(), found.html()):
        for title in ("By operand", "Error and gain", "Errors taken apart"):
            assert title in text


def test_a_unit_is_explained(found, fp4scope):
    code, out, _ = fp4scope("explain", found.folder, "1.down_proj")
    assert code == 0
    assert out.count("Quantized alone it costs") == 2
    for said in ("Weights alone cost", "Against the median of 7 layers", "Inputs: "):
        assert out.count(said) == 2
    code, out, _ = fp4scope("explain", found.folder)
    assert out.count("Against the median of 7 projections") == 2


def test_what_cannot_be_explained_is_said(found):
    with pytest.raises(StudyError, match=r"no causes were measured of '1\.down'.*1\.down_proj"):
        explained(found, "1.down")
    without = Diagnosis(replace(found.results, causes=()))
    with pytest.raises(StudyError, match="repeat it with --causes"):
        explained(without)


def test_a_run_goes_on_without_measuring_again(found, model_folder, asked):
    events = []
    again = fp4scope.diagnose(
        model_folder, **asked, output_dir=found.folder, progress=events.append
    )
    assert list(again.gains) == list(found.gains)
    assert not [event for event in events if event.phase == "measuring"]


def test_causes_are_of_whole_linears():
    with pytest.raises(StudyError, match="does not go with --causes"):
        Study.build(model="x", causes="layers", parts="heads")
    with pytest.raises(StudyError, match="does not go with --experts single"):
        Study.build(model="x", causes="layers", experts="single")


def test_a_study_without_causes_is_the_same_as_before(model_folder):
    assert "causes" not in Study.build(model="x").identity
    assert Study.build(model="x", causes="projections").identity["causes"] == "projections"
