"""The tables of docs/reproduction.md, on a study whose every number is known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PAPER = Path(__file__).parents[2] / "docs" / "paper"
spec = importlib.util.spec_from_file_location("compare", PAPER / "compare.py")
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def said(found, kind, component="down_proj", fmt="mxfp4", blocks="", percent=""):
    """What is shown of ours, and the verdict."""
    of = {"component": component, "format": fmt, "blocks": blocks, "percent": percent}
    _, ours, verdict = compare.STATEMENTS[kind](found, of)
    return ours, verdict


@pytest.mark.parametrize(
    ("blocks", "verdict"),
    [("5", "agrees"), ("4 5", "agrees"), ("5 0", "in part"), ("2", "disagrees"), ("0", "not told")],
)
def test_blocks_that_are_said_to_cost_most(known, blocks, verdict):
    assert said(known(), "peaks", blocks=blocks)[1] == verdict


def test_the_block_that_costs_most_is_named_where_the_paper_names_another(known):
    ours, _ = said(known(), "peaks", blocks="2")
    assert ours.startswith("2: -0.20% [")
    assert ", rank 4; the largest is 5: -0.50% [" in ours


@pytest.mark.parametrize(
    ("block", "percent", "verdict"),
    [
        ("5", "-0.5", "agrees"), ("5", "-3", "smaller here"), ("5", "-0.2", "larger here"),
        ("0", "-0.5", "not told"),
    ],
)  # fmt: skip
def test_changes_in_percent(known, block, percent, verdict):
    assert said(known(), "change", blocks=block, percent=percent)[1] == verdict


def test_early_blocks(known):
    # Blocks 0 and 1 of six cost 0 and 1 of 0 + 1 + ... + 5.
    ours, verdict = said(known(), "early")
    assert ours.startswith("7% [")
    assert verdict == "disagrees"


def test_flat(known):
    assert said(known(), "flat", "q_proj", "nvfp4")[1] == "agrees"
    ours, verdict = said(known(), "flat")
    assert "5 of 6 told from zero, 15 of 15 pairs told apart" in ours
    assert verdict == "disagrees"


def test_whole_models_are_compared_by_the_ratio_of_perplexities(known):
    lines = list(compare.readings(known()))
    assert [line for line in lines if line.startswith("| ours")] == [
        next(line for line in lines if "mxfp4:floor, weights+activations" in line)
    ]
    assert lines[-1].endswith("| -120.0 [-120.0, -120.0] |")


def test_what_the_paper_says_is_consistent():
    for model in {row["model"] for row in compare.read("components")}:
        for fmt in compare.FORMATS:
            ppl = compare.paper_components(model, fmt)
            for row in compare.read("components"):
                if (row["model"], row["format"]) == (model, fmt) and row["improvement"]:
                    drop = ppl["baseline"] - float(row["ppl"])
                    assert drop == pytest.approx(float(row["improvement"]), abs=0.011)
    assert {row["kind"] for row in compare.read("statements")} == set(compare.STATEMENTS)


def test_savings_in_nats():
    saved = compare.savings({"baseline": 20.0, "q_proj": 19.0, "up_proj": 10.0})
    assert list(saved) == ["up_proj", "q_proj"]
    assert saved["up_proj"] == pytest.approx(np.log(2))


def test_tables_stand_between_their_markers():
    document = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n"
    new = compare.filled(document, {"one": "1", "two": r"2\1"})
    assert new == "a\n<!-- one -->\n\n1\n\n<!-- end -->\nb\n<!-- two -->\n\n2\\1\n\n<!-- end -->\n"
    assert compare.filled(new, {"one": "1", "two": r"2\1"}) == new
    with pytest.raises(SystemExit, match="three"):
        compare.filled(document, {"three": ""})


@pytest.mark.skipif(not compare.OURS.exists(), reason="the run of the paper's preset is not here")
def test_the_document_is_up_to_date(monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare.py", "--check"])
    assert compare.main() == 0
