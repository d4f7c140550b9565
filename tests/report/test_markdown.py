"""`report.md` and the CSV files hold the numbers of the results."""

import csv
import re

import numpy as np
import pytest

from asking import BOTH, REFERENCE, all_quantized, entries, entry, estimated, rebuilt
from fp4scope.diagnosis import Diagnosis, load
from fp4scope.errors import StudyError
from fp4scope.report import write_outputs
from fp4scope.report.figures import figure_names
from fp4scope.report.labels import LOWER_LOSS

WORDS = {"keep": "keep", "only": "only"}


def tables(text):
    """Every table by the heading above it, as a list of dicts."""
    found, heading, lines = {}, "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            heading = line.strip("# ")
        if line.startswith("| "):
            lines.append([layer.strip() for layer in line.strip("|").split(" | ")])
        elif lines:
            names, _, *rows = lines
            found.setdefault(heading, [dict(zip(names, row, strict=True)) for row in rows])
            lines = []
    return found


def numbers(text):
    return [float(number) for number in re.findall(r"[-+]?\d[\d.]*", text.replace("\u2212", "-"))]


def test_run_to_run_noise_is_a_column_of_the_formats(known):
    rows = tables(known().report())["What each format costs"]
    # Two runs d apart in each of eight windows: sqrt(d^2 / 2 / 8) = d / 4; d is 0.004, 6, 12.
    noise = [row["run-to-run noise, millinats"] for row in rows]
    assert noise == ["±0.0010", "±1.50", "±3.00"]
    assert [row["KL of two runs"] for row in rows] == ["0", "0.050", "0.050"]
    quiet = tables(known(noise=False).report())["What each format costs"]
    assert [row["run-to-run noise, millinats"] for row in quiet] == [""] * 3
    assert [row["millinats per token"] for row in quiet] == [
        "", "+120.0 [+120.0, +120.0]", "+240.0 [+240.0, +240.0]",
    ]  # fmt: skip


@pytest.mark.parametrize("direction", ["keep", "only"])
def test_projections_have_their_difference_and_tier(direction, known):
    diagnosis = known()
    found = tables(diagnosis.report())
    for fmt in ("mxfp4:floor", "nvfp4"):
        _, *rows = found[f"Projections, {WORDS[direction]}, {fmt}, W4A4"]
        of = {
            r["projection"]: r for r in diagnosis.projections.where(format=fmt, direction=direction)
        }
        assert {row["projection"] for row in rows} == of.keys()
        for row in rows:
            expected = of[row["projection"]]
            assert row["tier"] == expected["tier"]
            value, low, high = numbers(row["millinats per token"])
            assert value == pytest.approx(1e3 * expected["delta_nll"], abs=0.01)
            assert low == pytest.approx(1e3 * expected["delta_nll_low"], abs=0.01)
            assert high == pytest.approx(1e3 * expected["delta_nll_high"], abs=0.01)
    # Under NVFP4 one costs five millinats and the other nothing; under MXFP4 both cost five.
    tiers = {
        fmt: {
            r["projection"]: r["tier"]
            for r in found[f"Projections, {WORDS[direction]}, {fmt}, W4A4"][1:]
        }
        for fmt in ("mxfp4:floor", "nvfp4")
    }
    assert tiers["nvfp4"] == {"down_proj": "a", "q_proj": "b"}
    assert set(tiers["mxfp4:floor"].values()) == {"a"}


def test_every_csv_is_the_difference_of_the_observations(known, tmp_path):
    diagnosis = known()
    results = diagnosis.results
    by_name = {tuple(one.asked.names.values()): one for one in entries(results)}
    write_outputs(diagnosis, tmp_path)
    for name, count in (("projections", 2 * 2 * 2), ("layers", 2 * 2 * 2 * 6)):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        for row in rows:
            block = int(row["block"]) if name == "layers" else None
            family = name, row["format"], BOTH, row["direction"]
            own = by_name[(*family, row["projection"], block)]
            restored = row["direction"] == "keep"
            other = entry(results, all_quantized(row["format"]) if restored else REFERENCE).plain
            cost = np.subtract(own.nll, other.nll) / 10 * (-1 if restored else 1)
            assert float(row["delta_nll"]) == pytest.approx(cost.mean(), abs=1e-12)
            stderr = cost.std(ddof=1) / 8**0.5
            assert float(row["delta_nll_stderr"]) == pytest.approx(stderr)
            assert float(row["nll"]) == pytest.approx(np.mean(own.nll) / 10)
    again = load(tmp_path)
    assert again.layers.rows == diagnosis.layers.rows
    assert (tmp_path / "report.md").read_text() == again.report() == diagnosis.report()


def test_the_report_counts_the_layers_that_are_significant(known):
    text = known().report()
    for direction in ("Keep", "Only"):
        # All but block 0; under NVFP4 those of q_proj neither.
        for fmt, count in (("mxfp4:floor", 10), ("nvfp4", 5)):
            assert f"{direction}, {fmt}: {count} of 12 layers are significant" in text


def test_layers_whose_quantization_lowers_the_loss_are_listed(known):
    results = known().results
    found = entries(results)
    reference = np.array(found[0].plain.nll)
    for one in found:
        a = one.asked
        if (a.level, a.direction, a.format) == ("layers", "only", "mxfp4:floor"):
            one.nll = 2 * reference - np.array(one.nll)
    text = Diagnosis(rebuilt(results, found)).report()
    (line,) = [line for line in text.splitlines() if "the loss falls" in line]
    start = "- Only, mxfp4:floor, w4a4: the loss falls with any of these quantized: 5."
    assert line.lower().startswith(start.lower())
    assert line.count("_proj \u2212") == 10
    assert LOWER_LOSS in text
    assert LOWER_LOSS not in known().report()


def test_all_layers_of_a_small_study_stand_there_without_a_count(known):
    results = known().results
    assert "W4A4: the 10 largest of 12\n" in Diagnosis(results).report()
    kept = [one for one in entries(results) if (one.asked.block or 0) < 3]
    text = Diagnosis(rebuilt(results, kept)).report()
    assert "largest of" not in text
    assert len(tables(text)["Layers, keep, nvfp4, W4A4"]) == 6


@pytest.fixture
def guessed(known):
    """`guessed(measured=True)`: with estimates of twice what a unit costs, to first order."""

    def build(measured=True):
        diagnosis = known()
        found = entries(diagnosis.results)
        rows = {
            **{("layers", r["format"], r["direction"], r["projection"], r["block"]): r["delta_nll"]
               for r in diagnosis.layers},
            **{("projections", r["format"], r["direction"], r["projection"], None): r["delta_nll"]
               for r in diagnosis.projections},
        }  # fmt: skip
        units = {
            (a.level, a.format, a.direction, a.unit, a.block): a
            for a in (one.asked for one in found)
            if not a.is_whole
        }
        if not measured:
            found = [one for one in found if one.asked.is_whole]
        found += [estimated(unit, [2 * rows[key]] * 8) for key, unit in units.items()]
        return Diagnosis(rebuilt(diagnosis.results, found))

    return build


@pytest.mark.parametrize("measured", [True, False])
def test_estimates_are_marked_as_such(guessed, measured):
    diagnosis = guessed(measured)
    text = diagnosis.report()
    assert "Estimates are first order" in text
    assert text.count("ranking of 12 layers against the exact sweep's: rho 1.00 (") == 4 * measured
    assert text.count("of the 10 most costly, 10 are the same") == 4 * measured
    rows = tables(text)["Projections, only, mxfp4:floor, W4A4"][measured:]
    column = "estimate (first order), millinats"
    expected = {r["projection"]: r for r in diagnosis.projections.where(format="mxfp4:floor")}
    for row in rows:
        assert ("PPL" in row) == measured
        value, *_ = numbers(row[column])
        unit = expected[row["projection"]]
        assert value == pytest.approx(1e3 * unit["gradient_nll"], abs=0.01)
    assert ("saves most" in text) == measured


def test_without_estimates_the_report_says_nothing_of_them(known):
    assert "first order" not in known().report()


def test_estimates_survive_the_file(guessed, tmp_path):
    diagnosis = guessed()
    write_outputs(diagnosis, tmp_path)
    again = load(tmp_path)
    assert again.results.ledger == diagnosis.results.ledger
    assert again.layers.rows == diagnosis.layers.rows
    assert again.agreement.rows == diagnosis.agreement.rows
    assert (tmp_path / "agreement.csv").exists()
    with (tmp_path / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row["gradient_nll"]) == pytest.approx(2 * float(row["delta_nll"]), abs=1e-7)


def test_what_was_only_estimated_is_drawn_and_called_so(guessed, known):
    diagnosis = guessed(measured=False)
    names = figure_names(diagnosis)
    assert "heatmap-keep" in names
    assert not [name for name in names if name.startswith("percent")]
    for kind in ("projections", "layers", "heatmap"):
        figure = diagnosis.plot(kind, direction="only")
        texts = [figure.get_suptitle(), *(axis.get_title(loc="left") for axis in figure.axes)]
        assert any("first-order estimate" in t for t in texts), kind
        assert not any("noise" in t for t in texts), kind
    (axis,) = diagnosis.plot("projections", direction="only").axes
    marks = [x for of in axis.collections if hasattr(of, "get_sizes") for x, _ in of.get_offsets()]
    costs = [1e3 * r["gradient_nll"] for r in diagnosis.projections.where(direction="only")]
    assert sorted(marks) == pytest.approx(sorted(costs))
    with pytest.raises(StudyError, match="first-order estimate has none"):
        diagnosis.plot("percent")
    measured = guessed(measured=True).plot("layers", direction="only")
    assert "estimate" not in measured.get_suptitle()
