"""KL over tokens, as llama.cpp reports it: against the model run by hand, on every surface."""

import csv
import json

import numpy as np
import pytest

import fp4scope
from fp4scope.cli.tables import main_tables
from fp4scope.errors import OutputError

from .by_hand import diagnosed, log_probabilities

WINDOWS, LENGTH = 9, 32
TITLE = "KL over tokens, as llama.cpp reports it"


@pytest.fixture(scope="module")
def found(model_folder, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("divergence") / "out"
    return diagnosed(model_folder, text_file, folder, WINDOWS, LENGTH)


@pytest.fixture(scope="module")
def by_hand(model_folder, text_file):
    """KL of every token with weights alone in NVFP4, and which of them keep the top token."""
    _, plain, other = log_probabilities(model_folder, text_file, WINDOWS, LENGTH)
    kl = (plain.exp() * (plain - other)).sum(-1)
    return kl.numpy(), (plain.argmax(-1) == other.argmax(-1)).numpy()


def test_it_is_that_of_the_model_run_by_hand(found, by_hand):
    kl, same = by_hand
    (row,) = found.divergence.where(name="nvfp4", precision="W4A16")
    assert row["tokens"] == kl.size == WINDOWS * (LENGTH - 1)
    assert row["kl"] == pytest.approx(kl.mean(), rel=1e-3)
    assert row["kl_max"] == pytest.approx(kl.max(), rel=1e-3)
    lower, higher = (np.quantile(kl, 0.99, method=way) for way in ("lower", "higher"))
    assert lower * 2 ** (-1 / 8) <= row["kl_p99"] <= higher * 2 ** (1 / 8)
    assert row["kl_p99_low"] < row["kl_p99"] < row["kl_max"]
    assert row["top1"] == pytest.approx(same.mean())
    assert row["top1_low"] < row["top1"] < row["top1_high"]


def test_every_whole_model_and_recipe_has_it_and_no_unit(found):
    named = {(row["name"], row["precision"]) for row in found.divergence}
    assert named == {("nvfp4", "W4A4"), ("nvfp4", "W4A16"), ("downs", "")}
    kept = [one for one in found.results.ledger if "kl_bins" in found.results.ledger[one].values]
    assert len(kept) == 3 < len(found.results.ledger)


def test_it_stands_on_page_terminal_markdown_and_in_a_file(found):
    assert TITLE in found.report()
    assert TITLE in found.html()
    assert TITLE in [section.title for section in main_tables(found)]
    with (found.folder / "divergence.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["kl_max"]) for row in rows] == found.divergence["kl_max"]


def test_it_comes_back_from_files(found):
    assert fp4scope.load(found.folder).divergence.rows == found.divergence.rows


def test_results_without_it_are_read_and_show_nothing(found, tmp_path):
    path, data = tmp_path / "results.json", json.loads((found.folder / "results.json").read_text())
    for row in data["ledgers"]["text"]["rows"]:
        row["values"].pop("kl_bins", None)
        row["values"].pop("kl_max", None)
    path.write_text(json.dumps(data))
    older = fp4scope.load(tmp_path)
    assert not older.divergence
    assert TITLE not in older.report()
    assert older.all_quantized.rows == found.all_quantized.rows


def test_counts_of_other_tokens_are_damage(found, tmp_path):
    path, data = tmp_path / "results.json", json.loads((found.folder / "results.json").read_text())
    counts = next(
        row["values"]["kl_bins"]
        for row in data["ledgers"]["text"]["rows"]
        if "kl_bins" in row["values"]
    )
    counts[0][0] += 1
    path.write_text(json.dumps(data))
    with pytest.raises(OutputError, match=r"kl_bins has 32 tokens in \d+ bins, not 31"):
        fp4scope.load(tmp_path)
