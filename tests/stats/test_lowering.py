"""Layers that lower the loss: KL tells what they are, and halves tell chance from the rest."""

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, asked
from fp4scope.stats import lowering_table

WINDOWS = 32
LABELS = {"format": "nvfp4", "precision": "W4A4"}


def unit(direction, block):
    return asked(format="nvfp4", direction=direction, level="layers", unit="q_proj", block=block)


def studied(observe, results, direction, nll, kl):
    """A study of layers with these costs by window; KL of what is quantized is far above zero."""
    base = np.full(WINDOWS, 3.0), np.full(WINDOWS, 1.0)
    sign = 1 if direction == "only" else -1
    whole = observe(all_quantized("nvfp4"), base[0], kl=base[1])
    found = [observe(REFERENCE, [2.0] * WINDOWS), whole]
    for block, (loss, away) in enumerate(zip(nll, kl, strict=True)):
        of_loss = (2.0 if direction == "only" else 3.0) + sign * loss
        of_kl = (0.0 if direction == "only" else 1.0) + sign * away
        found.append(observe(unit(direction, block), of_loss, kl=of_kl))
    return results(*found)


def costs(rng, means, noise=0.01):
    return [mean + noise * rng.normal(size=WINDOWS) for mean in means]


def test_kl_tells_what_lowers_the_loss(observe, results):
    rng = np.random.default_rng(0)
    nll = costs(rng, [-0.1, -0.1, -0.1, 0.1, 0.1, 0.0])
    kl = costs(rng, [0.1, 0.1, -0.1, 0.1, 0.1, 0.1])
    kl[1] = costs(rng, [0.0], noise=0.5)[0]
    [row] = lowering_table(studied(observe, results, "keep", nll, kl))
    assert row["layers"] == 6
    assert (row["lowering"], row["kl_rises"], row["kl_falls"], row["kl_open"]) == (3, 1, 1, 1)
    assert row["by_chance"] == pytest.approx(0.15)
    assert (row["chosen"], row["again"]) == (6, 6)


def test_chance_lowers_what_it_is_expected_to_and_does_not_repeat(observe, results):
    rng = np.random.default_rng(1)
    layers = 200
    nll, kl = costs(rng, np.zeros(layers)), costs(rng, np.full(layers, 0.1))
    [row] = lowering_table(studied(observe, results, "only", nll, kl))
    assert row["lowering"] == 0
    assert row["by_chance"] == pytest.approx(5)
    assert 0 < row["uncorrected"] < 15
    assert row["chosen"] > 4
    assert row["again"] < 0.85 * row["chosen"]
