"""What a run leaves in its folder, whatever the folder, the model and the text are called."""

import json
import os
import shutil

import pytest

import fp4scope
from fp4scope.errors import OutputError
from fp4scope.ledger.lines import decode, encode


@pytest.fixture
def study(options):
    few = {"windows": 2, "sweep": "projections", "direction": "keep", "formats": "nvfp4"}
    return options | few | {"calibration_windows": 2}


def test_a_rerun_that_measures_nothing_keeps_the_time(model_folder, study, tmp_path):
    times = [
        fp4scope.diagnose(model_folder, output_dir=tmp_path, **study).results.environment["wall_s"]
        for _ in range(2)
    ]
    assert 0 < times[0] < times[1]
    again = fp4scope.load(tmp_path)
    assert again.results.environment["wall_s"] == times[1]
    assert f"{times[1]:.0f} s in all sessions" in again.report()


@pytest.mark.skipif(os.name == "nt", reason="paths are bytes on POSIX")
def test_a_path_that_is_not_utf8_loses_nothing(model_folder, study, tmp_path, text_file):
    name = os.fsdecode(b"caf\xe9")
    shutil.copy(text_file, tmp_path / name)
    out = tmp_path / os.fsdecode(b"out-\xe9")
    written = study | {"text": str(tmp_path / name)}
    fp4scope.diagnose(model_folder, output_dir=out, **written)
    assert {"results.json", "projections.csv", "report.html", "report.md"} <= set(os.listdir(out))
    assert fp4scope.load(out).results.study["data"]["text"].endswith("caf\\udce9")
    before = (out / "journal.jsonl").read_bytes()
    fp4scope.diagnose(model_folder, output_dir=out, **written)  # the same study, once more
    assert (out / "journal.jsonl").read_bytes() == before


@pytest.mark.figures
@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_a_model_may_be_called_anything(model_folder, study, tmp_path):
    model = tmp_path / "m$\\frac$|`<b>\x1b[31m"
    shutil.copytree(model_folder, model)
    fp4scope.diagnose(model, output_dir=tmp_path / "out", **study)
    assert (tmp_path / "out" / "figures" / "projections-keep.svg").exists()
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "<b>" not in text
        assert "\x1b" not in text


def test_a_folder_that_moves_while_it_is_written_to_is_noticed(model_folder, study, tmp_path):
    out = tmp_path / "out"

    def move(event):
        if event.phase == "measuring" and out.exists():
            out.rename(tmp_path / "moved")

    with pytest.raises(OutputError, match="moved, removed or replaced"):
        fp4scope.diagnose(model_folder, output_dir=out, progress=move, **study)
    assert not out.exists()
    fp4scope.diagnose(model_folder, output_dir=tmp_path / "moved", **study)
    assert (tmp_path / "moved" / "results.json").exists()


@pytest.mark.parametrize("change", ["empty", "a linear less", "infinite"])
def test_a_calibration_of_other_linears_is_damage(change, model_folder, study, tmp_path):
    journal = tmp_path / "journal.jsonl"
    fp4scope.diagnose(model_folder, output_dir=tmp_path, **study)
    lines = journal.read_bytes().splitlines()
    place, note = next(
        (i, record) for i, record in enumerate(map(decode, lines)) if record.get("note") == "inputs"
    )
    if change == "empty":
        note["data"] = {}
    elif change == "infinite":
        note["data"]["amax"][next(iter(note["data"]["amax"]))] = 1e300
    else:
        note["data"]["amax"].popitem()
    lines[place] = encode(note).rstrip(b"\n")
    journal.write_bytes(b"\n".join([*lines[: place + 1], b""]))
    with pytest.raises(OutputError, match="its note 'inputs' is not the calibration of this"):
        fp4scope.diagnose(model_folder, output_dir=tmp_path, **study)


def test_sums_that_no_predictions_have_are_damage(model_folder, study, tmp_path):
    journal = tmp_path / "journal.jsonl"
    fp4scope.diagnose(model_folder, output_dir=tmp_path, **study)
    lines = journal.read_bytes().splitlines()
    chunk = decode(lines[-1])
    assert "job" in chunk
    chunk["rows"][0][2]["nll"][0] = 1e8
    journal.write_bytes(b"\n".join([*lines[:-1], encode(chunk)]))
    with pytest.raises(OutputError, match=r"damaged in line \d+ \(nll has 1e\+08 nats"):
        fp4scope.diagnose(model_folder, output_dir=tmp_path, **study)
    assert json.loads((tmp_path / "results.json").read_text())["version"] == 5
