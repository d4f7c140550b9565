"""Parts of products: quantized alone, with the scales of the whole, undone exactly."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from fp4scope.formats import get_format
from fp4scope.kernels import qdq
from fp4scope.models import find_layout, find_parts
from fp4scope.operands import Injector, product_at
from fp4scope.study import Parts
from fp4scope.treatments import Setting

AMAX = 3.0
FORMATS = ("mxfp4:floor", "nvfp4")


def logits(model, ids):
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


@pytest.fixture
def divided(tiny_model, ids):
    """`divided(family, wanted)`: a model, its layout with parts, and an injector for them."""

    def build(family, wanted):
        model = tiny_model(family)
        parts = find_parts(model, find_layout(model), partial(logits, model), wanted)
        layout = find_layout(model, parts=parts)
        amaxes = dict.fromkeys(layout.linears, AMAX)
        return model, layout, Injector(model, amaxes, parts=layout.parts)

    return build


def by_hand(product, places, axis, fmt, operands, x, bias):
    """A linear some of whose outputs, or inputs, are quantized, in the plainest words."""
    fmt = get_format(fmt)
    weight, entered = product.weight, x
    if "weight" in operands:
        image = qdq(weight, fmt)  # of all of it: one tensor scale
        weight = weight.clone()
        index = (places,) if axis == "rows" else (slice(None), places)
        weight[index] = image[index]
    if "input" in operands:
        amax = torch.tensor(AMAX) if fmt.uses_tensor_amax else None
        entered = qdq(x, fmt, amax)
    if axis == "rows":
        plain, rounded = (functional.linear(each, weight, bias) for each in (x, entered))
        plain[..., places] = rounded[..., places]
        return plain
    mixed = x.clone()
    mixed[..., places] = entered[..., places]
    return functional.linear(mixed, weight, bias)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("operands", [("weight",), ("input",), ("weight", "input")])
@pytest.mark.parametrize(
    ("family", "wanted", "site"),
    [
        ("gpt2", Parts.PROJECTIONS, "transformer.h.1.attn.c_attn.k"),
        ("gpt2", Parts.HEADS, "transformer.h.1.attn.c_attn.heads.2"),
        ("llama-biased", Parts.HEADS, "model.layers.0.self_attn.q_proj.heads.0-1"),
        ("llama-biased", Parts.HEADS, "model.layers.0.self_attn.o_proj.heads.2-3"),
    ],
)
def test_a_part_is_quantized_alone(family, wanted, site, operands, fmt, divided, ids, unchanged):
    model, layout, injector = divided(family, wanted)
    name = layout.sites.by_name[site].product
    part = next(p for p in layout.parts[name] if f"{name}.{p.name}" == site)
    product, module = product_at(model, name), model.get_submodule(name)
    setting = Setting.from_json(dict.fromkeys(operands, fmt))
    plain = logits(model, ids)
    with unchanged(model), injector.applied({site: setting}):
        found = logits(model, ids)
    forward = lambda x: by_hand(  # noqa: E731
        product, part.places, part.axis, fmt, operands, x, module.bias
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(module), "forward", forward)
        expected = logits(model, ids)
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("wanted", [Parts.PROJECTIONS, Parts.HEADS])
@pytest.mark.parametrize("family", ["gpt2", "gpt-oss"])
def test_all_parts_together_are_the_whole(family, wanted, divided, ids, unchanged):
    model, layout, injector = divided(family, wanted)
    setting = Setting.from_json("nvfp4")
    whole = Injector(model, dict.fromkeys(layout.linears, AMAX))
    with unchanged(model), whole.applied(dict.fromkeys(layout.linears, setting)):
        expected = logits(model, ids)
    with injector.applied({site.name: setting for site in layout.sites}):
        assert torch.equal(logits(model, ids), expected)
    injector.forget()
    assert injector.held == set()


def test_parts_of_experts_are_those_of_every_expert(divided, ids):
    """The gate's rows by turns with up's: with W4A16, a weight put together by hand."""
    model, _, injector = divided("gpt-oss", Parts.PROJECTIONS)
    experts = model.model.layers[1].mlp.experts
    name = "model.layers.1.mlp.experts.gate_up_proj"
    setting = Setting.from_json({"weight": "mxfp4:floor"})
    with injector.applied({f"{name}.up": setting}):
        found = logits(model, ids)
        mixed = experts.gate_up_proj.detach().clone()
    original = experts.gate_up_proj.detach()
    image = qdq(original.mT.contiguous(), get_format("mxfp4:floor")).mT
    assert torch.equal(mixed[..., 1::2], image[..., 1::2])
    assert torch.equal(mixed[..., ::2], original[..., ::2])
    both = {f"{name}.{part}": Setting.from_json({"input": "nvfp4"}) for part in ("up", "gate")}
    apart = []
    for site, own in both.items():
        with injector.applied({site: own}):
            apart.append(logits(model, ids))
    assert not torch.equal(*apart)
    assert not torch.equal(found, logits(model, ids))


def test_parts_may_be_treated_differently(divided, ids):
    """Three parts in two formats and full precision: each as in the run with its own input."""
    model, layout, injector = divided("gpt2", Parts.PROJECTIONS)
    name = "transformer.h.0.attn.c_attn"
    settings = {
        f"{name}.q": Setting.from_json("nvfp4"),
        f"{name}.v": Setting.from_json("mxfp4:floor"),
    }
    seen = {}

    def outputs(settings):
        module = model.get_submodule(name)
        with injector.applied(settings):
            handle = module.register_forward_hook(lambda m, a, y: seen.__setitem__("y", y))
            logits(model, ids)
            handle.remove()
        return seen["y"]

    found, plain = outputs(settings), outputs({})
    for part in layout.parts[name]:
        site = f"{name}.{part.name}"
        own = outputs({site: settings[site]}) if site in settings else plain
        assert torch.equal(found[..., part.places], own[..., part.places])
    assert not torch.equal(found, plain)
