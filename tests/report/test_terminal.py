"""The tables on the terminal."""

import io
import re
import shlex

import pytest
from rich.console import Console

from asking import entries, rebuilt
from fp4scope.cli import progress, tables, terminal
from fp4scope.diagnosis import Diagnosis
from fp4scope.report.sections import costs, units
from fp4scope.sweep import Progress


def printed(sections, width=80):
    out = Console(file=io.StringIO(), width=width)
    for section in sections:
        out.print(terminal.in_grid(section))
    return out.file.getvalue().splitlines()


def test_one_choice_of_operands_is_one_table_that_fits(known):
    lines = printed(costs(known(), apart=True))
    assert lines[0] == "What each format costs"
    assert [line.split()[0] for line in lines[1:]] == [
        "format",
        "FP32",
        "mxfp4:floor",
        "nvfp4",
    ]
    assert "+120.0 [+120.0, +120.0]" in lines[3]


def test_a_table_for_each_choice_of_operands(known):
    results = known().results
    found = entries(results)
    twins = [
        one.but(precision="W4A16")
        for one in found
        if one.asked.is_whole and one.asked.format == "nvfp4"
    ]
    lines = printed(costs(Diagnosis(rebuilt(results, [*found, *twins])), apart=True))
    titles = [f"What each format costs, {bits}" for bits in ("W4A4", "W4A16")]
    assert [line for line in lines if line.startswith("What")] == titles
    second = lines[lines.index(titles[1]) + 2 :]
    assert [line.split()[0] for line in second] == ["FP32", "nvfp4"]


def test_projections_stand_in_the_order_of_their_cost(known):
    lines = printed(units(known(), "projections", apart=True))
    rows = [line.split()[0] for line in lines if "_proj" in line]
    # Under MXFP4 both cost the same, give or take.
    assert rows[2:4] == rows[6:] == ["down_proj", "q_proj"]
    assert lines[0] == "Projections, keep, mxfp4:floor, W4A4"


def shown(diagnosis, width, monkeypatch, terminal=True):
    """What a finished run prints."""
    out = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(tables, "console", lambda: out)
    tables.print_diagnosis(diagnosis)
    return out.file.getvalue()


@pytest.fixture
def wide(known, tmp_path):
    """Four formats and long names: more than fits beside each other; in a folder of its own."""
    results = known().results
    found = entries(results)
    for one in list(found):
        if one.asked.format == "nvfp4":
            found += [one.but(format=name) for name in ("nvfp4:4over6", "mxfp4:rceil")]
    long = "language_model_query_projection"
    found = (one.but(unit=long) if one.asked.unit == "q_proj" else one for one in found)
    for name in ("report.html", "layers.csv"):
        (tmp_path / name).touch()
    return Diagnosis(rebuilt(results, found), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_and_no_name_is_broken(width, wide, monkeypatch):
    whole = set(shown(wide, 80, monkeypatch, terminal=False).split())
    text = shown(wide, width, monkeypatch)
    assert set(text.split()) - {"\\"} == whole
    long = [line for line in text.splitlines() if len(line.rstrip()) > width]
    assert all(line.startswith(("Open: ", "Written to ", "  ")) for line in long)
    assert len(long) < 8  # two commands
    assert "[" not in {word for line in text.splitlines() for word in line[-1:]}


def test_a_pipe_has_a_line_for_each_row_and_sentence(wide, monkeypatch):
    lines = shown(wide, 40, monkeypatch, terminal=False).splitlines()
    (heading,) = [line for line in lines if line.startswith("Projections, keep, nvfp4,")]
    row = lines[lines.index(heading) + 3]
    assert len(re.findall(r"\[", row)) == 2
    findings = [line for line in lines if line.startswith("- ")]
    assert all(line.endswith(".") for line in findings)


def test_findings_are_last_then_where_to_go_on(wide, monkeypatch):
    text = shown(wide, 80, monkeypatch)
    parts = ("\nWritten to ", "What each format costs", "Paired over ", "\n- ", "\nTook: 0:01")
    places = [text.index(part) for part in parts]
    page = (wide.folder / "report.html").resolve().as_uri()
    places += [text.index(f"\nOpen: {page}\n"), text.index("\nNext: fp4scope ")]
    assert places == sorted(places)
    assert text.count("\n", places[-1]) <= 9  # two commands with long paths


def test_a_long_command_can_be_copied(tmp_path):
    words = ["fp4scope", "run", "--config", "a folder/study.yaml", "-o", "x" * 30, "--windows", "9"]
    for width in (20, 40, 200):
        out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        terminal.command(out, "Next:", words)
        text = out.file.getvalue()
        assert shlex.split(text.removeprefix("Next: ").replace("\\\n", " ")) == words
        assert ("\\\n" in text) == (width < 100)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_fits(width, monkeypatch):
    out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "console", lambda stderr: out)
    bar = progress.Screen()._bar
    bar.add_task("calibrating", total=256, completed=200, detail="200 of 256 windows")
    drawn = Console(file=io.StringIO(), width=width, color_system=None)
    drawn.print(bar)
    (line,) = drawn.file.getvalue().splitlines()
    assert line.startswith("calibrating ━")
    assert line.rstrip().endswith("left")
    assert "200 of 256 windows" in line
    assert "…" not in line


def test_an_end_is_said_once_and_what_follows_has_its_own_lines(monkeypatch):
    out = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(progress, "console", lambda stderr: out)
    screen = progress.Screen()
    for phase, done in [("warming", 0), ("warming", 9), ("warming", 9), ("probing", 0),
                        ("probing", 9), ("probing", 0), ("probing", 9)]:  # fmt: skip
        screen(Progress(phase, done, 9, "a short probe"))
    lines = [line.split(",")[0] for line in out.file.getvalue().splitlines()]
    assert lines == [
        "warming up: 0%", "warming up: 100%", "probing speed and spread: 0%",
        "probing speed and spread: 100%",
    ]  # fmt: skip


def test_paragraphs_keep_their_lines_and_intervals():
    out = Console(file=io.StringIO(), width=24, force_terminal=True, color_system=None)
    terminal.say(out, "one costs +1.23 [+1.00, +1.46] here\n  two", hang="  ")
    assert out.file.getvalue() == "one costs\n  +1.23 [+1.00, +1.46]\n  here\n  two\n"
