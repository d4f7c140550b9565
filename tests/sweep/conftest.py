"""Tiny models ready for a sweep, their variants, and what a sweep or the naive path gives."""

from itertools import count

import pytest
import torch

from fp4scope.data import strata_of
from fp4scope.design import design
from fp4scope.ledger import Log
from fp4scope.models import adopt
from fp4scope.operands import Injector, observe_inputs
from fp4scope.study import Study
from fp4scope.sweep import Worker, measure_naively, memory_for, schedule, self_check
from fp4scope.sweep.perturb import perturbation, perturbed
from fp4scope.sweep.routing import routers, routing_values
from fp4scope.sweep.worker import token_values

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
    """`planned(loaded, **study)`: all that a study of this model runs."""

    def build(loaded, **options):
        study, routed = (
            Study.build(**{"model": "x", "all_quantized": ""} | options),
            bool(routers(loaded)),
        )
        return design(study, loaded.layout.sites, routed=routed).runs

    return build


@pytest.fixture(scope="session")
def units():
    """`units(loaded, **study)`: the contrasts of its units."""

    def build(loaded, **options):
        asked = design(
            Study.build(**{"model": "x", "all_quantized": ""} | options), loaded.layout.sites
        ).contrasts
        return [contrast for contrast in asked if contrast.unit is not None]

    return build


@pytest.fixture(scope="session")
def calibrated():
    """`calibrated(loaded, ids)`: an injector with the amax of every input on these windows."""

    def build(loaded, ids):
        def forwards():
            for row in ids:
                loaded.logits(row)
                yield

        seen = observe_inputs(loaded.model, loaded.layout.inputs, forwards())
        return Injector(loaded.model, {name: s.max for name, s in seen.items()})

    return build


@pytest.fixture
def open_sweep(tmp_path):
    """`open_sweep(loaded, ids, runs, injector, shape=None, memory=...)`: ready to run.

    With `shape` its chunks and batches have that shape, as if the folder had been begun so.
    """
    logs = []
    numbers = count()

    def build(loaded, ids, runs, injector, *, shape=None, memory=PLENTY, log=None, seed=SEED):
        if log is None:
            log = Log(tmp_path / f"journal-{next(numbers)}.jsonl", {})
            logs.append(log)
        if shape is not None:
            log.shapes.append(shape.to_json())
        check = self_check(loaded, ids)
        worker = Worker(loaded, ids, injector, seed, check)
        taken = memory_for(check, loaded, runs, ids.shape[1], memory)
        sweep = schedule(worker, taken, log, check)
        assert shape is None or sweep.shape == shape
        return sweep

    yield build
    for log in logs:
        log.close()


@pytest.fixture(scope="session")
def numbers_of():
    """`numbers_of(sweep)`: tokens, and a measure, by recipe, replica, measure and window."""

    def read(sweep):
        ledger = sweep.log.ledger
        return {
            (recipe, replica, name, window): (tokens, value)
            for recipe in ledger
            for name, column in ledger[recipe].values.items()
            for window, replica, tokens, value in zip(
                ledger[recipe].indices,
                ledger[recipe].replicas,
                ledger[recipe].tokens,
                column,
                strict=True,
            )
            if value is not None
        }

    return read


@pytest.fixture(scope="session")
def naive_numbers():
    """The same from the plain path: the model's own forward for each run and window."""

    def measure(loaded, ids, runs, injector):
        def perturb(entering, replica, window, block):
            key = {"seed": SEED, "replica": replica, "window": window, "block": block}
            return perturbed(entering, perturbation(entering.shape, **key))

        strata = strata_of(loaded.tokenizer, ids)
        results = measure_naively(loaded, ids, runs, injector, perturb, strata=strata)
        return {
            (run.recipe, run.replica, name, window): (m.tokens, value)
            for run, metrics in zip(runs, results, strict=True)
            for window, m in enumerate(metrics)
            for name, value in [
                *zip(run.measures, (m.nll, m.kl, m.top1), strict=True),
                *((name, value) for name, (value,) in routing_values(run, [m]).items()),
                *((name, value) for name, (value,) in token_values(run, [m]).items()),
            ]
        }

    return measure
