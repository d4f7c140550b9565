"""A study of a model of six blocks and two projections whose every number is known."""

from copy import deepcopy

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, asked, jitter
from fp4scope.diagnosis import Diagnosis
from fp4scope.ledger import ActivationRecord

FORMATS = ("mxfp4:floor", "nvfp4")
PROJECTIONS = ("q_proj", "down_proj")
BLOCKS = 6
WINDOWS = 8
MILLI = 1e-3

CONDITIONS = {
    "study": {"numerics": {"replicas": 1}},
    "model": {
        "name": "known", "architecture": "Known", "blocks": BLOCKS, "dtype": "float32",
        "device": "cpu", "coverage": 0.99, "fingerprint": "f" * 64, "warnings": [],
        "prior_quantization": None,
    },
    "data": {
        "source": "words", "windows": WINDOWS, "seq_len": 11, "tokens_in_text": 88, "bos": False,
        "text_sha256": "a" * 64, "sha256": "b" * 64,
        "calibration": {"windows": 1, "seq_len": 11, "source": "words", "evaluated": False},
    },
    "protocol": {
        "activation_scale": "calibrated", "self_check": None, "shapes": [], "notes": [],
    },
    "environment": {
        "fp4scope": "0", "torch": "0", "transformers": "0", "python": "3", "platform": "here",
        "wall_s": 1.0,
    },
}  # fmt: skip


def unit(fmt, direction, level, name, block=None):
    return asked(format=fmt, direction=direction, level=level, unit=name, block=block)


@pytest.fixture
def known(observe, results):
    """`known(noise=True)`: a `Diagnosis`.

    A layer of block b costs b millinats in every window, give or take; those of block 0, and all of
    q_proj under NVFP4, cost nothing, give or take. A projection costs as much as its last layer.
    """
    rng = np.random.default_rng(0)
    text = rng.normal(3, 1, WINDOWS)
    flips = np.array([1, -1] * (WINDOWS // 2))

    def build(noise=True):
        found = [observe(REFERENCE, text)]
        if noise:
            found.append(observe(jitter(REFERENCE), text + 0.004 * MILLI * flips, replicas=1))
        for i, fmt in enumerate(FORMATS):
            base = text + 0.12 * (i + 1)
            found.append(observe(all_quantized(fmt), base, kl=0.25))
            if noise:
                shaken = base + 6 * (i + 1) * MILLI * flips
                found.append(observe(jitter(all_quantized(fmt)), shaken, replicas=1, kl=0.05))
            for direction in ("keep", "only"):
                for projection in PROJECTIONS:
                    nothing = (fmt, projection) == ("nvfp4", "q_proj")
                    for block in range(BLOCKS):
                        cost = (0 if nothing else block) + 0.2 * flips * rng.uniform(0.9, 1.1)
                        nll = base - MILLI * cost if direction == "keep" else text + MILLI * cost
                        layer = unit(fmt, direction, "layers", projection, block)
                        found.append(observe(layer, nll))
                    found.append(observe(unit(fmt, direction, "projections", projection), nll))
        measured = results(*found, **deepcopy(CONDITIONS))
        measured.activations = [
            ActivationRecord(block=b, projection=c, max=8.0, p999=2.0, ratio=4.0, elements=9)
            for c in PROJECTIONS
            for b in range(BLOCKS)
        ]
        return Diagnosis(measured)

    return build
