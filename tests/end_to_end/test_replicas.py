"""Perturbed realisations: rows for each, and the floor that they put under every layer."""

import json
import math

import pytest

import fp4scope
from asking import REFERENCE, all_quantized
from fp4scope.ledger import MEASURES, read_results

FORMATS = ("mxfp4:floor", "nvfp4")
W4A4 = "W4A4"
SMALL = {
    "seq_len": 32,
    "windows": 3,
    "calibration_windows": 4,
    "calibration_seq_len": 32,
    "all_quantized": "",
}


@pytest.fixture(scope="module")
def finished(model_folder, text_file, tmp_path_factory):
    return fp4scope.diagnose(
        model_folder,
        text=str(text_file),
        **SMALL,
        sweep="blocks",
        direction="keep",
        replicas=2,
        jitter=3,
        output_dir=tmp_path_factory.mktemp("out"),
    )


@pytest.fixture(scope="module")
def results(finished):
    return read_results(finished.folder / "results.json")


NOTHING = REFERENCE.recipe
WHOLE = [all_quantized(fmt, W4A4).recipe for fmt in FORMATS]


def column(results, recipe, measure):
    """A measure by window and replica."""
    rows = results.ledger[recipe]
    columns = zip(rows.indices, rows.replicas, rows.values[measure], strict=True)
    return {(window, replica): value for window, replica, value in columns if value is not None}


def kl_per_token(results, recipe, measure, replicas):
    tokens = results.ledger[recipe].tokens[0]
    found = [kl for (_, r), kl in column(results, recipe, measure).items() if r in replicas]
    return sum(found) / len(found) / tokens


def test_every_unit_has_a_row_for_each_window_and_replica(results):
    units = [contrast.own for contrast in results.contrasts if contrast.unit]
    assert len(results.ledger) == 1 + 2 + len(units) == 1 + 2 + 2 * 3
    for recipe in units:
        for measure in ("nll", "kl", "top1"):
            found = column(results, recipe, measure)
            assert list(found) == [(w, r) for w in range(3) for r in range(2)]
        assert results.ledger[recipe].tokens == [31] * 6


def test_whole_models_have_controls_and_the_all_quantized_ones_replicas(results):
    def replicas(recipe, measure):
        return {replica for _, replica in column(results, recipe, measure)}

    assert replicas(NOTHING, "kl") == {0, 1, 2, 3}
    assert "rerun_kl" not in results.ledger[NOTHING].values
    for recipe in WHOLE:
        # Compared with itself, and with the full-precision model, as often as it counts and more.
        assert replicas(recipe, "rerun_kl") == {1, 2, 3}
        assert replicas(recipe, "kl") == {0, 1, 2, 3, 4}
        both = column(results, recipe, "kl"), column(results, recipe, "rerun_kl")
        assert all(both[0][key] != kl for key, kl in both[1].items())


def test_the_journal_holds_the_same(finished, results):
    names, rows = {}, {}
    for line in (finished.folder / "journal.jsonl").read_text().splitlines()[1:]:
        record = json.loads(line)
        names |= {name: json.dumps(r) for name, r in record.get("recipes", {}).items()}
        for name, replica, values in record.get("rows", ()):
            for measure, found in values.items():
                for window, value in zip(record["job"], found, strict=True):
                    settled = MEASURES[measure].settled(value)
                    rows[names[name], replica, measure, window] = settled
    kept = {
        (json.dumps(recipe.to_json()), replica, measure, window): value
        for recipe in results.ledger
        for measure in results.ledger[recipe].values
        for (window, replica), value in column(results, recipe, measure).items()
    }
    assert rows == kept


def test_rounding_alone_moves_the_full_precision_model_by_next_to_nothing(results):
    nll, kl = (column(results, NOTHING, measure) for measure in ("nll", "kl"))
    assert all(map(math.isfinite, [*nll.values(), *kl.values()]))
    # FP32 rounds a KL of zero to a little more or less than it.
    assert max(abs(value) for value in kl.values()) / 31 < 1e-6
    moves = [abs(value - nll[window, 0]) / 31 for (window, r), value in nll.items() if r]
    assert max(moves) < 1e-5
    assert any(moves)


def test_quantized_activations_magnify_rounding(model_folder, text_file):
    """An all-quantized model differs from itself by far more than the reference does from itself.

    In BF16, where rounding is coarse enough to flip quantized values in a model this small.
    """
    results = fp4scope.diagnose(
        model_folder,
        text=str(text_file),
        **SMALL,
        sweep="",
        dtype="bfloat16",
    ).results
    floor = kl_per_token(results, NOTHING, "kl", [1])
    assert 0 < floor < 0.02
    for recipe in WHOLE:
        control = kl_per_token(results, recipe, "rerun_kl", [1])
        assert control > 20 * floor
        # And by less than from full precision: it is compared with itself.
        assert control < 0.7 * kl_per_token(results, recipe, "kl", [0])


def test_a_replica_is_another_realisation(results):
    for recipe in (NOTHING, *WHOLE):
        nll = column(results, recipe, "nll")
        assert any(nll[window, 0] != nll[window, 1] for window in range(3))
