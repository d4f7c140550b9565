"""Run-to-run noise: how far realisations of one configuration lie apart."""

import math

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, asked, jitter
from fp4scope.stats import all_quantized_table, noise_shares, rerun_noise

BASE = all_quantized("nvfp4")


def test_by_hand(observe, results):
    study = results(
        observe(BASE, [3.0, 4.0]),
        observe(jitter(BASE), [3.2, 4.4], replicas=1, kl=0.05),
    )
    noise = rerun_noise(study, BASE.recipe)
    # Variances (0.2^2) / 2 and (0.4^2) / 2, on average 0.05; over two windows.
    assert noise.nll == pytest.approx(math.sqrt(0.05 / 2))
    assert noise.kl == pytest.approx(0.05)


def test_a_replica_of_the_all_quantized_is_a_control_already(observe, results):
    nll, windows, replicas = [3.2, 3.5, 4.4, 4.1], [0, 0, 1, 1], [1, 2, 1, 2]
    shaken = observe(jitter(BASE), nll, windows=windows, replicas=replicas)
    plain = observe(BASE, [3.0, 4.0])
    both = observe(BASE, [3.0, 4.0, *nll], windows=[0, 1, *windows], replicas=[0, 0, *replicas])
    once = rerun_noise(results(plain, shaken), BASE.recipe)
    replicated = rerun_noise(results(both, shaken), BASE.recipe)
    assert once == replicated
    expected = (np.var([3.0, 3.2, 3.5], ddof=1) + np.var([4.0, 4.4, 4.1], ddof=1)) / 2
    assert once.nll == pytest.approx(math.sqrt(expected / 2))


def test_nothing_without_a_control(observe, results):
    study = results(observe(REFERENCE, [3.0]), observe(BASE, [3.0]))
    assert rerun_noise(study, BASE.recipe) is None
    assert list(noise_shares(study)) == []
    assert [row["noise_nll"] for row in all_quantized_table(study)] == [None, None]


def test_nothing_where_no_window_was_realised_twice(observe, results):
    study = results(observe(BASE, [3.0]), observe(jitter(BASE), [3.0], windows=[1], replicas=1))
    assert rerun_noise(study, BASE.recipe) is None


def test_realisations_of_one_number_are_one(observe, results):
    """A control and a replica of one number differ in what their KL is taken from alone."""
    shaken = observe(jitter(BASE), [3.2, 4.4], replicas=1)
    windows, replicas = [0, 1, 0, 1], [1, 1, 2, 2]
    again = observe(BASE, [3.2, 4.4, 3.5, 4.1], windows=windows, replicas=replicas)
    noise = rerun_noise(results(observe(BASE, [3.0, 4.0]), shaken, again), BASE.recipe)
    expected = (np.var([3.0, 3.2, 3.5], ddof=1) + np.var([4.0, 4.4, 4.1], ddof=1)) / 2
    assert noise.nll == pytest.approx(math.sqrt(expected / 2))


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_share_of_noise_is_what_roundings_add(shared, count, observe, results):
    """Units share none, half or all of the variance of the all-quantized model's roundings."""
    rng = np.random.default_rng(0)
    n, units = 4000, 6
    text, luck = rng.normal(3, 1, n), rng.normal(0, 0.1, n)
    again = text + rng.normal(0, 0.1, (count, n))
    found = [
        observe(REFERENCE, text - 0.5 - rng.normal(0, 0.2, n)),
        observe(BASE, text + luck),
        observe(
            BASE,
            again.ravel(),
            windows=[*range(n)] * count,
            replicas=np.repeat(np.arange(1, count + 1), n).tolist(),
        ),
    ]
    for i in range(units):
        unit = asked(format="nvfp4", direction="keep", level="layers", unit="q", block=i)
        own = shared * luck + (1 - shared**2) ** 0.5 * rng.normal(0, 0.1, n)
        found.append(observe(unit, text + own - rng.normal(0.01, 0.1, n)))
    table = noise_shares(results(*found))
    assert table.columns == (
        "level", "format", "precision", "direction", "units", "share", "windows"
    )  # fmt: skip
    baseline_row, layers = table
    assert (layers["level"], layers["direction"], layers["units"]) == ("layers", "keep", units)
    # Two sides' roundings, less what they share, beside 0.1 ** 2 of the text.
    rounding = 2 * (1 - shared) * 0.1**2
    assert layers["share"] == pytest.approx(rounding / (rounding + 0.1**2), abs=0.06)
    assert baseline_row["level"] == "model"
    assert baseline_row["share"] == pytest.approx(0.2, abs=0.06)


def test_the_all_quantized_table_has_it_last(study):
    table = all_quantized_table(study)
    assert table.columns[-2:] == ("noise_nll", "noise_kl")
    reference, *baselines = table
    assert reference["noise_nll"] < 1e-6  # FP32: smooth
    for row in baselines:
        assert 5e-4 < row["noise_nll"] < row["nll_stderr"]  # W4A4: chaotic
