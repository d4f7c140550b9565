"""`--offload`: the same results with the blocks in host memory."""

import pytest

import fp4scope as library
from fp4scope.errors import StudyError
from fp4scope.study import Study


@pytest.mark.parametrize("memory", [None, "250MB"])
def test_the_same_results_to_the_bit(memory, model_folder, options, tmp_path, monkeypatch):
    notes = []
    small = options | {"windows": 3, "sweep": ["projections"], "direction": ["keep"]}
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path))
    whole, waiting, on_disk = (
        library.diagnose(
            str(model_folder),
            **small,
            offload=offload,
            memory=memory,
            progress=lambda event: notes.append(event.note),
        ).results.ledger
        for offload in ("no", "yes", "disk")
    )
    assert whole == waiting == on_disk
    assert sum("wait in host memory" in (note or "") for note in notes) == 1
    assert sum("wait on disk" in (note or "") for note in notes) == 1


def test_estimates_need_the_whole_model(model_folder, options):
    with pytest.raises(StudyError, match="blocks of tiny-llama wait in host memory"):
        library.diagnose(str(model_folder), **options, offload="yes", method=["gradient"])


def test_only_these_choices():
    assert Study.build(model="m", offload="host") == Study.build(model="m", offload=True)
    with pytest.raises(StudyError, match="offload"):
        Study.build(model="m", offload="perhaps")


def test_where_the_blocks_are_is_no_part_of_the_study(model_folder, options, tmp_path):
    small = options | {"windows": 2, "sweep": ["projections"], "direction": ["keep"]}
    for offload in ("yes", "disk", "no"):
        found = library.diagnose(str(model_folder), **small, offload=offload, output_dir=tmp_path)
    assert found.all_quantized.rows


def test_the_plan_says_where_blocks_wait_and_why(
    fp4scope, model_folder, text_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path))
    small = "--seq-len", "16", "--windows", "4", "--text", str(text_file), "--device", "cpu"
    code, out, _ = fp4scope("plan", str(model_folder), *small, "--offload", "disk")
    assert code == 0
    assert "wait on disk (0.0 GB)" in " ".join(out.split())
    code, out, _ = fp4scope("plan", str(model_folder), *small)
    assert code == 0
    assert "wait on" not in out
