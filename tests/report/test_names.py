"""Names of others: whatever a model or a unit is called, it is shown and does nothing."""

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from asking import entries, rebuilt
from fp4scope.cli.terminal import console
from fp4scope.diagnosis import Comparison, Diagnosis, load
from fp4scope.errors import OutputError, StudyError
from fp4scope.report import files, write_outputs, write_report
from fp4scope.report.figures import save
from fp4scope.report.gates import failures, parse_gate
from fp4scope.table import Table

NAMES = (
    "m$\\frac$x", "a|b`<script>x</script>", "\x1b]0;title\x07\x1b[31m", "caf\udce9", "=1+1",
    "a\nb",
)  # fmt: skip


@pytest.fixture
def renamed(known):
    """`renamed(name)`: the known study, with model and one projection called so."""

    def build(name):
        results = known().results
        results.model |= {"name": name}
        results.study = {"numerics": {"replicas": 1}, "data": {"text": name}}
        found = (
            one.but(unit=name) if one.asked.unit == "q_proj" else one for one in entries(results)
        )
        return Diagnosis(rebuilt(results, found))

    return build


def unescaped_bars(line):
    return len(re.findall(r"(?<!\\)\|", line))


@pytest.mark.parametrize("name", NAMES)
def test_names_do_nothing_in_markdown(name, renamed):
    diagnosis = renamed(name)
    both = Comparison({"a": diagnosis.results, name: renamed(name).results})
    for text in (diagnosis.report(), both.report()):
        assert "<script" not in text
        assert "\x1b" not in text
        bars = 0
        for line in text.split("\n"):
            if line.startswith("| --- "):
                bars = unescaped_bars(line)
            elif not line.startswith("|"):
                bars = 0
            assert not bars or unescaped_bars(line) == bars, line
        text.encode("utf-8", "backslashreplace")


@pytest.mark.parametrize("name", NAMES)
def test_figures_show_names_as_they_are(name, renamed, tmp_path):
    diagnosis = renamed(name)
    for kind in ("projections", "heatmap"):
        save(diagnosis.plot(kind), tmp_path / "figure.svg", "svg")
        text = "".join(ElementTree.parse(tmp_path / "figure.svg").getroot().itertext())
        shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
        assert shown in text


@pytest.mark.parametrize("name", NAMES)
def test_names_do_nothing_on_a_terminal(name, capsys):
    console().print(f"a {name} b")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_names_are_no_formulas_in_a_spreadsheet():
    table = Table(("unit", "value"), [{"unit": "=1+1", "value": -0.5}, {"unit": "q", "value": 2}])
    assert table.to_csv() == "unit,value\n'=1+1,-0.5\nq,2\n"


def test_a_name_leads_to_no_other_folder(known, tmp_path):
    results = known().results
    results = rebuilt(
        results,
        (
            one.but(format="nvfp4/../../../x") if one.asked.format == "nvfp4" else one
            for one in entries(results)
        ),
    )
    (tmp_path / "out").mkdir()
    written = write_report(Diagnosis(results), tmp_path / "out", with_figures=True)
    folders = {path.parent for path in written}
    assert folders == {tmp_path / "out", tmp_path / "out" / "figures"}
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_the_numbers_are_written_whatever_becomes_of_the_report(known, tmp_path, monkeypatch):
    diagnosis = known()

    def broken(found):
        raise RuntimeError("no report")

    monkeypatch.setattr(files, "page", broken)
    with pytest.raises(RuntimeError, match="no report"):
        write_outputs(diagnosis, tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    wanted = {"results.json", "all_quantized.csv", "projections.csv", "layers.csv"}
    assert wanted <= left
    assert not [name for name in left if name.startswith("report")]


def test_a_path_that_is_not_utf8_is_written_as_an_escape(renamed, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "figures", lambda *_, **__: ())
    write_outputs(renamed("caf\udce9"), tmp_path)
    assert "caf\\udce9" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "caf\\udce9" in (tmp_path / "projections.csv").read_text(encoding="utf-8")
    assert load(tmp_path).results.study["data"]["text"] == "caf\\udce9"


def test_a_gate_judges_no_number_that_is_none(known):
    results = [known().results for _ in range(2)]
    found = entries(results[1])
    for one in found:
        if one.asked.is_whole and one.asked.precision:
            one.nll = [float("nan")] * len(one.nll)
    results[1] = rebuilt(results[1], found)
    for one in results:
        one.model |= {"tokenizer_sha256": "t"}
    found = Comparison(dict(zip("ab", results, strict=True)))
    for condition in ("beyond-noise", "cost(nvfp4) > 40", "cost(nvfp4) < 40", "change < 0"):
        with pytest.raises(StudyError, match="has nan, which nothing judges"):
            failures(parse_gate(condition), found)


def test_planted_links_are_not_followed(known, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "figures", lambda *_, **__: ())
    out, own = tmp_path / "out", tmp_path / "own.txt"
    out.mkdir()
    own.write_text("mine")
    for name in ("report.md", "results.json"):
        (out / f".partial-{name}").symlink_to(own)
    os.link(own, out / ".partial-report.html")
    write_outputs(known(), out)
    assert own.read_text() == "mine"
    assert (out / "report.md").read_text().startswith("# FP4")
    (tmp_path / "elsewhere").mkdir()
    (out / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a link to another folder"):
        files.write_figures([("x", known().plot("heatmap"))], out, ("svg",))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["results.json", ".partial-results.json", "figures"])
def test_a_place_that_is_taken_is_one_message(name, known, tmp_path, monkeypatch):
    if name == "figures":
        (tmp_path / name).write_text("a file")
    else:
        (tmp_path / name / "in the way").mkdir(parents=True)
    monkeypatch.setattr(files, "figures", lambda d, **_: [("x", d.plot("heatmap"))])
    with pytest.raises(OutputError, match=r"cannot (write|make) .*what was measured is safe"):
        write_outputs(known(), tmp_path)


def test_an_error_while_cleaning_up_does_not_hide_the_first(known, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match="Read-only file system"):
        write_report(known(), tmp_path)
