"""Tiny models ready for a sweep, their variants, and what a sweep or the naive path gives."""

from itertools import count

import pytest
import torch

from fp4scope.inject import Injector
from fp4scope.models import adopt, perturbation, perturbed
from fp4scope.observe import observe_inputs
from fp4scope.study import Study
from fp4scope.sweep import Journal, Sweep, measure_naively, plan

SEED = 3
PLENTY = 10**10


@pytest.fixture(scope="session")
def adopted(tiny_model):
    """`adopted(family, dtype=torch.float32, **config)`: a loaded model without a tokenizer."""

    def build(family, dtype=torch.float32, **config):
        model = tiny_model(family, **config).to(dtype)
        return adopt(model, None, name=family, allow_partial=True)

    return build


@pytest.fixture(scope="session")
def planned():
    """`planned(loaded, **study)`: every variant of a study of this model."""

    def build(loaded, **options):
        return plan(Study.build(model="x", **options), loaded.layout.sites)

    return build


@pytest.fixture(scope="session")
def calibrated():
    """`calibrated(loaded, ids)`: an injector with the amax of every input on these windows."""

    def build(loaded, ids):
        def forwards():
            for row in ids:
                loaded.logits(row)
                yield

        seen = observe_inputs(loaded.model, loaded.layout.linears, forwards())
        return Injector(loaded.model, {name: s.max for name, s in seen.items()})

    return build


@pytest.fixture
def open_sweep(tmp_path):
    """`open_sweep(loaded, ids, variants, injector, shape=None, memory=...)`: ready to run.

    With `shape` its chunks and batches have that shape, as if the folder had been begun so.
    """
    journals = []
    numbers = count()

    def build(loaded, ids, variants, injector, *, shape=None, memory=PLENTY, journal=None):
        if journal is None:
            journal = Journal(tmp_path / f"journal-{next(numbers)}.jsonl", {})
            journals.append(journal)
        if shape is not None:
            journal.shapes.append(shape.to_json())
        sweep = Sweep(loaded, ids, variants, injector, journal, seed=SEED, memory=memory)
        assert shape is None or sweep.shape == shape
        return sweep

    yield build
    for journal in journals:
        journal.close()


@pytest.fixture(scope="session")
def numbers_of():
    """`numbers_of(sweep)`: tokens, NLL, KL and top-1 by variant, replica and window."""

    def read(sweep):
        return {
            (key, replica, window): numbers
            for key, o in sweep._journal.observations.items()
            for window, replica, *numbers in zip(
                o.windows, o.replicas, o.tokens, o.nll, o.kl, o.top1, strict=True
            )
        }

    return read


@pytest.fixture(scope="session")
def naive_numbers():
    """The same from the plain path: the model's own forward for each variant and window."""

    def measure(loaded, ids, variants, injector):
        def perturb(entering, replica, window, block):
            key = {"seed": SEED, "replica": replica, "window": window, "block": block}
            return perturbed(entering, perturbation(entering.shape, **key))

        results = measure_naively(loaded, ids, variants, injector, perturb)
        return {
            (v.variant.key, v.replica, window): [m.tokens, m.nll, m.kl, m.top1]
            for v, metrics in zip(variants, results, strict=True)
            for window, m in enumerate(metrics)
        }

    return measure
