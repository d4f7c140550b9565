"""A real study's NLL by window. Where from: `tests/data/README.md`."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from asking import REFERENCE, all_quantized, asked, jitter

DATA = Path(__file__).parents[1] / "data" / "sensitivity.npz"


@pytest.fixture(scope="session")
def opposed():
    """Values in an order in which neighbours lie on opposite sides of the mean."""

    def order(values):
        ranked = np.sort(values)
        found = np.empty_like(ranked)
        found[::2], found[1::2] = ranked[: (len(ranked) + 1) // 2], ranked[::-1][: len(ranked) // 2]
        return found

    return order


@pytest.fixture(scope="session")
def alike():
    """Values of which neighbours correlate at `share`, those k apart at its k-th power."""

    def make(rng, windows, *shape, share=0.35):
        values = rng.normal(size=(windows, *shape))
        for i in range(1, windows):
            values[i] = share * values[i - 1] + (1 - share**2) ** 0.5 * values[i]
        return values

    return make


@pytest.fixture(scope="session")
def newey_west():
    """The standard error of a mean, never below s / sqrt(n), and the p-value of its t test."""

    def test(x):
        n, centred = len(x), x - np.mean(x)
        reach = round(2 / 3 * n**0.5)
        products = [
            (1 - k / (reach + 1)) * sum(centred[i] * centred[i + k] for i in range(n - k))
            for k in range(reach + 1)
        ]
        square = max(products[0], products[0] + 2 * sum(products[1:])) / (n - 1) / n
        return square**0.5, 2 * scipy_stats.t.sf(abs(np.mean(x)) / square**0.5, n - 1)

    return test


_TODAY = {
    "weights+activations": "W4A4", "restore": "keep", "isolate": "only",
    "components": "projections", "cells": "layers",
}  # fmt: skip
"""Words by those of the file."""


@pytest.fixture(scope="session")
def recorded():
    """Windows, and per variant key the NLL in nats per token of each."""
    with np.load(DATA) as file:
        keys = ["|".join(_TODAY.get(p, p) for p in k.decode().split("|")) for k in file["variants"]]
        return file["windows"].astype(int), dict(zip(keys, file["nll"].astype(float), strict=True))


@pytest.fixture(scope="session")
def families(recorded):
    """Per (level, format, direction): the more and the less quantized, windows by units."""
    _, nll = recorded
    found = {}
    for key, values in nll.items():
        if key.startswith("reference") or "|jitter|" in key:
            continue
        fmt, precision, direction, level = key.split("|")[:4]
        if direction == "keep":
            sides = nll[f"{fmt}|{precision}|baseline|model"], values
        else:
            sides = values, nll["reference"]
        found.setdefault((level, fmt, direction), []).append(sides)
    return {
        name: tuple(np.stack(side, axis=1) for side in zip(*sides, strict=True))
        for name, sides in found.items()
    }


@pytest.fixture(scope="session")
def study(recorded, observe, results):
    """The recorded study as `Results`; KL and top-1 were not kept."""
    windows, nll = recorded
    return results(
        *(
            observe(_asked(key), values, windows=windows.tolist(), replicas=int("|jitter|" in key))
            for key, values in nll.items()
        )
    )


def _asked(key):
    fmt, *parts = key.split("|")
    if fmt == "reference":
        return REFERENCE
    precision, direction, level, *unit = parts
    if level == "model":
        whole = all_quantized(fmt, precision)
        return jitter(whole) if direction == "jitter" else whole
    block, _, name = unit[0].rpartition(".")
    of = {"format": fmt, "precision": precision, "direction": direction, "level": level}
    return asked(**of, unit=name, block=int(block) if block else None)
