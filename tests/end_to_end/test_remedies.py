"""Remedies of a tiny model: chosen on some windows, measured on others, and shown."""

import json

import numpy as np
import pytest

import fp4scope
from fp4scope.conductor import forecast
from fp4scope.conductor.remedies import measuring
from fp4scope.errors import StudyError
from fp4scope.recipes import Recipe
from fp4scope.stats import costly_units
from fp4scope.study import Study
from fp4scope.treatments import Setting

WINDOWS = 16


@pytest.fixture(scope="module")
def asked(text_file):
    return {
        "text": str(text_file),
        "seq_len": 16,
        "windows": WINDOWS,
        "calibration_windows": 4,
        "calibration_seq_len": 32,
        "formats": "mxfp4",
        "all_quantized": "",
        "sweep": "projections",
        "direction": "keep",
        "causes": "projections",
        "remedies": 1,
    }


@pytest.fixture(scope="module")
def found(model_folder, asked, tmp_path_factory):
    return fp4scope.diagnose(model_folder, **asked, output_dir=tmp_path_factory.mktemp("out"))


def test_the_most_costly_unit_is_tried(found):
    assert len(set(found.remedies["unit"])) == 1
    # Chosen on the first half; this is a wide margin of what all windows say.
    worst = sorted(found.projections, key=lambda row: -row["delta_kl"])[:4]
    assert set(found.remedies["unit"]) <= {row["projection"] for row in worst}


def test_the_windows_that_measure_have_not_chosen(found):
    assert measuring(WINDOWS) == range(8, 16)
    ledger = found.results.remedied
    assert {w for recipe in ledger for w in ledger[recipe].indices} == set(range(8, 16))
    assert set(found.remedies["windows"]) == {8}
    # Were the others left out of the study, the choice would be the same.
    first = costly_units(found.results, ["projections"], 1, range(8))
    assert {unit.name for unit, _ in first[:1]} == set(found.remedies["unit"])


def test_what_keeping_saves_is_what_the_sweep_has(found):
    """The same recipes on the same windows, in another job."""
    for row in found.remedies.where(remedy="bf16"):
        [contrast] = [
            c
            for c in found.results.contrasts
            if c.unit is not None
            and (c.unit.name, c.family.setting.format) == (row["unit"], row["format"])
        ]
        sums = []
        for recipe in (contrast.quantized, contrast.own):
            rows = found.results.ledger[recipe]
            at = [i for i, w in enumerate(rows.indices) if w >= 8 and not rows.replicas[i]]
            sums.append(np.mean([rows.values["kl"][i] / rows.tokens[i] for i in at]))
        assert row["damage"] == row["removed"] == pytest.approx(sums[0] - sums[1], rel=1e-9)


def test_each_remedy_stands_in_an_otherwise_quantized_model(found):
    [one] = [
        c
        for c in found.results.remedies
        if c.unit.name == found.remedies["unit"][0]
        and c.family.setting == Setting.from_json("mxfp4")
        and c.own.at(min(c.unit.sites)) == Setting.from_json("nvfp4")
    ]
    assert one.quantized == Recipe(Setting.from_json("mxfp4"))
    assert one.own == Recipe(
        Setting.from_json("mxfp4"), ((one.unit.sites, Setting.from_json("nvfp4")),)
    )
    assert len(one.unit.sites) == 3


def test_shares_have_intervals_for_all_that_was_tried(found):
    for row in found.remedies:
        assert row["tried"] == sum(
            other["remedy"] != "bf16"
            for other in found.remedies.where(unit=row["unit"], format=row["format"])
        )
        assert (row["share"] is None) == (row["damage_low"] <= 0 or row["remedy"] == "bf16")
    [eight] = found.remedies.where(remedy="fp8")
    assert eight["share_low"] < 1 < eight["share_high"]
    assert eight["bits"] == pytest.approx(8 + 32 / 64 - 4.25)
    assert eight["bytes"] == pytest.approx(eight["bits"] * 3 * 64 * 32 / 8)
    assert eight["served"] == "vLLM, SGLang, TensorRT-LLM"
    names = {row["remedy"] for row in found.remedies}
    assert {"mxfp4:floor+hadamard32", "mxfp4:floor+smooth"} <= names
    assert "mxfp4:floor+gptq/mxfp4:floor" in names
    assert not [name for name in names if name.endswith("hadamard128")], "64 and 96 inputs"


def test_two_of_each_unit_are_named(found):
    for row in found.remedies.where(remedy="bf16"):
        own = found.remedies.where(unit=row["unit"], format=row["format"])
        best = [word for one in own for word in one["best"].split("; ") if word]
        assert best.count("served") == 1
        assert best.count("same size") <= 1
        for one in own:
            if "same size" in one["best"]:
                assert one["bits"] <= 0.5
            if "served" in one["best"]:
                assert one["served"]


def test_what_is_turned_is_served_by_nobody(found):
    turned = [row for row in found.remedies if "hadamard" in row["remedy"]]
    assert turned
    assert not any(row["served"] for row in turned)


def test_results_have_it_all_and_it_is_shown(found, fp4scope):
    from fp4scope import load

    again = load(found.folder)
    assert list(again.remedies) == list(found.remedies)
    assert again.results.remedied == found.results.remedied
    assert (found.folder / "remedies.csv").exists()
    for text in (found.report(), found.html()):
        assert "Remedies" in text
        assert "did not choose the units" in text
    unit = found.remedies["unit"][0]
    code, out, _ = fp4scope("explain", found.folder, unit)
    assert code == 0
    assert "keeping it in full precision saves" in out


def test_a_run_goes_on_without_measuring_again(found, model_folder, asked):
    events = []
    before = (found.folder / "remedies.jsonl").read_bytes()
    again = fp4scope.diagnose(
        model_folder, **asked, output_dir=found.folder, progress=events.append
    )
    assert list(again.remedies) == list(found.remedies)
    assert not [event for event in events if event.phase in ("measuring", "remedies")]
    assert (found.folder / "remedies.jsonl").read_bytes() == before


def test_damaged_results_are_refused(found, tmp_path):
    data = json.loads((found.folder / "results.json").read_text())
    del data["ledgers"]["remedies"]["rows"][0]
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(fp4scope.Fp4ScopeError, match="full-precision model was not measured"):
        fp4scope.load(tmp_path)


def test_what_does_not_go_together_is_refused(model_folder, asked):
    with pytest.raises(StudyError, match="Add --causes"):
        Study.build(model="x", remedies=5)
    with pytest.raises(StudyError, match="does not go with --stop-when"):
        Study.build(model="x", remedies=5, causes="layers", stop_when="1h")
    with pytest.raises(StudyError, match="add exact to --method"):
        Study.build(model="x", remedies=5, causes="layers", method="gradient")
    with pytest.raises(StudyError, match="half of 8 windows is too few"):
        fp4scope.diagnose(model_folder, **asked | {"windows": 8})


def test_a_plan_counts_causes_and_remedies(found, model_folder, asked):
    """Remedies are those of units evenly out of the model: which they will be is not known."""
    planned = forecast(Study.build(model=model_folder, **asked))
    alone = {recipe for contrast in found.results.causes for recipe, _ in contrast.terms}
    assert planned.causes == len(alone) - 1, "all but the full-precision model"
    assert planned.variants > planned.causes
    assert planned.remedies == len(found.results.remedied)
    assert planned.remedies_s > 0
    less = forecast(Study.build(model=model_folder, **asked | {"remedies": 0}))
    assert (less.remedies, less.remedies_s) == (0, 0)
