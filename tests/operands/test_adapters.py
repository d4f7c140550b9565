"""Products of a model: their operands as every adapter shows them, and nothing left behind."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from fp4scope.errors import UnitError
from fp4scope.operands import Injector, Input, product_at, products, watched
from fp4scope.treatments import Setting

KINDS = {"linear": lambda: nn.Linear(48, 32), "conv1d": lambda: Conv1D(32, 48)}


@pytest.fixture(params=KINDS)
def model(request):
    """Two products of one kind, one of them in a list."""
    torch.manual_seed(0)
    module = nn.Module()
    module.one = KINDS[request.param]()
    module.several = nn.ModuleList([KINDS[request.param](), nn.LayerNorm(8)])
    return module.requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))


def close(one, other):
    return torch.allclose(one, other, atol=1e-5)


def test_products_are_found_by_their_names(model):
    assert [name for name, _ in products(model)] == ["one", "several.0"]
    for name in ("several.1", "several", "none.at.all"):
        with pytest.raises(UnitError, match=f"no linear called '{name}'"):
            product_at(model, name)


def test_the_axis_that_is_summed_over_comes_last(model, x):
    product = product_at(model, "one")
    assert (product.rows, product.cols) == tuple(product.weight.shape) == (32, 48)
    assert product.weight.data_ptr() == model.one.weight.data_ptr()
    assert product.is_standard
    assert product.kind is type(model.one)
    assert close(product.times(Input(x), product.weight) + product.bias, product(x))
    assert close(functional.linear(x, product.weight, product.bias), product(x))


def test_another_weight_in_its_place_and_back(model, x, unchanged):
    product = product_at(model, "one")
    before, weight = product(x), product.weight.clone()
    with unchanged(model):
        undo = product.put(product.as_parameter(2 * weight))
        assert torch.equal(product.weight, 2 * weight)
        assert close(product(x), 2 * before - product.bias)
        undo()
    assert torch.equal(product(x), before)


def test_watchers_see_both_ends_of_a_call_and_may_change_them(model, x, unchanged):
    """The first sees what the model computes, the next what the first made of it."""
    seen = []
    found = dict(products(model))
    plain = model.one(3 * x)
    with unchanged(model):
        with (
            watched(found, lambda name, i: 3 * i.x, lambda name, i, y: seen.append((name, i.x))),
            watched(found, None, lambda name, i, y: seen.append((name, i.x)) or y + 1),
        ):
            given = model.one(x)
            model.several[0](x)
        assert torch.equal(given, plain + 1)
        assert [name for name, _ in seen] == ["one", "one", "several.0", "several.0"]
        assert torch.equal(seen[0][1], x)
        assert torch.equal(seen[1][1], 3 * x)
        with pytest.raises(ZeroDivisionError), watched(found, lambda name, x: 1 / 0):
            model.one(x)
    assert torch.equal(model.one(3 * x), plain)


@pytest.mark.parametrize("operands", ["both", "weight", "input"])
def test_what_quantizing_moves_is_the_difference_of_the_outputs(operands, model, x):
    """To rounding; the same while something else is applied."""
    both = {"weight": "mxfp4", "input": {"format": "nvfp4", "amax": "window"}}
    chosen = Setting.from_json(both if operands == "both" else {operands: both[operands]})
    injector = Injector(model)
    plain = model.one(x)
    with injector.applied({"one": chosen}):
        expected = model.one(x) - plain
    found = injector.moved("one", chosen, Input(x))
    assert close(found, expected)
    assert expected.abs().max() > 1e-3
    with injector.applied({"one": Setting.from_json("mxfp8:e4m3")}):
        inside = injector.moved("one", chosen, Input(x))
    assert torch.equal(inside, found)
