"""Sections: what is built once, and how each medium shows it."""

import pytest

from fp4scope.report import labels
from fp4scope.report.render import as_html, as_markdown
from fp4scope.report.section import Cell, Column, Section, naming
from fp4scope.report.sections import costs, evidence, units
from fp4scope.stats import Column as Statistic
from fp4scope.stats import Form, Hypothesis, Verdict
from fp4scope.table import Table


def test_every_form_of_a_statistic_is_written_with_its_interval():
    row = {
        "format": "nvfp4", "direction": "keep", "precision": "W4A16", "name": "q-proj",
        "level": "layers", "rho": -0.5, "rho_low": -0.75, "rho_high": 0.25, "p": 0.0004, "q": 0.25,
        "cost": -0.012, "share": 0.5, "share_low": 0.25, "share_high": 0.75, "nothing": None,
    }  # fmt: skip
    chosen = (
        Statistic("family", "", Form.FAMILY), Statistic("name", "name"),
        Statistic("level", "level"), Statistic("rho", "rho", Form.CORRELATION),
        Statistic("p", "p", Form.PROBABILITY), Statistic("q", "q", Form.PROBABILITY),
        Statistic("millinats", "cost", Form.MILLI), Statistic("share", "share", Form.SHARE),
        Statistic("nothing", "nothing", Form.MILLI),
    )  # fmt: skip
    hypothesis = Hypothesis(
        name="A", claim="B", verdict=Verdict.UNDECIDED, sentence="C", explanation="D",
        columns=chosen, evidence=Table(tuple(row), [row]),
    )  # fmt: skip
    section = evidence(hypothesis)
    assert [column.label for column in section.columns] == [c.heading for c in chosen]
    assert section.note == "D"
    minus = "\u2212"
    assert list(section.rows[0]) == [
        Cell("keep, nvfp4, W4A16"), Cell("q-proj"), Cell("layers"),
        Cell(f"{minus}0.50", f"[{minus}0.75, 0.25]", -0.5), Cell("<0.001", "", 0.0004),
        Cell("0.250", "", 0.25), Cell(f"{minus}12.00", "", -0.012),
        Cell("50.0%", "[25.0%, 75.0%]", 0.5), Cell(),
    ]  # fmt: skip


def test_formats_of_several_widths_have_their_precisions_side_by_side():
    assert labels.precision([{"precision": "W8A8"}, {"precision": "W4A4"}]) == "W8A8/W4A4"
    assert labels.precision([{"precision": "W4A16"}] * 2) == "W4A16"


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"unit": "down_proj", "block": 5}, "5.down_proj"),
        ({"projection": "down_proj"}, "down_proj"),
        ({"unit": "", "block": 0}, "0"),
        ({"pattern": "*.q_proj", "block": None}, "*.q_proj"),
    ],
)
def test_places(row, word):
    assert labels.place(row) == word


def test_a_section_has_formats_side_by_side_or_apart(known):
    (keep, only) = units(known(), "projections")
    assert [c.group for c in keep.columns][:2] == ["", "mxfp4:floor"]
    assert [row[0].text for row in keep.rows] == ["all-quantized", "down_proj", "q_proj"]
    assert keep.controls == 1
    assert "full-precision" in only.rows[0][0].text
    apart = list(units(known(), "projections", apart=True))
    assert [s.title.split(", ")[1:3] for s in apart] == [
        ["keep", "mxfp4:floor"], ["keep", "nvfp4"], ["only", "mxfp4:floor"], ["only", "nvfp4"],
    ]  # fmt: skip
    muted = [row[1].muted for row in apart[1].rows]
    assert muted == [False, False, True]  # nvfp4's q_proj costs nothing


def test_what_a_whole_model_costs_leads_with_percent(known):
    (section,) = costs(known())
    heads = [column.label for column in section.columns]
    assert heads[2:4] == ["% of PPL", "millinats per token"]
    assert [str(row[2]) for row in section.rows] == ["", "+12.75%", "+27.12%"]


HOSTILE = "<b>|`x`*"


def test_no_name_acts_as_markup():
    section = Section(
        HOSTILE, [naming(HOSTILE), Column(HOSTILE, group=HOSTILE)],
        [[Cell(HOSTILE), Cell(HOSTILE, HOSTILE, 1.0, muted=True)]], HOSTILE, HOSTILE,
    )  # fmt: skip
    page = as_html(section)
    assert "<b>" not in page
    assert page.count("&lt;b&gt;") == 11
    assert 'class="muted" data-v="1.0"' in page
    text = as_markdown(section)
    assert "<" not in text
    assert "`" not in text
    heads, rule, row = [line for line in text.splitlines() if line.startswith("| ")]
    assert heads.count(" | ") == rule.count(" | ") == row.count(" | ") == 1


def test_rows_that_others_are_compared_with_stay_on_top():
    section = Section("A", [naming("b")], [[Cell("control")], [Cell("unit")]], controls=1)
    page = as_html(section)
    assert page.index("class=fixed") < page.index("control") < page.index("<tbody>")
    assert page.index("<tbody>") < page.index("unit")
