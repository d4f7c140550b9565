"""The tables of docs/reproduction.md, on a study whose every number is known."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from asking import entries, rebuilt

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "results" / "smollm2-135m"
spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks" / "reproduction.py")
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def said(found, kind, projection="down_proj", fmt="mxfp4", blocks="", percent=""):
    """What is shown of ours, and the verdict."""
    of = {"projection": projection, "format": fmt, "blocks": blocks, "percent": percent}
    _, ours, verdict = compare.STATEMENTS[kind](found, of)
    return ours, verdict


@pytest.mark.parametrize(
    ("blocks", "verdict"),
    [
        ("5", "agrees"),
        ("4 5", "agrees"),
        ("5 0", "in part"),
        ("2", "disagrees"),
        ("0", "disagrees"),
    ],
)
def test_blocks_that_are_said_to_cost_most(known, blocks, verdict):
    assert said(known(), "peaks", blocks=blocks)[1] == verdict


def test_the_block_that_costs_most_is_named_where_the_paper_names_another(known):
    ours, _ = said(known(), "peaks", blocks="2")
    assert ours.startswith("2: \u22120.20% [")
    assert ", rank 4; the largest is 5: \u22120.50% [" in ours


@pytest.mark.parametrize(
    ("block", "percent", "verdict"),
    [
        ("5", "-0.5", "agrees"), ("5", "-3", "smaller here"), ("5", "-0.2", "larger here"),
        ("5", "0.5", "other sign"), ("0", "-0.5", "smaller here"), ("0", "-0.01", "undecided"),
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
    ours, verdict = said(known(), "flat")
    assert ours.endswith("; 5 of 6 significant")
    # Both projections of this study spread alike: neither less than the other.
    assert verdict == "disagrees"


@pytest.mark.parametrize(
    ("blocks", "verdict"),
    [("5", "agrees"), ("4 1", "agrees"), ("5 0", "in part"), ("0", "undecided")],
)
def test_blocks_that_are_said_to_be_strong(known, blocks, verdict):
    assert said(known(), "strong", blocks=blocks)[1] == verdict


@pytest.mark.parametrize("kind", ["peaks", "strong", "change", "early"])
def test_where_nothing_can_be_told_apart_nothing_is_said(known, kind):
    assert said(known(), kind, "q_proj", "nvfp4", blocks="0", percent="0")[1] == "undecided"


@pytest.mark.parametrize("kind", ["peaks", "strong", "change", "early"])
def test_on_few_windows_nothing_is_said(known, kind):
    results = known().results
    few = rebuilt(results, (one.without(range(3, 8)) for one in entries(results)))
    found = compare.fp4scope.Diagnosis(few)
    ours, verdict = said(found, kind, blocks="5", percent="-0.5")
    assert verdict == "undecided"
    assert "[" not in ours
    assert list(compare.readings(found))[-1].endswith("| \u2212120.0 (no interval) |")


def test_whole_models_are_compared_by_the_ratio_of_perplexities(known):
    lines = list(compare.readings(known()))
    assert [line for line in lines if line.startswith("| ours")] == [
        next(line for line in lines if "mxfp4:floor, W4A4" in line)
    ]
    assert lines[-1].endswith("| \u2212120.0 [\u2212120.0, \u2212120.0] |")


def test_what_the_paper_says_is_consistent():
    for model in {row["model"] for row in compare.read("projections")}:
        for fmt in compare.FORMATS:
            ppl = compare.paper_projections(model, fmt)
            for row in compare.read("projections"):
                if (row["model"], row["format"]) == (model, fmt) and row["improvement"]:
                    drop = ppl["all-quantized"] - float(row["ppl"])
                    assert drop == pytest.approx(float(row["improvement"]), abs=0.011)
    assert {row["kind"] for row in compare.read("statements")} == set(compare.STATEMENTS)


def test_savings_in_nats():
    saved = compare.savings({"all-quantized": 20.0, "q_proj": 19.0, "up_proj": 10.0})
    assert list(saved) == ["up_proj", "q_proj"]
    assert saved["up_proj"] == pytest.approx(np.log(2))


def test_tables_stand_between_their_markers():
    document = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n"
    new = compare.filled(document, {"one": "1", "two": r"2\1"})
    assert new == "a\n<!-- one -->\n\n1\n\n<!-- end -->\nb\n<!-- two -->\n\n2\\1\n\n<!-- end -->\n"
    assert compare.filled(new, {"one": "1", "two": r"2\1"}) == new
    with pytest.raises(SystemExit, match="three"):
        compare.filled(document, {"three": ""})


@pytest.fixture(scope="module")
def tables():
    """Every table, of the results that are kept: rows of layers, by name."""
    found = compare.fp4scope.load(KEPT)
    return {
        name: [line.strip("| ").split(" | ") for line in table(found) if line.startswith("| ")]
        for name, table in compare.TABLES.items()
    }


def rows_of(name):
    with (KEPT / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_projections_stand_beside_the_papers(tables):
    down = [row for row in tables["projections"] if row[0] == "down_proj"]
    paper = [compare.paper_projections("Qwen2.5-0.5B", fmt) for fmt in compare.FORMATS]
    kept = rows_of("projections.csv")
    for row, of, fmt in zip(down, paper, compare.FORMATS.values(), strict=True):
        names = {"format": fmt, "projection": "down_proj", "direction": "keep"}
        (ours,) = [r for r in kept if names.items() <= r.items()]
        assert float(row[1]) == of["down_proj"]
        assert float(row[2]) == pytest.approx(float(ours["ppl"]), abs=0.005)
        saved = 1000 * np.log(of["all-quantized"] / of["down_proj"])
        assert float(row[3].split()[0]) == pytest.approx(saved, rel=1e-3)
        assert float(row[4].split()[0]) == pytest.approx(1000 * float(ours["delta_nll"]), rel=1e-3)
        assert row[5] == ours["tier"]


def test_activations_stand_beside_the_papers(tables):
    (down,) = [row for row in tables["activations"] if row[0] == "down_proj"]
    kept = [row for row in rows_of("activations.csv") if row["projection"] == down[0]]
    means = [np.mean([float(r[name]) for r in kept]) for name in ("p999", "max", "ratio")]
    assert [float(x) for x in down[2::2]] == pytest.approx(means, rel=2e-3)
    assert down[1::2] == ["2.8", "253", "159"]


def test_orders_of_the_paper(tables):
    """Its 0.5B model orders projections alike under both formats."""
    assert tables["orders"][2][:2] == ["0.5B mxfp4", "1.00"]
    assert len(tables["statements"]) == 2 + len(compare.read("statements"))
    assert [row[0] for row in tables["resolution"]] == ["format", "---", "mxfp4", "nvfp4"]


@pytest.mark.skipif(not compare.OURS.exists(), reason="the run of the paper's preset is not here")
def test_the_document_is_up_to_date(monkeypatch):
    monkeypatch.setattr("sys.argv", ["reproduction.py", "--check"])
    assert compare.main() == 0
