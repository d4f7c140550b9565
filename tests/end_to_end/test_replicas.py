"""Perturbed realisations: rows for each, and the floor that they put under every cell."""

import json
import math

import pytest

import fp4scope
from fp4scope.records import REFERENCE, Results, baseline, jitter, replica

FORMATS = ("mxfp4:floor", "nvfp4")
W4A4 = "weights+activations"
SMALL = {"seq_len": 32, "windows": 3, "calibration_windows": 4, "calibration_seq_len": 32}


@pytest.fixture(scope="module")
def finished(model_folder, text_file, tmp_path_factory):
    return fp4scope.diagnose(
        model_folder,
        text=str(text_file),
        **SMALL,
        sweep="blocks",
        direction="restore",
        replicas=2,
        jitter=3,
        output_dir=tmp_path_factory.mktemp("out"),
    )


@pytest.fixture(scope="module")
def results(finished):
    return Results.read(finished.folder / "results.json")


def kl_per_token(observation):
    return sum(observation.kl) / sum(observation.tokens)


def test_every_unit_has_a_row_for_each_window_and_replica(results):
    again = ("jitter", "replica")
    observed = [o for o in results.observations.values() if o.variant.direction not in again]
    assert len(observed) == 1 + 2 + 2 * 3
    for o in observed:
        pairs = list(zip(o.windows, o.replicas, strict=True))
        assert pairs == [(w, r) for w in range(3) for r in range(2)]
        assert o.tokens == [31] * 6


def test_the_reference_and_each_baseline_have_a_control(results):
    controls = [o for o in results.observations.values() if o.variant.direction == "jitter"]
    expected = {jitter(REFERENCE), *(jitter(baseline(f, W4A4)) for f in FORMATS)}
    assert {o.variant for o in controls} == expected
    for o in controls:
        pairs = list(zip(o.windows, o.replicas, strict=True))
        assert pairs == [(w, r) for w in range(3) for r in (1, 2, 3)]


def test_replicas_of_a_baseline_are_none_that_it_has_and_compared_with_the_reference(results):
    for fmt in FORMATS:
        again = results.observation(replica(baseline(fmt, W4A4)))
        pairs = list(zip(again.windows, again.replicas, strict=True))
        assert pairs == [(w, r) for w in range(3) for r in (2, 3, 4)]
        control = results.observation(jitter(baseline(fmt, W4A4)))
        for number in (2, 3):  # one realisation, with one NLL, compared with two others
            assert _replica(again, number) == _replica(control, number)
            assert again.kl[number - 2] != control.kl[number - 1]


def test_the_journal_holds_the_same(finished, results):
    rows = {}
    for line in (finished.folder / "journal.jsonl").read_text().splitlines()[1:]:
        record = json.loads(line)
        for measured in record.get("measured", ()):
            name = json.dumps(measured["variant"], sort_keys=True)
            for window, (_, nll, kl, _) in zip(record["chunk"], measured["rows"], strict=True):
                nll, kl = float(f"{nll:.9g}"), float(f"{kl:.6g}")
                rows[name, measured["replica"], window] = nll, kl
    kept = {
        (
            json.dumps({k: v for k, v in vars(o.variant).items() if v not in ("", None)},
                       sort_keys=True),
            replica,
            window,
        ): (nll, kl)
        for o in results.observations.values()
        for window, replica, nll, kl in zip(o.windows, o.replicas, o.nll, o.kl, strict=True)
    }  # fmt: skip
    assert rows == kept


def test_rounding_alone_moves_the_reference_by_next_to_nothing(results):
    control = results.observation(jitter(REFERENCE))
    assert all(map(math.isfinite, control.kl + control.nll))
    # FP32 rounds a KL of zero to a little more or less than it.
    assert max(abs(kl) for kl in control.kl) / 31 < 1e-6
    plain = dict(zip(*_replica(results.observation(REFERENCE), 0), strict=True))
    for window, nll in zip(control.windows, control.nll, strict=True):
        assert abs(nll - plain[window]) / 31 < 1e-5
    assert any(nll != plain[w] for w, nll in zip(control.windows, control.nll, strict=True))


def test_quantized_activations_magnify_rounding(model_folder, text_file):
    """A baseline differs from itself by far more than the reference does from itself.

    In BF16, where rounding is coarse enough to flip quantized values in a model this small.
    """
    results = fp4scope.diagnose(
        model_folder,
        text=str(text_file),
        **SMALL,
        sweep="",
        dtype="bfloat16",
    ).results
    floor = kl_per_token(results.observation(jitter(REFERENCE)))
    assert 0 < floor < 0.02
    for fmt in FORMATS:
        control = kl_per_token(results.observation(jitter(baseline(fmt, W4A4))))
        assert control > 20 * floor
        # And by less than from the reference: it is compared with itself.
        assert control < 0.7 * kl_per_token(results.observation(baseline(fmt, W4A4)))


def test_a_control_is_the_replica_that_it_repeats(results):
    """Replica 1 of a baseline and of its control are one realisation, with one NLL."""
    for variant in (REFERENCE, *(baseline(f, W4A4) for f in FORMATS)):
        own = _replica(results.observation(variant), 1)
        assert _replica(results.observation(jitter(variant)), 1) == own
        assert _replica(results.observation(variant), 0) != own


def _replica(observation, replica):
    rows = zip(observation.windows, observation.replicas, observation.nll, strict=True)
    chosen = [(w, nll) for w, r, nll in rows if r == replica]
    return tuple(map(list, zip(*chosen, strict=True)))
