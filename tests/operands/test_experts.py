"""Experts in one tensor: both products of each, as a plain loop over the experts has them."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional

from fp4scope import fake_quantize
from fp4scope.errors import UnitError
from fp4scope.models import find_layout
from fp4scope.operands import Injector, observe_inputs, product_at, products, watched
from fp4scope.operands.experts import experts_in, grouped, routed
from fp4scope.treatments import Setting

AMAX = 3.0


def stacked(model):
    """Products of experts, by name."""
    return {name: product for name, product in products(model) if product.experts > 1}


def logits(model, ids):
    return model(ids, use_cache=False).logits


def quantized(setting, operand, x, amax=None):
    treatment = None if setting is None else getattr(setting, operand)
    if treatment is None:
        return x
    return fake_quantize(x, treatment.format, amax=amax if treatment.tensor_scale else None)


@contextmanager
def in_a_loop(model, settings):
    """Experts as a loop runs them, one after the other, each on every token: no row is short."""

    def product(module, name, leaf, expert, x):
        parameter = getattr(module, leaf)[expert]
        weight = parameter.T.contiguous() if getattr(module, "is_transposed", False) else parameter
        setting = settings.get(f"{name}.{leaf}")
        weight = quantized(setting, "weight", weight)
        y = quantized(setting, "input", x, AMAX) @ weight.T
        bias = getattr(module, f"{leaf}_bias", None)
        return y if bias is None else y + bias[expert]

    def run(module, name, x, index, weights):
        gated = hasattr(module, "gate_up_proj")
        every = []
        for expert in range(len(module.down_proj)):
            y = product(module, name, "gate_up_proj" if gated else "up_proj", expert, x)
            y = module._apply_gate(y) if gated else module.act_fn(y)
            every.append(product(module, name, "down_proj", expert, y))
        chosen = torch.stack(every)[index, torch.arange(len(x))[:, None]]
        return (chosen * weights[..., None]).sum(1)

    with pytest.MonkeyPatch.context() as patch:
        for name, module in model.named_modules():
            if hasattr(module, "_apply_gate"):
                forward = lambda *a, m=module, n=name: run(m, n, *a)  # noqa: E731
                patch.setitem(vars(module), "forward", forward)
        yield


def test_both_products_of_every_family_are_found(mixture, tiny_model):
    model = tiny_model(mixture)
    layout = find_layout(model)
    assert layout.coverage > 0.9
    found = stacked(model)
    assert found
    for name, product in found.items():
        site = layout.sites.by_name[name]
        assert (site.experts, site.rows, site.cols) == tuple(product.weight.shape)
        assert site.parameters == product.parameter.numel()
        # JetMoE's, and older versions of Granite's, are modules of their own.
        assert "experts." in site.projection or mixture in ("jetmoe", "granite-hybrid")
    shared = [c for c in layout.projections if "shared" in c]
    expected = {"qwen2-moe", "deepseek-v3", "nemotron-h", "granite-hybrid", "qwen3-next", "llama4"}
    assert bool(shared) == (mixture in expected)
    assert any(excluded.reason == "router" for excluded in layout.excluded)


def test_the_code_here_gives_what_the_models_own_gives(mixture, tiny_model, ids):
    model = tiny_model(mixture)
    own = logits(model, ids)
    with routed(experts_in(model)):
        here = logits(model, ids)
    torch.testing.assert_close(here, own, atol=1e-5, rtol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())


LOOPED = ("mixtral", "qwen3-moe", "gpt-oss", "deepseek-v3", "nemotron-h", "lfm2-moe")


@pytest.mark.parametrize("fmt", ["mxfp4:floor", "nvfp4"])
@pytest.mark.parametrize("name", LOOPED)
def test_quantized_experts_are_those_of_a_loop_to_the_bit(name, fmt, tiny_model, ids, unchanged):
    """Weights, inputs and both; without the input of the second product it is something else."""
    model = tiny_model(name)
    names = list(stacked(model))
    injector = Injector(model, dict.fromkeys(names, AMAX))
    results = []
    for operands in ({"weight": fmt}, {"input": fmt}, {"weight": fmt, "input": fmt}):
        setting = Setting.from_json(operands)
        for settings in (
            dict.fromkeys(names, setting),
            {n: setting for n in names if not n.endswith("down_proj")},
        ):
            with in_a_loop(model, settings):
                expected = logits(model, ids)
            with unchanged(model), injector.applied(settings):
                found = logits(model, ids)
            assert torch.equal(found, expected)
            results.append(found)
    results.append(logits(model, ids))
    for i, one in enumerate(results):
        for other in results[:i]:
            assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss", "jetmoe"])
def test_every_expert_has_its_own_weight_scale(name, tiny_model):
    model = tiny_model(name)
    chosen, product = next(iter(stacked(model).items()))
    treatment = Setting.from_json({"weight": "nvfp4"}).weight
    product.parameter.data[1] *= 1000
    image = Injector(model).quantized_weight(chosen, treatment)
    for expert, weight in enumerate(product.weight):
        assert torch.equal(image[expert], fake_quantize(weight.contiguous(), "nvfp4"))
    whole = fake_quantize(product.weight.contiguous(), "nvfp4")
    assert not torch.equal(image, whole)


def test_an_image_stands_in_the_shape_of_the_weight(mixture, tiny_model, ids, unchanged):
    """Also after an exception everything is as it was."""
    model = tiny_model(mixture)
    settings = dict.fromkeys(stacked(model), Setting.from_json("mxfp4"))
    injector = Injector(model)
    before = logits(model, ids)

    def look():
        for name in settings:
            product = product_at(model, name)
            weight = injector.quantized_weight(name, settings[name].weight)
            assert product.weight.shape == weight.shape
            assert torch.equal(product.weight, weight)
            assert product.parameter.is_contiguous()
            assert not torch.equal(injector._original(name), product.parameter)
        assert not torch.equal(logits(model, ids), before)
        raise ZeroDivisionError

    with unchanged(model), pytest.raises(ZeroDivisionError), injector.applied(settings):
        look()
    assert torch.equal(logits(model, ids), before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_watchers_see_each_experts_rows(mixture, tiny_model, ids):
    """What leaves is the product of what entered, row by row, by the weight of its expert."""
    model = tiny_model(mixture)
    found = stacked(model)
    seen = {}

    def look(name, entering, y):
        seen[name] = entering, y
        return 2 * y

    with watched(found, None, look), watched(found, None, lambda name, _, y: y / 2):
        twice = logits(model, ids)
    torch.testing.assert_close(twice, logits(model, ids), atol=1e-5, rtol=1e-5)
    assert seen.keys() == found.keys()
    for name, (entering, y) in seen.items():
        product = found[name]
        ends = entering.ends.tolist()
        assert ends[-1] == len(entering.x) == len(y)
        start = 0
        for end, weight in zip(ends, product.weight, strict=True):
            plain = functional.linear(entering.x[start:end], weight)
            off = y[start:end] - plain
            # A bias is the same for all of an expert's rows.
            torch.testing.assert_close(off - off[:1], torch.zeros_like(off), atol=1e-5, rtol=0)
            start = end


def test_what_quantizing_moves_is_the_difference_of_the_outputs(tiny_model, ids):
    model = tiny_model("gpt-oss")
    name, product = list(stacked(model).items())[-1]
    setting = Setting.from_json("mxfp4")
    injector = Injector(model)
    seen = []
    with watched({name: product}, None, lambda *args: seen.append(args[1:])):
        logits(model, ids)
        with injector.applied({name: setting}):
            logits(model, ids)
    (entering, plain), (_, quantized) = seen
    found = injector.moved(name, setting, entering)
    torch.testing.assert_close(found, quantized - plain, atol=1e-5, rtol=1e-5)
    assert found.abs().max() > 1e-3


def test_a_row_gives_the_same_whatever_shares_its_batch(mixture, tiny_model, ids):
    """Of all these families but two, where a product with one output rounds differently."""
    model = tiny_model(mixture)
    with routed(experts_in(model)):
        together = logits(model, torch.cat([ids, ids.flip(1)]))
        alone = torch.cat([logits(model, row[None]) for row in ids])
    if mixture in ("qwen2-moe", "qwen3-next"):
        torch.testing.assert_close(together[: len(ids)], alone, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(together[: len(ids)], alone)


def test_no_rows_and_experts_without_any():
    x, weight = torch.randn(20, 8), torch.randn(3, 4, 8)
    ends = torch.tensor([0, 20, 20], dtype=torch.int32)
    assert torch.equal(grouped(x, weight, ends), x @ weight[1].T)
    assert grouped(x[:0], weight, 0 * ends).shape == (0, 4)


def test_scales_of_inputs_may_be_each_experts_own(tiny_model, ids):
    """One number for all is what each would have with the same amax; another amax moves its own."""
    model = tiny_model("qwen3-moe")
    name, product = list(stacked(model).items())[-1]
    experts = product.experts
    own = Setting.from_json({"input": {"format": "nvfp4", "amax": "expert"}})
    seen = []
    with watched({name: product}, lambda *args: seen.append(args[1])):
        logits(model, ids)
    (entering,) = seen
    amaxes = [AMAX] * experts

    def image():
        injector = Injector(model, {name: AMAX}, {name: amaxes})
        return injector.quantized_input(name, own.input, entering)

    shared = image()
    assert torch.equal(shared, fake_quantize(entering.x, "nvfp4", amax=AMAX))
    amaxes[2] = 40.0
    found = image()
    changed = entering.by_row(torch.arange(experts)) == 2
    assert changed.any()
    assert torch.equal(found[~changed], shared[~changed])
    assert torch.equal(found[changed], fake_quantize(entering.x[changed], "nvfp4", amax=40.0))


@pytest.mark.parametrize("name", ["gpt-oss", "llama4", "jetmoe"])
def test_what_each_expert_saw_is_counted(name, tiny_model, ids):
    model = tiny_model(name)
    found = stacked(model)
    seen = dict.fromkeys(found, ())

    def look(name, entering):
        parts = [x[x.any(1)] for x in entering.x.split(entering.counts.tolist())]
        seen[name] += (tuple((float(x.abs().amax()) if len(x) else 0.0, len(x)) for x in parts),)

    with watched(found, look):
        observed = observe_inputs(model, found, (logits(model, row[None]) for row in ids))
    for name, statistics in observed.items():
        expected = [(max(a, b), m + n) for (a, m), (b, n) in zip(*seen[name], strict=True)]
        assert statistics.experts == tuple(expected)
        assert statistics.max == max(amax for amax, _ in expected)
        rows = sum(tokens for _, tokens in expected)
        # Of Llama 4, whose every expert gets every token, as zeros where it was not chosen.
        assert rows < ids.numel() * 4
        assert statistics.elements == rows * found[name].weight.shape[2]


# Single experts.


def single(name, expert):
    holder, _, leaf = name.rpartition(".")
    return f"{holder}.{expert}.{leaf}"


@pytest.mark.parametrize("fmt", ["mxfp4:floor", "nvfp4"])
@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss", "jetmoe"])
def test_single_experts_are_treated_and_no_others(name, fmt, tiny_model, ids, unchanged):
    """Weight by weight and row by row; one after the other, as in a sweep."""
    model = tiny_model(name)
    (first, product), (last, _) = list(stacked(model).items())[:2]
    others = {"mxfp4:floor": "nvfp4", "nvfp4": "mxfp4:floor"}
    one, other = (Setting.from_json(f) for f in (fmt, others[fmt]))
    injector = Injector(model, {first: AMAX, last: AMAX})
    plain = Injector(model, injector.calibrated)
    original = product.weight.clone()
    asked = [
        {0: one}, {1: one}, {1: one, 2: other}, {0: one, 1: one, 3: one}, {2: other},
        {e: one for e in range(4)}, {3: one},
    ]  # fmt: skip

    def enters():
        seen = []
        with watched({first: product}, lambda *args: seen.append(args[1])):
            logits(model, ids)
        return seen[0]

    for chosen in asked:
        settings = {single(first, e): setting for e, setting in chosen.items()}
        before = enters()
        with unchanged(model), injector.applied(settings):
            rounded = enters()
            for e in range(4):
                weight = original[e].contiguous()
                if e in chosen:
                    weight = fake_quantize(weight, chosen[e].weight.format)
                assert torch.equal(product.weight[e], weight)
        expected = before.x.clone()
        for e, setting in chosen.items():
            mine = before.by_row(torch.arange(4)) == e
            expected[mine] = plain.quantized_input(first, setting.input, before)[mine]
        assert torch.equal(rounded.x, expected)
        injector.forget((site, setting.weight) for site, setting in list(settings.items())[:1])
    assert injector.held
    injector.forget()
    assert not injector.held


def test_an_image_goes_when_no_expert_wants_it(tiny_model, ids):
    model = tiny_model("qwen3-moe")
    name = next(iter(stacked(model)))
    setting = Setting.from_json({"weight": "nvfp4"})
    injector = Injector(model)
    with injector.applied({single(name, e): setting for e in (0, 2)}):
        assert injector.held == {(name, setting.weight)}
    injector.forget([(single(name, 0), setting.weight)])
    assert injector.held == {(name, setting.weight)}
    injector.forget([(single(name, 2), setting.weight)])
    assert injector.held == set()


def test_all_experts_alone_are_all_experts(tiny_model, ids):
    model = tiny_model("gpt-oss")
    names = list(stacked(model))
    injector = Injector(model, dict.fromkeys(names, AMAX))
    setting = Setting.from_json("nvfp4")
    with injector.applied(dict.fromkeys(names, setting)):
        together = logits(model, ids)
    with injector.applied({single(n, e): setting for n in names for e in range(4)}):
        assert torch.equal(logits(model, ids), together)


def test_experts_that_are_not_there_are_refused(tiny_model):
    name = next(iter(stacked(tiny_model("qwen3-moe"))))
    injector = Injector(tiny_model("qwen3-moe"))
    for site in (single(name, 4), "model.layers.0.self_attn.0.q_proj"):
        with (
            pytest.raises(UnitError, match="no linear called"),
            injector.applied({site: Setting.from_json({"weight": "nvfp4"})}),
        ):
            pass
