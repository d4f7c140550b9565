"""The calibration pass: how much of it, in which batches, and nothing impossible behind it."""

import pytest
import torch

import fp4scope
from fp4scope.conductor import calibrate, forecast
from fp4scope.conductor.prepare import prepare
from fp4scope.errors import StudyError
from fp4scope.models import LoadedModel
from fp4scope.study import Study


@pytest.fixture
def prepared(model_folder, options):
    return prepare(Study.build(model=str(model_folder), **options), lambda event: None)


def _observed(prepared):
    found = calibrate.observe(prepared.loaded, prepared.calibration, lambda event: None, "x")
    return {name: (s.max, s.counts.tolist()) for name, s in found.items()}


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that run; those above `most` do not fit."""
    own, sizes = LoadedModel.logits, []

    def logits(self, ids, last=None):
        sizes.append(len(ids) if ids.ndim == 2 else 1)
        if sizes[-1] > batches.most:
            raise batches.error
        return own(self, ids, last)

    def batches():
        return sizes

    batches.most, batches.error = 8, torch.OutOfMemoryError("no room")
    monkeypatch.setattr(LoadedModel, "logits", logits)
    return batches


def test_one_window_at_a_time_on_a_cpu(prepared, batches):
    _observed(prepared)
    assert batches() == [1] * 8


def test_batches_change_no_count_and_no_maximum(prepared, batches, monkeypatch):
    alone = _observed(prepared)
    monkeypatch.setattr(calibrate, "_TOKENS_AT_ONCE", {"cpu": 3 * 32})
    assert _observed(prepared) == alone
    assert batches()[8:] == [3, 3, 2]


def test_a_batch_that_does_not_fit_is_halved_and_counted_once(prepared, batches, monkeypatch):
    alone = _observed(prepared)
    batches.most = 2
    monkeypatch.setattr(calibrate, "_TOKENS_AT_ONCE", {"cpu": 4 * 32})
    assert _observed(prepared) == alone
    assert batches()[8:] == [4, 2, 2, 2, 2]


def test_a_model_that_takes_no_batches_gets_none(prepared, batches, monkeypatch):
    alone = _observed(prepared)
    batches.most, batches.error = 1, ValueError("one window, please")
    monkeypatch.setattr(calibrate, "_TOKENS_AT_ONCE", {"cpu": 4 * 32})
    assert _observed(prepared) == alone
    assert batches()[8:] == [4, *[1] * 8]


def test_memory_that_nothing_fits_is_refused_before_the_first_pass(model_folder, options):
    phases = []
    with pytest.raises(StudyError, match=r"memory is 0\.00 GB beside the model"):
        fp4scope.diagnose(
            str(model_folder), memory="1KB", progress=lambda e: phases.append(e.phase), **options
        )
    study = Study.build(model=str(model_folder), memory="1KB", **options)
    with pytest.raises(StudyError, match=r"memory is 0\.00 GB beside the model"):
        forecast(study, lambda e: phases.append(e.phase))
    assert set(phases) == {"loading"}


def test_by_default_it_takes_what_is_evaluated_and_says_so(model_folder, options):
    notes = []
    del options["calibration_windows"]
    study = Study.build(model=str(model_folder), **options | {"windows": 20})
    found = prepare(study, lambda e: notes.append(e.note))
    assert len(found.calibration) == 20
    assert "calibration: words.txt, 20 windows of 32 (auto)" in notes
    # A number that says the same is the same study.
    same = Study.build(
        model=str(model_folder), **options | {"windows": 20, "calibration_windows": 20}
    )
    assert prepare(same, lambda e: None).identity == found.identity
