"""The kept studies of `docs/results`: their tables have the numbers that they had when published.

`tests/data/kept_tables.npz` holds every column of their CSV files, frozen. A change of code may
rename a column or a label (`COLUMNS`, `LABELS`); a number it may not change.
"""

from pathlib import Path

import numpy as np
import pytest

import fp4scope
from fp4scope.cli.recipe import print_recipe
from fp4scope.report.verdict import verdicts

ROOT = Path(__file__).parents[2]
FROZEN = np.load(ROOT / "tests" / "data" / "kept_tables.npz")
TABLES = sorted({key.rpartition("/")[0] for key in FROZEN.files})
NAMES = {"baselines": "all_quantized", "components": "projections", "cells": "layers"}
"""New names of tables by those that they had."""
COLUMNS = {
    "component": "projection", "operands": "precision", "jitter_nll": "noise_nll",
    "jitter_kl": "noise_kl",
}  # fmt: skip
"""New names of columns by those that they had."""
LABELS = {
    "restore": "keep", "isolate": "only", "weights+activations": "W4A4", "weights": "W4A16",
    "reference": "full precision",
}  # fmt: skip
"""New words by those that they replace."""


@pytest.fixture(scope="module")
def diagnosis():
    kept = {}

    def load(run):
        if run not in kept:
            kept[run] = fp4scope.load(ROOT / "docs" / "results" / run)
        return kept[run]

    return load


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_numbers_that_were_published(diagnosis, name):
    run, table = name.split("/")
    found = getattr(diagnosis(run), NAMES.get(table, table))
    for key in (key for key in FROZEN.files if key.startswith(f"{name}/")):
        column = key.rpartition("/")[2]
        values, expected = found[COLUMNS.get(column, column)], FROZEN[key]
        if expected.dtype.kind == "f":
            numbers = [np.nan if value is None else value for value in values]
            np.testing.assert_allclose(numbers, expected, rtol=1e-9, atol=0, err_msg=column)
        else:
            assert ["" if v is None else v for v in values] == [LABELS.get(s, s) for s in expected]


@pytest.mark.parametrize("name", TABLES)
def test_the_kept_file_is_what_the_table_says(diagnosis, name):
    run, table = name.split("/")
    table = NAMES.get(table, table)
    kept = (ROOT / "docs" / "results" / run / f"{table}.csv").read_text(encoding="utf-8")
    assert kept.splitlines()[0] == ",".join(getattr(diagnosis(run), table).columns)
    assert len(kept.splitlines()) == 1 + len(getattr(diagnosis(run), table))


def test_what_a_page_predicts_is_what_its_next_command_chooses(diagnosis, tmp_path, capsys):
    """Of MXFP4 and NVFP4 every engine loads NVFP4 alone layer by layer."""
    folder = ROOT / "docs" / "results" / "smollm2-135m"
    print_recipe(folder, accept=["ppl<5%"], out=tmp_path / "recipe.yaml")
    bits = capsys.readouterr().out.partition(" bits a weight")[0]
    (said,) = (line for line in verdicts(diagnosis("smollm2-135m")) if line.startswith("ppl<5%"))
    assert f"A recipe of {bits} bits" in said
