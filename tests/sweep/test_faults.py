"""Rotations, faults and noise: the same in a batch of many recipes and alone, to the bit."""

import pytest

from fp4scope.design import Run
from fp4scope.recipes import Recipe
from fp4scope.treatments import Setting

SETTINGS = [
    Setting.from_json(data)
    for data in (
        "mxfp4+noise",
        "nvfp4+noise",
        "nvfp4+hadamard16",
        {"weight": "mxfp4+exact-scale", "input": {"format": "nvfp4+hadamard16", "amax": "window"}},
        {"noise": -20},
        {"weight": "mxfp4", "noise": -30},
    )
]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3-moe"])
def test_a_sweep_is_the_models_own_forward(
    family, adopted, ids, calibrated, open_sweep, numbers_of, naive_numbers
):
    loaded = adopted(family)
    names = [site.name for site in loaded.layout.sites if site.is_linear]
    runs = [Run(Recipe())]
    for setting in SETTINGS:
        runs.append(Run(Recipe(setting)))
        runs += [Run(Recipe(None, ((frozenset([name]), setting),))) for name in names[1::3]]
    injector = calibrated(loaded, ids)
    sweep = open_sweep(loaded, ids, runs, injector)
    sweep.run()
    found = numbers_of(sweep)
    assert found == naive_numbers(loaded, ids, runs, injector)
    losses = {recipe: value for (recipe, _, name, w), (_, value) in found.items() if name == "nll"}
    assert len(set(losses.values())) == len(losses)
