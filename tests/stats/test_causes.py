"""Causes: by operand, against noise, and gains, from units that are quantized alone."""

import numpy as np
import pytest

from asking import REFERENCE, Asked, observed
from fp4scope.design import CAUSES, Unit, of_units
from fp4scope.design.probes import gains, variants
from fp4scope.ledger import results_from_json, results_to_json
from fp4scope.stats import gain_table, split_table
from fp4scope.stats.inference.intervals import ratio
from fp4scope.study import Direction
from fp4scope.treatments import Setting

NVFP4 = Setting.from_json("nvfp4")
UNIT = Unit(CAUSES, "q_proj", 1, frozenset(["blocks.1.q_proj"]))
FLIPS = np.array([1.0, -1.0] * 4) * 1e-4
KL = {"both": 0.05, "weights": 0.01, "inputs": 0.03, "noise": 0.025}


@pytest.fixture
def study(results):
    """A layer whose KL is known in every variant; in NLL nothing costs anything."""
    settings = {"both": NVFP4, **variants(NVFP4)}
    costs = {setting: KL[name] + FLIPS for name, setting in settings.items()}
    # Ten times the noise costs eight times as much.
    costs |= dict(zip(gains(), (1e-3 + FLIPS, 8e-3 + 8 * FLIPS), strict=True))
    found, contrasts = [observed(REFERENCE, [3.0] * 8)], []
    for setting, kl in costs.items():
        [contrast] = of_units([UNIT], setting, Direction.ONLY)
        contrasts.append(contrast)
        asked = Asked(contrast.own, contrast, names=contrast.labels)
        found.append(observed(asked, [3.0] * 8, kl=kl.tolist()))
    measured = results(*found, study={"numerics": {"replicas": 1}})
    measured.contrasts, measured.causes = [], contrasts
    return measured


def test_a_unit_is_split_by_operand(study):
    nll, kl = split_table(study)
    assert (kl["level"], kl["unit"], kl["block"], kl["format"]) == ("layers", "q_proj", 1, "nvfp4")
    assert [kl[name] for name in ("both", "weights", "inputs")] == pytest.approx([0.05, 0.01, 0.03])
    assert kl["interaction"] == pytest.approx(0.01)
    assert kl["interaction_low"] < 0.01 < kl["interaction_high"]
    assert nll["measure"] == "nll"
    assert nll["both"] == pytest.approx(0.0)


def test_a_unit_is_held_against_noise_and_its_gain_is_told(study):
    (row,) = gain_table(study)
    assert row["against_noise"] == pytest.approx(2.0)
    assert row["against_noise_low"] < 2.0 < row["against_noise_high"]
    assert row["gain"] == pytest.approx(1.0)
    assert row["linear"] == pytest.approx(0.8)


def test_causes_are_kept_and_stand_in_no_other_table(study):
    again = results_from_json(results_to_json(study))
    assert again.causes == study.causes
    assert not again.contrasts
    assert list(gain_table(again)) == list(gain_table(study))


def test_nothing_without_causes(study):
    study.causes = []
    assert not split_table(study)
    assert not gain_table(study)


def test_the_interval_of_a_ratio_covers():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(200):
        to = rng.gamma(4.0, size=32)
        of = 1.5 * to + rng.normal(0, 0.5, size=32)
        found = ratio(of, to)
        inside.append(found.low <= 1.5 <= found.high)
    assert 0.9 <= np.mean(inside) <= 0.99


def test_there_is_no_ratio_to_nothing():
    assert ratio([1.0, 2.0], [0.0, 0.0]) is None
