"""Weights with one tensor scale for all that an engine fuses, as those are served."""

import re

import pytest
import torch

from fp4scope import fake_quantize
from fp4scope.design import Run
from fp4scope.groups import scale_partners
from fp4scope.operands import Injector, products
from fp4scope.recipes import Recipe
from fp4scope.treatments import Setting

NVFP4, OTHER = Setting.from_json("nvfp4"), Setting.from_json("nvfp4:4over6")
FAMILIES = ["llama", "qwen3-moe", "mixtral", "gpt-oss"]
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@pytest.fixture(params=FAMILIES)
def model(request, adopted):
    """A model whose linears have very different magnitudes, and an injector with served scales."""
    loaded = adopted(request.param)
    linears = dict(products(loaded.model))
    with torch.no_grad():
        for n, name in enumerate(loaded.layout.linears):
            linears[name].parameter.mul_(1 + n % 5)
    amax = dict.fromkeys(loaded.layout.inputs, 8.0)
    fused = scale_partners(loaded.layout.sites)
    return loaded, linears, Injector(loaded.model, amax, fused=fused), Injector(loaded.model, amax)


def expected(name, linears, fmt):
    """The image by the public function, with the largest magnitude of all that are fused."""
    holder, _, leaf = name.rpartition(".")
    together = next((names for names in FUSED if leaf in names), (leaf,))
    weights = [linears[f"{holder}.{n}"].weight for n in together if f"{holder}.{n}" in linears]
    own = linears[name].weight
    if own.ndim == 2:
        return fake_quantize(own, fmt, amax=torch.stack([w.abs().max() for w in weights]).max())
    assert len(weights) == 1  # gate and up of an expert are in one tensor
    return torch.stack([fake_quantize(expert.contiguous(), fmt) for expert in own])


def test_images_have_the_largest_magnitude_of_what_is_fused(model):
    loaded, linears, served, own = model
    differ = 0
    originals = {name: linears[name].parameter for name in loaded.layout.linears}
    # Its partners have other formats, and stand in the model as images.
    mixed = {name: (NVFP4, OTHER)[n % 2] for n, name in enumerate(loaded.layout.linears)}
    images = {}
    with served.applied(mixed):
        for name in mixed:
            images[name] = linears[name].weight.clone()
    for name, image in images.items():
        assert linears[name].parameter is originals[name]
        fmt = mixed[name].weight.format
        assert torch.equal(image, expected(name, linears, fmt)), name
        differ += not torch.equal(image, own.quantized_weight(name, mixed[name].weight))
    fused = [n for n in images if re.search("(q|k|v|gate|up)_proj$", n) and n in served._fused]
    assert 0 < differ < len(fused)


def test_an_image_is_made_again_where_a_partner_has_changed(model):
    loaded, linears, served, _ = model
    names = [n for n in loaded.layout.linears if n.endswith(("q_proj", "k_proj"))][:2]
    before = served.quantized_weight(names[0], NVFP4.weight).clone()
    assert served.quantized_weight(names[0], NVFP4.weight) is not None
    with torch.no_grad():
        linears[names[1]].parameter.mul_(20)
    after = served.quantized_weight(names[0], NVFP4.weight)
    assert not torch.equal(before, after)
    assert torch.equal(after, expected(names[0], linears, NVFP4.weight.format))


@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_the_sweep_equals_the_naive_path(
    adopted, ids, open_sweep, numbers_of, naive_numbers, family
):
    loaded = adopted(family)
    names = loaded.layout.linears
    some = (frozenset(names[::3]), None)
    runs = [Run(Recipe()), Run(Recipe(NVFP4)), Run(Recipe(NVFP4, (some,)))]
    found = []
    for fused in (scale_partners(loaded.layout.sites), None):
        amax = dict.fromkeys(loaded.layout.inputs, 8.0)
        injector = Injector(loaded.model, amax, fused=fused)
        sweep = open_sweep(loaded, ids, runs, injector)
        sweep.run()
        found.append(numbers_of(sweep))
        assert found[-1] == naive_numbers(loaded, ids, runs, injector)
    assert found[0] != found[1]
