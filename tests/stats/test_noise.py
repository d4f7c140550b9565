"""Rerun noise: how far realisations of one configuration lie apart."""

import math

import numpy as np
import pytest

from fp4scope.records import REFERENCE, baseline, jitter
from fp4scope.stats import baseline_table, noise_floor, rerun_noise

BOTH = "weights+activations"
BASE = baseline("nvfp4", BOTH)
TOKENS = 10  # of `observe`


def test_by_hand(observe, results):
    study = results(
        observe(BASE, [3.0, 4.0]),
        observe(jitter(BASE), [3.2, 4.4], replicas=1, kl=0.05),
    )
    noise = rerun_noise(study, BASE)
    # Variances (0.2^2) / 2 and (0.4^2) / 2, on average 0.05; over two windows.
    assert noise.nll == pytest.approx(math.sqrt(0.05 / 2))
    assert noise.kl == pytest.approx(0.05)


def test_a_replica_of_the_baseline_is_a_control_already(observe, results):
    nll, windows, replicas = [3.2, 3.5, 4.4, 4.1], [0, 0, 1, 1], [1, 2, 1, 2]
    shaken = observe(jitter(BASE), nll, windows=windows, replicas=replicas)
    plain = observe(BASE, [3.0, 4.0])
    both = observe(BASE, [3.0, 4.0, *nll], windows=[0, 1, *windows], replicas=[0, 0, *replicas])
    once = rerun_noise(results(plain, shaken), BASE)
    replicated = rerun_noise(results(both, shaken), BASE)
    assert once == replicated
    expected = (np.var([3.0, 3.2, 3.5], ddof=1) + np.var([4.0, 4.4, 4.1], ddof=1)) / 2
    assert once.nll == pytest.approx(math.sqrt(expected / 2))


def test_nothing_without_a_control(observe, results):
    study = results(observe(REFERENCE, [3.0]), observe(BASE, [3.0]))
    assert rerun_noise(study, BASE) is None
    assert noise_floor(study, "nvfp4", BOTH, "restore") is None
    assert [row["jitter_nll"] for row in baseline_table(study)] == [None, None]


def test_nothing_where_no_window_was_realised_twice(observe, results):
    study = results(observe(BASE, [3.0]), observe(jitter(BASE), [3.0], windows=[1], replicas=1))
    assert rerun_noise(study, BASE) is None


def test_the_floor_is_that_of_the_control_and_shrinks_with_replicas(observe, results):
    study = results(
        observe(REFERENCE, [2.0]),
        observe(jitter(REFERENCE), [2.002], replicas=1),
        observe(BASE, [3.0]),
        observe(jitter(BASE), [3.2], replicas=1),
    )
    restore = noise_floor(study, "nvfp4", BOTH, "restore")
    assert restore == pytest.approx(1.96 * math.sqrt(2) * math.sqrt(0.02), rel=1e-3)
    assert noise_floor(study, "nvfp4", BOTH, "isolate") == pytest.approx(restore / 100)
    for replica in (1, 2, 3):
        study.observation(BASE).add(0, replica, tokens=TOKENS, nll=31.0, kl=0.0, top1=TOKENS)
    assert noise_floor(study, "nvfp4", BOTH, "restore") == pytest.approx(restore / 2)


def test_two_realisations_differ_by_less_than_the_floor_19_times_in_20(observe, results):
    rng = np.random.default_rng(0)
    windows, spread, outside = 30, 0.1, 0
    for _ in range(200):
        level = rng.normal(3, 1, windows)  # windows differ far more than realisations
        plain, control, other = level + rng.normal(0, spread, (3, windows))
        study = results(
            observe(BASE, plain),
            observe(jitter(BASE), control, replicas=1),
        )
        difference = abs(plain.mean() - other.mean())
        outside += difference > noise_floor(study, "nvfp4", BOTH, "restore")
    assert outside / 200 == pytest.approx(0.05, abs=0.04)


def test_the_baseline_table_has_it_last(study):
    table = baseline_table(study)
    assert table.columns[-2:] == ("jitter_nll", "jitter_kl")
    reference, *baselines = table
    assert reference["jitter_nll"] < 1e-6  # FP32: smooth
    for row in baselines:
        assert 5e-4 < row["jitter_nll"] < row["nll_stderr"]  # W4A4: chaotic
