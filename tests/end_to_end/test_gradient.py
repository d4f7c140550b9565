"""`method`: estimates alone, beside the exact sweep, before it, after it, and interrupted."""

import json

import pytest

import fp4scope as package
from fp4scope.conductor import estimate as estimates
from fp4scope.errors import StudyError
from fp4scope.sweep.wavefront import Wavefront

BOTH = ["exact", "gradient"]


@pytest.fixture
def study(options):
    return options | {"sweep": "projections,layers:only", "formats": "nvfp4", "windows": 3}


@pytest.fixture
def run(model_folder, study, tmp_path):
    def diagnose(method, folder="out", **more):
        return package.diagnose(
            model_folder, method=method, output_dir=tmp_path / folder, **study | more
        )

    return diagnose


def same(one, other):
    tables = ("all_quantized", "projections", "layers", "agreement")
    return all(getattr(one, t).rows == getattr(other, t).rows for t in tables)


def test_both_methods_fill_the_same_rows(run):
    both, exact, gradient = run(BOTH), run("exact", "exact"), run("gradient", "gradient")
    assert len(both.projections) == 2 * 7
    assert len(both.layers) == 21
    assert both.all_quantized.rows == exact.all_quantized.rows
    # Of run-to-run noise the gradient alone knows less: no replica is measured for it.
    for measured, fewer in zip(exact.all_quantized, gradient.all_quantized, strict=True):
        assert {k: v for k, v in measured.items() if v != fewer[k]}.keys() <= {
            "noise_nll",
            "noise_kl",
        }
    for table in ("projections", "layers"):
        rows = zip(*(getattr(d, table) for d in (both, exact, gradient)), strict=True)
        for row, measured, estimated in rows:
            for column, value in row.items():
                if column.startswith("gradient"):
                    assert measured[column] is None
                    assert estimated[column] == value
                else:
                    assert measured[column] == value
                    names = ("format", "direction", "projection", "block", "precision", "windows")
                    names += ("tokens", "bytes_kept", "bits_kept")
                    expected = value if column in names else None
                    if column == "nll_per_mb":  # the price of what is known
                        expected = estimated["gradient_nll"] / (row["bytes_kept"] / 1e6)
                    assert estimated[column] == expected
    assert len(both.agreement) == 3
    assert [len(d.agreement) for d in (exact, gradient)] == [0, 0]
    assert all(-1 <= rho <= 1 for rho in both.agreement["rho"])
    assert "How well the gradient ranks" in both.report()
    assert same(package.load(both.folder), both)
    assert same(package.load(gradient.folder), gradient)


@pytest.mark.parametrize("order", [["exact", "gradient"], ["gradient", "exact"]])
def test_the_other_method_adds_to_the_same_folder(run, order, monkeypatch):
    at_once = run(BOTH, "once")
    for method in order:
        last = run(method)
    assert same(last, at_once)
    assert last.results.study["run"]["method"] == order[-1:]
    # And nothing is done again, whichever is asked for.
    monkeypatch.setattr(Wavefront, "measure", None)
    monkeypatch.setattr(estimates, "estimate_window", None)
    for method in (BOTH, "exact", "gradient"):
        assert same(run(method), at_once)


def test_stopped_estimates_go_on(run, monkeypatch):
    whole = run(BOTH, "whole")
    seen = []

    def stop(event):
        if event.phase == "estimating" and event.done == 2:
            raise KeyboardInterrupt
        seen.append(event.phase)

    with pytest.raises(KeyboardInterrupt):
        run(BOTH, progress=stop)
    assert "estimating" in seen
    left = []
    own = estimates.estimate_window

    def count(loaded, ids, *rest):
        left.append(ids)
        return own(loaded, ids, *rest)

    monkeypatch.setattr(estimates, "estimate_window", count)
    assert same(run(BOTH), whole)
    assert len(left) == 1
    journals = [d.folder / "journal.jsonl" for d in (whole, run(BOTH))]
    assert journals[0].read_bytes() == journals[1].read_bytes()


def test_what_another_method_left_unfinished_is_kept_and_said(run, monkeypatch):
    def stop(event):
        if event.phase == "measuring" and event.done:
            raise KeyboardInterrupt

    def stop_estimates(event):
        if event.phase == "estimating" and event.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("gradient", progress=stop_estimates)
    notes = []
    exact = run("exact", progress=lambda event: notes.append(event.note or ""))
    assert any("1 of 3 windows with --method gradient are kept" in note for note in notes)
    assert not any("gradient" in exact.results.ledger[r].values for r in exact.results.ledger)
    ledger = run("gradient").results.ledger
    estimated = [ledger[r] for r in ledger if "gradient" in ledger[r].values]
    assert estimated
    assert all(set(rows.indices) == {0, 1, 2} for rows in estimated)


def test_another_study_is_still_refused(run):
    run("gradient")
    with pytest.raises(StudyError, match="another study: formats"):
        run("gradient", formats="mxfp4")


@pytest.mark.figures
def test_on_the_command_line(fp4scope, small, tmp_path):
    code, out, err = fp4scope(
        "run", *small, "--formats", "nvfp4", "--method", "exact,gradient", "-o", tmp_path / "a"
    )
    assert code == 0, err
    assert "estimating to first order" in err
    assert "estimate (first order), millinats" in out
    assert "the gradient's ranking of 7 projections against the exact sweep's: rho " in out
    code, out, err = fp4scope(
        "run", *small, "--formats", "nvfp4", "--method", "gradient", "-o", tmp_path / "b"
    )
    assert code == 0, err
    assert "Estimates are first order" in out
    assert "ranking" not in out
    written = {p.name for p in (tmp_path / "b" / "figures").iterdir()}
    assert "projections-only.svg" in written
    data = json.loads((tmp_path / "b" / "results.json").read_text())
    rows = [row["values"] for row in data["ledgers"]["text"]["rows"]]
    estimated = [values["gradient"] for values in rows if "gradient" in values]
    assert list(map(len, estimated)) == [4] * 14
    code, _, err = fp4scope("run", *small, "--method", "gradients")
    assert code == 2
    assert "method: unknown 'gradients'; did you mean gradient" in err


def test_plan_says_what_estimates_take(fp4scope, small):
    code, out, err = fp4scope("plan", *small, "--method", "gradient")
    assert code == 0, err
    assert "estimates to first order about" in out
    assert "Half-width" not in out
