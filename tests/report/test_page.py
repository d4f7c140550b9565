"""`report.html` holds the numbers of the results, and nothing that a hostile name brings."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, asked, entries, estimated, jitter, rebuilt
from fp4scope.diagnosis import Diagnosis, load
from fp4scope.ledger import ActivationRecord
from fp4scope.report import pareto, write_outputs, write_report
from fp4scope.report.numbers import interval, number
from fp4scope.report.payload import COLUMNS
from fp4scope.stats import hypotheses, significant

LIMIT = 2_000_000


class Page(HTMLParser):
    """The tables (rows of (text, value to sort by)), links, script and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.elements, self.data, self.text = [], [], "", ""
        self._inside, self._layer = [], None
        self.feed(text)
        self.payload = json.loads(self.data)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if tag == "table":
            self.tables.append({"id": attrs.get("id"), "rows": []})
        elif tag == "tr" and self.tables:
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self._layer = [tag, "", attrs]
        if tag in ("script", "style"):
            self._inside.append((tag, attrs))

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self._layer:
            _, text, attrs = self._layer
            self.tables[-1]["rows"][-1].append((" ".join(text.split()), attrs.get("data-v")))
            self._layer = None
        if tag in ("script", "style"):
            self._inside.pop()

    def handle_data(self, data):
        if self._inside:
            self.data += data if self._inside[-1][1].get("id") == "data" else ""
            return
        self.text += data
        if self._layer:
            self._layer[1] += data

    def table(self, id):
        return next(t["rows"] for t in self.tables if t["id"] == id)


def numbers(text):
    return [float(n) for n in re.findall(r"[-+]?\d[\d.]*", text.replace("−", "-"))]  # noqa: RUF001


def test_all_quantized(known):
    diagnosis = known()
    _, *rows = Page(diagnosis.html()).table("costs-table")
    assert len(rows) == 3
    for row, expected in zip(rows, diagnosis.all_quantized, strict=True):
        assert row[0][0] == ("FP32" if not expected["precision"] else expected["format"])
        names = ("delta_nll", "ppl", "nll", "kl", "top1", "noise_nll", "noise_kl", "windows")
        for (_, value), name in zip(row[3:], names, strict=True):
            assert (None if value == "" else float(value)) == expected[name]
    assert rows[1][2][0] == "+12.75%"  # exp(0.12) - 1
    assert numbers(rows[1][3][0]) == pytest.approx([120, 120, 120])
    assert numbers(rows[2][8][0]) == [3.0]


def test_the_answer_is_the_first_table_and_its_charts_have_its_numbers(known, monkeypatch):
    monkeypatch.setattr(pareto, "FEWEST", 1)
    diagnosis = known()
    page = Page(diagnosis.html())
    assert page.tables[0]["id"] == "answer"
    _, full, *rows = page.table("answer")
    assert full[0][0] == "FP32"
    wholes = [whole for whole in diagnosis.wholes if not whole.is_full_precision]
    drawn = {row["format"]: row["marks"] for row in page.payload["all_quantized"]["rows"]}
    points = {p["name"]: p for p in page.payload["pareto"]["points"] if p["kind"] == "format"}
    for row, whole in zip(rows, wholes, strict=True):
        nll = whole.costs["nll"]
        assert [cell[0] for cell in row[:2]] == [whole.name, whole.precision]
        assert float(row[2][1]) == pytest.approx(100 * np.expm1(nll.mean))
        assert float(row[4][1]) == whole.costs["kl"].mean
        (mark,) = drawn[whole.name]
        ends = [1e3 * end for end in (nll.mean, nll.low, nll.high)]
        assert [mark[end] for end in ("value", "low", "high")] == pytest.approx(ends)
        assert points[whole.title]["y"] == pytest.approx(1e3 * whole.costs["kl"].mean)
        assert points[whole.title]["x"] == pytest.approx(whole.size.model_bits or whole.size.bits)


@pytest.mark.parametrize("direction", ["keep", "only"])
def test_projections_stand_side_by_side(direction, known):
    diagnosis = known()
    page = Page(diagnosis.html())
    headed = [t["rows"] for t in page.tables if len(t["rows"]) == 5 and len(t["rows"][1]) == 15]
    rows = headed[["keep", "only"].index(direction)]
    assert [text for text, _ in rows[0][1:]] == ["mxfp4:floor", "nvfp4"]
    for name, *layers in rows[3:]:
        for fmt, (percent, nats, tier, ppl, kl, per_mb, more) in (
            ("mxfp4:floor", layers[:7]), ("nvfp4", layers[7:]),
        ):  # fmt: skip
            (expected,) = diagnosis.projections.where(
                format=fmt, direction=direction, projection=name[0]
            )
            assert float(ppl[1]) == expected["ppl"]
            change = expected["delta_ppl"] if direction == "only" else -expected["delta_ppl"]
            control = expected["ppl"] - change
            assert float(percent[1]) == pytest.approx(100 * expected["delta_ppl"] / control)
            assert float(nats[1]) == expected["delta_nll"]
            assert tier[0] == expected["tier"]
            assert float(kl[1]) == expected["kl"]
            assert float(per_mb[1]) == pytest.approx(1e3 * expected["nll_per_mb"])
            assert float(more[1]) == expected["bytes_kept"]
            ends = [1e3 * expected[f"delta_nll{end}"] for end in ("", "_low", "_high")]
            assert numbers(nats[0]) == pytest.approx(ends, abs=0.006)


def test_what_the_charts_are_drawn_from_is_the_tables(known):
    diagnosis = known()
    payload = Page(diagnosis.html()).payload
    controls = {row["format"]: row for row in diagnosis.all_quantized}
    assert payload["columns"] == list(COLUMNS)
    for level, name in (("projections", "projections"), ("layers", "layers")):
        families = payload["units"][name]
        assert len(families) == 4
        assert sum(len(f["rows"]) for f in families) == len(getattr(diagnosis, level))
        for f in families:
            restored = f["direction"] == "keep"
            control = controls[f["format"] if restored else "full precision"]
            assert f["control"]["ppl"] == pytest.approx(control["ppl"], rel=1e-4)
            for values in f["rows"]:
                row = dict(zip(COLUMNS, values, strict=True))
                place = {"projection": row["projection"]}
                place |= {} if level == "projections" else {"block": row["block"]}
                (expected,) = getattr(diagnosis, level).where(
                    format=f["format"], direction="keep" if restored else "only", **place
                )
                near = {"rel": 1e-4, "abs": 1e-6}
                for end in ("", "_low", "_high"):
                    nats = 1e3 * expected[f"delta_nll{end}"]
                    assert row[f"nats{end}"] == pytest.approx(nats, **near)
                    kl = 1e3 * expected[f"delta_kl{end}"]
                    assert row[f"kl{end}"] == pytest.approx(kl, **near)
                assert row["ppl"] == pytest.approx(expected["ppl"], **near)
                change = 100 * (expected["ppl"] / control["ppl"] - 1)
                assert row["percent"] == pytest.approx(-change if restored else change, abs=1e-3)
                assert row["percent_low"] <= row["percent"] <= row["percent_high"]
                for end in ("", "_low", "_high"):  # no interval in percent says another thing
                    nats = (-1 if restored else 1) * expected[f"delta_nll{end}"]
                    ratio = 1 - np.exp(nats) if restored else np.exp(nats) - 1
                    assert row[f"percent{end}"] == pytest.approx(100 * ratio, **near)
                assert row["ppl_low"] <= row["ppl"] <= row["ppl_high"]
                width = expected["delta_ppl_high"] - expected["delta_ppl_low"]
                assert row["ppl_high"] - row["ppl_low"] == pytest.approx(width, abs=2e-3)
                assert row["delta_ppl"] == pytest.approx(expected["delta_ppl"], **near)
                assert row["muted"] == (not significant(expected))
                assert row["muted_kl"] == (expected["p_holm_kl"] > 0.05)
                said = dict(zip((key for key, _ in payload["heads"]), row["texts"], strict=True))
                assert said["nats"] == interval(expected)
                assert said["kl_nats"] == number(expected["kl"])


def test_costly_and_negative_layers_are_named(known):
    diagnosis = known()
    found = entries(diagnosis.results)
    layer = asked(format="nvfp4", direction="only", level="layers", unit="q_proj", block=5)
    (one,) = (one for one in found if one.asked == layer)
    one.nll = [nll - 0.05 for nll in one.nll]  # ten tokens: five millinats less
    _, *rows = Page(Diagnosis(rebuilt(diagnosis.results, found)).html()).table("standout")
    by_name = {row[0][0]: [text for text, _ in row[1:]] for row in rows}
    assert by_name["keep, mxfp4:floor, W4A4"][0].startswith("10 of 12 layers; ")
    assert by_name["keep, mxfp4:floor, W4A4"][1].startswith("5.")
    assert by_name["keep, mxfp4:floor, W4A4"][2] == "none significant"
    assert re.match(r"5\.q_proj −\d", by_name["only, nvfp4, W4A4"][2])  # noqa: RUF001


def test_what_lowers_the_loss_is_not_among_the_most_costly(known):
    results = known().results
    found = entries(results)
    reference = np.array(found[0].plain.nll)
    for one in found:
        a = one.asked
        if (a.level, a.direction, a.format) == ("layers", "only", "nvfp4") and a.block > 1:
            one.nll = 2 * reference - np.array(one.nll)
    _, *rows = Page(Diagnosis(rebuilt(results, found)).html()).table("standout")
    (row,) = [[text for text, _ in row[1:]] for row in rows if row[0][0] == "only, nvfp4, W4A4"]
    assert re.findall(r"\d\.\w+_proj [+−]", row[1]) == ["1.down_proj +"]  # noqa: RUF001
    assert len(re.findall(r"\d\.down_proj −", row[2])) == 4  # noqa: RUF001


def test_whole_models_stand_in_the_order_of_their_cost(known):
    results = known(noise=False).results
    found = entries(results)
    (nvfp4,) = (one for one in found if one.asked == all_quantized("nvfp4"))
    nvfp4.nll = np.array(found[0].nll) + 0.1  # ten tokens: ten millinats
    _, *rows = Page(Diagnosis(rebuilt(results, found)).html()).table("costs-table")
    assert [row[0][0] for row in rows] == ["FP32", "nvfp4", "mxfp4:floor"]


def test_every_hypothesis_has_its_verdict(known):
    diagnosis = known()
    text = " ".join(Page(diagnosis.html()).text.split())
    for i, hypothesis in enumerate(hypotheses(diagnosis.results), 1):
        assert f"{i}. {hypothesis.name} {hypothesis.verdict.value} {hypothesis.claim}" in text
        assert hypothesis.sentence in text


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}\u2028"


def test_hostile_names_are_text(known):
    diagnosis = known()
    results = diagnosis.results
    results.model |= {"name": HOSTILE, "warnings": [HOSTILE], "architecture": HOSTILE}
    results.study |= {"model": {"name": HOSTILE}}
    results.data |= {"source": HOSTILE}
    results.environment |= {"command": ["fp4scope", "run", HOSTILE]}
    found = entries(results)
    results = rebuilt(
        results, (one.but(unit=HOSTILE) if one.asked.unit == "q_proj" else one for one in found)
    )
    text = Diagnosis(results).html()
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "img" not in [tag for tag, _ in page.elements]
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    assert "{{ 7 * 7 }}" in page.text
    assert {"name": HOSTILE, "kind": None} in page.payload["projections"]
    shown = Diagnosis(results)._repr_html_() + Diagnosis(results).layers._repr_html_()
    assert "<img" not in shown
    assert "<script" not in shown


def test_it_asks_nothing_of_anyone(known):
    text = known().html()
    page = Page(text)
    (policy,) = [
        a["content"] for _, a in page.elements
        if a.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    for tag, attrs in page.elements:
        assert tag not in ("iframe", "object", "embed", "base")
        assert "style" not in attrs
        assert "src" not in attrs
        assert attrs.get("href", "#")[:1] == "#" or attrs["href"] == "data:,"
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style


def large(observe, results, blocks=48, windows=16):
    """A study of 48 blocks, seven projections, two formats, both directions."""
    rng = np.random.default_rng(0)
    text = rng.normal(3, 1, windows)
    projections = [f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")]
    found = [observe(REFERENCE, text), observe(jitter(REFERENCE), text + 1e-6, replicas=1)]
    for fmt in ("mxfp4:floor", "nvfp4"):
        base = text + 0.4
        found.append(observe(all_quantized(fmt), base, kl=0.3))
        found.append(observe(jitter(all_quantized(fmt)), base + 0.001, replicas=1, kl=0.1))
        for direction in ("keep", "only"):
            for projection in projections:
                for block in (None, *range(blocks)):
                    moved = rng.normal(0.004, 0.01, windows)
                    nll = base - moved if direction == "keep" else text + moved
                    level = "projections" if block is None else "layers"
                    of = {"format": fmt, "direction": direction, "level": level}
                    unit = asked(**of, unit=projection, block=block)
                    found.append(observe(unit, nll, kl=0.1234567))
    return found, [
        ActivationRecord(
            block=b, projection=c, max=123.456789 + b, p999=4.5678912, ratio=27.123456, elements=9
        )
        for c in projections
        for b in range(blocks)
    ]


def test_48_blocks_stay_below_two_megabytes(known, observe, results):
    conditions = known().results
    observations, activations = large(observe, results)
    study = results(
        *observations, study=conditions.study, model=conditions.model | {"blocks": 48},
        data=conditions.data, protocol=conditions.protocol, environment=conditions.environment,
    )  # fmt: skip
    study.activations = activations
    text = Diagnosis(study).html()
    assert sum(len(f["rows"]) for f in Page(text).payload["units"]["layers"]) == 48 * 7 * 4
    assert len(text.encode()) < LIMIT


def without(diagnosis, keep):
    results = diagnosis.results
    return Diagnosis(rebuilt(results, (one for one in entries(results) if keep(one.asked))))


def test_what_was_not_measured_is_said_with_the_command_for_it(known):
    page = Page(without(known(noise=False), lambda a: a.level != "layers").html())
    assert "No layers were measured" in page.text
    assert "--sweep projections,layers" in page.text
    page = Page(without(known(), lambda a: a.level != "projections").html())
    assert "No projections were measured" in page.text
    page = Page(without(known(), lambda a: a.is_whole).html())
    assert "No layers were measured" in page.text
    page = Page(without(known(), lambda a: a.direction != "only").html())
    for name in ("projections", "layers"):
        assert f"Of {name} only “keep” was measured" in page.text
        assert f"--sweep {name} --direction only" in page.text
    partly = without(known(), lambda a: a.level != "layers" or a.direction == "only")
    text = Page(partly.html()).text
    assert "Of layers only “only” was measured" in text
    assert "Of projections only" not in text
    silent = known()
    silent.results.activations = []
    assert "fp4scope stats MODEL" in Page(silent.html()).text


def test_few_windows_have_no_interval(known):
    results = known().results
    results = rebuilt(results, (one.without(range(3, 8)) for one in entries(results)))
    results.data |= {"windows": 3}
    page = Page(Diagnosis(results).html())
    assert "3 windows are too few for an interval" in page.text
    family = page.payload["units"]["layers"][0]
    assert {row[COLUMNS.index("nats_low")] for row in family["rows"]} == {None}
    place = [key for key, _ in page.payload["heads"]].index("p_holm")
    assert {row[-1][place] for row in family["rows"]} == {""}
    assert not any(row[COLUMNS.index("muted")] for row in family["rows"])


@pytest.mark.parametrize("measured", [True, False])
def test_estimates_are_marked(known, measured):
    results = known().results
    found = entries(results)
    units = [one.asked for one in found if not one.asked.is_whole]
    if not measured:
        found = [one for one in found if one.asked.is_whole]
    found += [estimated(unit, [(0.07 + i) / 10] * 8) for i, unit in enumerate(units)]
    diagnosis = Diagnosis(rebuilt(results, found))
    page = Page(diagnosis.html())
    assert "Parts of this page are estimates." in page.text
    family = page.payload["units"]["layers"][0]
    assert family["estimated"] is not measured
    row = dict(zip(COLUMNS, family["rows"][0], strict=True))
    first = diagnosis.layers[0]
    said = dict(zip((key for key, _ in page.payload["heads"]), row["texts"], strict=True))
    assert said["gradient"] == interval(first, "gradient_nll")
    if measured:
        assert "against the exact sweep's: rho" in page.text
    else:
        assert row["nats"] == pytest.approx(1e3 * first["gradient_nll"], rel=1e-4)
        assert row["ppl"] is row["percent"] is None


def test_units_that_saw_fewer_windows(known):
    """As after a goal was reached: intervals are confidence sequences."""
    results = known().results
    results.protocol |= {
        "stopping": {
            "goal": "half-width=1mnat", "anytime": True, "reached": True, "windows": 8,
            "available": 9, "families": [], "widest_nats": 0.001,
        }
    }  # fmt: skip
    found = (one.without([0]) if one.asked.block == 0 else one for one in entries(results))
    page = Page(Diagnosis(rebuilt(results, found)).html())
    assert "95% confidence sequence" in page.text
    assert "Goal half-width=1mnat: reached after 8 of 9 windows" in page.text


def test_several_operands(known):
    results = known().results
    found = entries(results)
    found += [one.but(precision="W4A16") for one in found if one.asked.precision]
    page = Page(Diagnosis(rebuilt(results, found)).html())
    assert len(page.payload["units"]["layers"]) == 8
    assert {f["precision"] for f in page.payload["units"]["layers"]} == {"W4A4", "W4A16"}
    assert "Projections, keep, W4A16" in page.text
    names, compared = page.table("formats")
    assert [text for text, _ in names][3:] == [
        f"{bits}, millinats per token" for bits in ("W4A4", "W4A16")
    ]
    assert [text for text, _ in compared][:3] == ["nvfp4", "mxfp4:floor", "format"]
    assert [float(value) for _, value in compared[3:]] == pytest.approx([0.12, 0.12])


def test_what_activations_add_stands_beside_it(known, observe):
    results = known().results
    found = entries(results)
    text = np.array(found[0].plain.nll) / 10  # ten tokens a window
    found.append(observe(all_quantized("mxfp4:floor", "W4A16"), text + 0.05))
    _, row = Page(Diagnosis(rebuilt(results, found)).html()).table("both")
    assert [text for text, _ in row] == ["mxfp4:floor", "W4A16", "+70.00 [+70.00, +70.00]"]
    assert "Weights and activations" not in Page(known().html()).text


def test_formats_are_compared_with_the_cheapest(known):
    text = " ".join(Page(known().html()).text.split())
    # 240 less 120 millinats, the same in every window.
    assert "nvfp4mxfp4:floorformat+120.0 [+120.0, +120.0]" in text.replace(" nvfp4", "nvfp4")


def test_a_run_and_a_report_write_the_same_page(known, tmp_path):
    write_outputs(known(), tmp_path)
    first = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    assert [path.name for path in write_report(load(tmp_path), tmp_path)] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == first


def test_the_command_needs_no_torch(known, tmp_path):
    write_outputs(known(), tmp_path)
    code = (
        "import sys\n"
        f"sys.argv = ['fp4scope', 'report', {str(tmp_path)!r}]\n"
        "from fp4scope.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "report.html")


def test_notebooks_show_tables(known):
    diagnosis = known()
    shown = diagnosis._repr_html_()
    assert "FP4 sensitivity of known" in shown
    assert "+120.0 [+120.0, +120.0]" in shown
    layers = diagnosis.layers._repr_html_()
    assert layers.count("<tr>") == 1 + 48
    assert f"<td>{diagnosis.layers[0]['ppl']:.4g}</td>" in layers
