"""Groups of tokens of two outputs side by side: planted changes are found where they are."""

import json

import numpy as np
import pytest

import fp4scope
from fp4scope.report.side_by_side import findings, sections
from fp4scope.stats import SLOPE, stratum_change_table

from .by_hand import diagnosed

WINDOWS, LENGTH = 9, 48
TITLE = "KL by position and token, from"


@pytest.fixture(scope="module")
def found(model_folder, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("changes") / "before"
    return diagnosed(model_folder, text_file, folder, WINDOWS, LENGTH)


@pytest.fixture
def changed(found, tmp_path):
    """`changed(change, **data)`: a folder with results whose rows and text are others."""

    def write(change=lambda values: None, **data):
        content = json.loads((found.folder / "results.json").read_text())
        for row in content["ledgers"]["text"]["rows"]:
            if "strata_kl" in row["values"]:
                change(row["values"])
        content["data"] |= data
        (tmp_path / "after").mkdir()
        (tmp_path / "after" / "results.json").write_text(json.dumps(content))
        return tmp_path / "after"

    return write


def plant(by, stratum, nats):
    """More KL at each target of a stratum, and a little noise everywhere."""

    def change(values):
        rng = np.random.default_rng(0)
        if not any(values["kl"]):  # the full-precision model
            return
        kept = zip(values["strata_tokens"], values["strata_kl"], strict=True)
        for tokens, kl in ((t, k) for t, k in kept if k is not None):
            for kind, sums in enumerate(kl):
                for place, own in enumerate(sums):
                    noise = 1e-4 * rng.standard_normal()
                    planted = nats if (kind, place) == (by, stratum) else 0.0
                    sums[place] = own + (planted + noise) * tokens[kind][place]

    return change


def test_the_same_has_not_changed(found):
    table = stratum_change_table(found.results, found.results)
    assert len(table) > 50
    assert set(table["change"]) == {0.0}
    assert not any(table["beyond_noise"])
    assert all(table["paired"])


def test_both_sides_are_what_each_output_says(found, changed):
    after = fp4scope.load(changed(plant(0, 1, 0.5)))
    table = stratum_change_table(found.results, after.results)
    for row in table.where(measure="kl"):
        for diagnosis, side in ((found, "before"), (after, "after")):
            same = {"name": row["name"], "precision": row["precision"]}
            if row["stratum"] == SLOPE:
                (own,) = diagnosis.positions.where(**same, measure="kl")
                assert row[side] == pytest.approx(own["slope"], rel=1e-9)
                continue
            (own,) = diagnosis.tokens.where(**same, by=row["by"], stratum=row["stratum"])
            assert row[side] == pytest.approx(own["kl"], rel=1e-9)
            assert row["tokens"] == own["tokens"]


def test_a_planted_change_is_found_where_it_is_and_nowhere_else(found, changed):
    table = stratum_change_table(found.results, fp4scope.load(changed(plant(0, 1, 0.5))).results)
    beyond = [row for row in table if row["beyond_noise"]]
    assert {(row["by"], row["stratum"]) for row in beyond} <= {
        ("position", "2-15"),
        ("position", SLOPE),
    }
    rows = [row for row in beyond if row["stratum"] == "2-15"]
    assert len(rows) == 3  # of every whole model
    for row in rows:
        assert row["measure"] == "kl"
        assert row["change_low"] < row["change"] < row["change_high"]
        assert row["change"] == pytest.approx(0.5, abs=1e-3)
    assert {row["change"] for row in table.where(measure="delta_nll")} == {0.0}


def test_windows_of_other_tokens_are_not_paired(found, changed):
    other = changed(plant(0, 1, 0.5), sha256="0" * 64, text_sha256="1" * 64)
    table = stratum_change_table(found.results, fp4scope.load(other).results)
    assert not any(table["paired"])
    paired = stratum_change_table(found.results, found.results)
    key = {"name": "nvfp4", "precision": "W4A16", "stratum": "2-15", "measure": "kl"}
    (row,), (own,) = table.where(**key), paired.where(**key)
    assert row["change_high"] - row["change_low"] > own["change_high"] - own["change_low"]
    assert row["change"] == pytest.approx(0.5, abs=1e-3)


def test_all_stand_in_markdown_and_page_and_what_changed_on_the_screen(
    fp4scope, found, changed, tmp_path
):
    after = changed(plant(0, 1, 0.5))
    code, out, _ = fp4scope("compare", found.folder, after, "-o", "c.md", "--json", "c.json")
    assert code == 0
    assert "Tokens whose KL changed beyond noise from before to after: " in out
    assert "position 2-15" in out
    assert "class word" not in out
    assert "groups of tokens, most at position 2-15: +500" in " ".join(out.split())
    text = (tmp_path / "c.md").read_text()
    assert TITLE in text
    assert "| position | 2-15 |" in text
    assert "| class | word |" in text
    rows = json.loads((tmp_path / "c.json").read_text())["strata"]
    assert {row["measure"] for row in rows} == {"kl", "delta_nll"}
    assert fp4scope("compare", found.folder, after, "-o", "c.html")[0] == 0
    assert TITLE in (tmp_path / "c.html").read_text()


def test_results_without_strata_say_nothing_of_them(found, changed):
    def forget(values):
        for name in [name for name in values if name.startswith("strata_")]:
            del values[name]

    comparison = fp4scope.compare([found.folder, changed(forget)])
    assert not comparison.strata
    assert not any("groups of tokens" in line for line in findings(comparison))
    assert not any(section.title.startswith(TITLE) for section in sections(comparison))
