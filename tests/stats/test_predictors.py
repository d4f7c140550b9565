"""Predictors of damage: rank correlations, within strata too, under a ceiling."""

import numpy as np
import pytest

from asking import REFERENCE, asked
from fp4scope.ledger import ActivationRecord, LocalError
from fp4scope.stats import predictor_table
from fp4scope.stats.inference.agreement import ceilings, spearman
from fp4scope.stats.inference.prediction import prediction, within

TOGETHER = np.zeros(60, np.int64)


def costs_of(rng, true, noise, windows=32):
    return true + noise * rng.normal(size=(windows, len(true)))


def test_of_one_stratum_it_is_spearmans():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 60))
    assert within(x, y, TOGETHER) == pytest.approx(spearman(x, y))


def test_within_strata_kinds_do_not_matter():
    kinds = np.repeat([0, 1, 2], 20)
    inside = np.tile(np.arange(20.0), 3)
    x, y = inside + 100 * kinds, inside - 50 * kinds
    assert within(x, y, kinds) == pytest.approx(1.0)
    assert within(x, y, TOGETHER) < 0


def test_a_perfect_predictor_reaches_the_ceiling():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(8):
        true = rng.normal(size=60)
        one = prediction(costs_of(rng, true, 4.0), true[None], TOGETHER)
        found.append(one.ceiling - one.rho.value)
        assert one.rho.low <= one.rho.value <= one.rho.high
    assert np.mean(found) == pytest.approx(0, abs=0.05)
    costs = costs_of(rng, true, 4.0)
    most = prediction(costs, true[None], TOGETHER).ceiling
    assert most == pytest.approx(ceilings(costs)[0], abs=0.02)


def test_a_constant_predicts_nothing():
    costs = np.random.default_rng(2).normal(size=(16, 60))
    assert prediction(costs, np.ones((1, 60)), TOGETHER) is None


def test_tables_hold_costs_against_what_is_known(observe, results):
    rng = np.random.default_rng(3)
    text = rng.normal(3, 1, 16)
    found, activations, local = [observe(REFERENCE, text)], [], []
    for place, name in enumerate(("q_proj", "up_proj")):
        for block in range(4):
            layer = asked(format="nvfp4", direction="only", level="layers", unit=name, block=block)
            cost = 0.01 * (1 + block) * (1 + 9 * place) + 1e-4 * rng.normal(size=16)
            found.append(observe(layer, text + cost, kl=cost.tolist()))
            names = {"block": block, "projection": name}
            activations.append(
                ActivationRecord(**names, max=1.0, p999=1.0, ratio=9.0 - block, elements=9)
            )
            both = {"format": "nvfp4", "precision": "W4A4", "error": 0.01 + 0.001 * block}
            local.append(LocalError(**names, **both))
    study = results(*found)
    study.activations, study.local = activations, local
    rows = predictor_table(study).where(measure="kl", among="layers of a projection")
    by_name = {row["predictor"]: row for row in rows}
    assert by_name["max / P99.9 of inputs"]["rho"] == pytest.approx(-1.0)
    assert by_name["local error"]["rho"] == pytest.approx(1.0)
    assert by_name["local error"]["ceiling"] == pytest.approx(1.0, abs=0.01)
    assert by_name["local error"]["units"] == 8
    assert "gradient" not in by_name
