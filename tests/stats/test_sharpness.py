"""A temperature is seen; other runs of a model, and other models, are none."""

import numpy as np
import pytest

from fp4scope.stats.inference.sharpness import sharpness, slopes


def seen(rng, temperature, noise, shrink=1.0, windows=12):
    """Of two runs of a model, the second at a temperature, at the likeliest tokens of that."""
    found = []
    for _ in range(windows):
        logits = 2 * rng.standard_normal((40, 200))
        own = shrink * logits + noise * rng.standard_normal(logits.shape)
        their = (logits + noise * rng.standard_normal(logits.shape)) / temperature
        own, their = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (own, their))
        top = np.argsort(-their)[:, :20]
        found.append(slopes(*(np.take_along_axis(x, top, 1) for x in (own, their))))
    return sharpness(np.array(found).T)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.8])
def test_two_runs_of_a_model_have_no_temperature(noise):
    rng = np.random.default_rng(0)
    assert not any(seen(rng, 1.0, noise).is_off for _ in range(60))


@pytest.mark.parametrize("temperature", [0.7, 0.9, 1.2, 1.5])
def test_a_temperature_is_seen_and_named(temperature):
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = seen(rng, temperature, 0.1)
        assert found.is_off
        assert found.temperature == pytest.approx(temperature, rel=0.05)


def test_noise_draws_it_towards_one():
    found = seen(np.random.default_rng(0), 1.5, 0.8)
    assert found.is_off
    assert 1.05 < found.temperature < 1.5


def test_what_is_served_alike_everywhere_has_no_slope():
    flat = np.full((3, 4), -2.0)
    assert slopes(flat, flat) == (0.0, 0.0)
