"""First-order estimates: they are the derivative that they say they are, and leave no trace."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

from fp4scope import kernels
from fp4scope.errors import ModelError, NonFiniteError
from fp4scope.operands import Injector, treated, watched
from fp4scope.sweep import estimate_window, measure_naively

FORMATS = "mxfp4:floor,nvfp4"
OPERANDS = "weights+activations,weights,activations"
STEP = 1e-5


def settings_of(recipe, layout):
    return dict(recipe.in_block(layout.sites))


def nll(loaded, ids):
    """Summed over the targets, in FP64."""
    logp = loaded.logits(ids)[:-1].double().log_softmax(-1)
    return -float(logp.gather(-1, ids[1:, None]).sum())


@contextmanager
def partly(loaded, injector, names, setting, share):
    """These linears with `share` of the error that their quantization adds to their outputs."""

    def moved(name, entering, output):
        product, weight = loaded.products[name], loaded.products[name].weight
        image, rounded = weight, entering
        if setting.weight:
            image = injector.quantized_weight(name, setting.weight)
        if setting.input:
            x = injector.quantized_input(name, setting.input, entering)
            rounded = entering._replace(x=x)
        return output + share * (product.times(rounded, image) - product.times(entering, weight))

    with watched({name: loaded.products[name] for name in names}, None, moved):
        yield


def slope(loaded, ids, at, part):
    """Central difference of the loss in a share, around `at`, with the model inside `part`."""
    ends = []
    for share in (at - STEP, at + STEP):
        with part(share):
            ends.append(nll(loaded, ids))
    return (ends[1] - ends[0]) / (2 * STEP)


def rms_norm(module, x):
    scale = (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return module.weight * x * scale


@pytest.fixture
def wide(adopted, calibrated, ids, monkeypatch):
    """`wide(family)`: a model in FP64, where a finite difference has digits, and its injector."""

    def qdq(x, fmt, amax=None, nonfinite=None):  # formats round FP32 and narrower
        return kernels.qdq(x.float(), fmt, amax, nonfinite).double()

    monkeypatch.setattr(treated, "qdq", qdq)

    def build(family):
        loaded = adopted(family)
        loaded.model.double()  # which a user's may not be
        loaded.dtype = torch.float64
        loaded.model.set_experts_implementation("eager")  # the default knows no FP64
        for module in loaded.model.modules():
            if type(module).__name__.endswith("RMSNorm"):  # which computes in FP32
                module.forward = partial(rms_norm, module)
        return loaded, calibrated(loaded, ids)

    return build


@pytest.mark.parametrize("family", ["llama-biased", "gpt2", "gpt-oss"])
def test_isolate_is_the_derivative_of_the_error(wide, units, ids, family):
    loaded, injector = wide(family)
    asked = units(
        loaded, formats=FORMATS, operands=OPERANDS, sweep="projections,layers", direction="only"
    )
    estimated = estimate_window(loaded, ids[0], asked, injector).nats
    for contrast in (c for c in asked if c.family.level == "projections"):
        names, setting = contrast.unit.sites, contrast.family.setting
        part = partial(partly, loaded, injector, names, setting)
        expected = slope(loaded, ids[0], 0, part)
        assert estimated[contrast] == pytest.approx(expected, rel=1e-4, abs=1e-7), contrast.name


@pytest.mark.parametrize("family", ["llama-biased", "gpt2"])
def test_restore_is_the_derivative_at_the_baseline(wide, units, ids, family):
    """Weights only, where the loss is smooth in what is left of an error."""
    loaded, injector = wide(family)
    asked = units(
        loaded, formats=FORMATS, operands="weights", sweep="projections", direction="keep"
    )
    estimated = estimate_window(loaded, ids[0], asked, injector).nats
    for contrast in asked:
        names, setting = contrast.unit.sites, contrast.family.setting
        # Around the unit's own point: it in part, everything else in full.
        with injector.applied(settings_of(contrast.own, loaded.layout)):
            part = partial(partly, loaded, injector, names, setting)
            expected = slope(loaded, ids[0], 1, part)
        assert estimated[contrast] == pytest.approx(expected, rel=1e-4), contrast.name


def test_restore_with_activations_where_no_quantizer_follows(wide, units, ids):
    """The last block's last linear: the gradient there is the true one."""
    loaded, injector = wide("llama-biased")
    chosen = units(
        loaded,
        formats=FORMATS,
        operands=OPERANDS,
        sweep="layers:keep",
        layers="*.1.mlp.down_proj",
    )
    estimated = estimate_window(loaded, ids[0], chosen, injector).nats
    name = "model.layers.1.mlp.down_proj"
    assert len(chosen) == 6
    for contrast in chosen:
        # `partly` sees the linear's own, unquantized input: nothing else touches it.
        with injector.applied(settings_of(contrast.own, loaded.layout)):
            part = partial(partly, loaded, injector, [name], contrast.family.setting)
            expected = slope(loaded, ids[0], 1, part)
        assert estimated[contrast] == pytest.approx(expected, rel=1e-4), contrast.name


def test_the_weights_part_is_what_autograd_of_the_weight_says(wide, units, ids):
    loaded, injector = wide("llama")
    asked = units(loaded, formats="nvfp4", operands="weights", sweep="layers", direction="only")
    estimated = estimate_window(loaded, ids[0], asked, injector).nats
    for contrast in asked:
        ((name, setting),) = settings_of(contrast.own, loaded.layout).items()
        module = loaded.model.get_submodule(name)
        weight = module.weight.detach().clone().requires_grad_()
        logits = torch.func.functional_call(
            loaded.model, {f"{name}.weight": weight}, (ids[:1],), {"use_cache": False}
        ).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, weight)
        image = injector.quantized_weight(name, setting.weight)
        expected = float((gradient * (image - module.weight)).sum())
        assert estimated[contrast] == pytest.approx(expected, rel=1e-9)


def test_the_points_are_what_units_are_compared_with(
    adopted, planned, units, calibrated, ids, family
):
    """The forward that the gradient belongs to is what the exact sweep measures, bit for bit."""
    loaded = adopted(family)
    injector = calibrated(loaded, ids)
    study = {"formats": FORMATS, "operands": OPERANDS}
    controls = [run for run in planned(loaded, **study, sweep=()) if not run.replica]
    measured = measure_naively(loaded, ids[:1], controls, injector)
    asked = units(loaded, **study, sweep="layers")
    points = estimate_window(loaded, ids[0], asked, injector).nll
    assert len(points) == len(controls) == 7
    for control, (metrics,) in zip(controls, measured, strict=True):
        found = points[control.recipe.base]
        assert found == pytest.approx(metrics.nll, rel=1e-6), control.name


def test_a_unit_is_the_sum_of_its_layers(adopted, units, calibrated, ids):
    loaded = adopted("llama")
    pattern = "*.mlp.*"
    asked = units(loaded, sweep="projections,blocks,layers", patterns=[pattern], operands=OPERANDS)
    found = estimate_window(loaded, ids[0], asked, calibrated(loaded, ids)).nats
    assert list(found) == asked

    for contrast, cost in found.items():
        unit, family = contrast.unit, contrast.family
        same = {
            c.unit: nats for c, nats in found.items() if c.family == replace(family, level="layers")
        }
        parts = {
            "projections": [c for u, c in same.items() if u.name == unit.name],
            "blocks": [c for u, c in same.items() if u.block == unit.block],
            "patterns": [
                c for u, c in same.items() if u.name in ("gate_proj", "up_proj", "down_proj")
            ],
            "layers": [cost],
        }[unit.level]
        count = {"projections": 2, "blocks": 7, "patterns": 6, "layers": 1}[unit.level]
        assert len(parts) == count
        assert cost == pytest.approx(sum(parts), rel=1e-9, abs=1e-9), contrast.name


def test_only_the_linears_of_the_units_are_looked_at(adopted, units, calibrated, ids):
    """What is not asked for is not computed, and does not change what is."""
    loaded = adopted("llama")
    injector = calibrated(loaded, ids)
    everything = units(loaded, sweep="layers", operands=OPERANDS)
    some = units(loaded, sweep="layers", layers="down_proj", formats="nvfp4")
    whole = estimate_window(loaded, ids[0], everything, injector).nats
    part = estimate_window(loaded, ids[0], some, injector).nats
    assert len(part) == 4 < len(whole)
    assert part == {contrast: whole[contrast] for contrast in part}


def test_the_same_in_half_precision(adopted, units, calibrated, ids):
    """Sums over many tokens: BF16 and FP16 agree with FP32 to a few of their roundings."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loaded = adopted("llama", dtype)
        injector = calibrated(adopted("llama"), ids)
        injector = Injector(loaded.model, injector.calibrated)
        asked = units(loaded, sweep="layers", formats="nvfp4", direction="only")
        nats = estimate_window(loaded, ids[0], asked, injector).nats
        found[dtype] = torch.tensor([*nats.values()])
    exact = found.pop(torch.float32)
    for dtype, costs in found.items():
        # Weights are rounded to the dtype first, which moves some across a boundary of FP4.
        assert torch.corrcoef(torch.stack([exact, costs]))[0, 1] > 0.96, dtype


def test_the_model_is_untouched(adopted, units, calibrated, ids, unchanged, family):
    loaded = adopted(family)
    injector = calibrated(loaded, ids)
    chosen = units(loaded, sweep="projections")
    before = loaded.logits(ids[0])
    with unchanged(loaded.model), torch.inference_mode():
        first = estimate_window(loaded, ids[0], chosen, injector)
    assert all(not p.requires_grad and p.grad is None for p in loaded.model.parameters())
    assert torch.equal(loaded.logits(ids[0]), before)
    assert estimate_window(loaded, ids[0], chosen, injector) == first


def test_the_model_is_untouched_after_an_error(adopted, units, calibrated, ids, unchanged):
    loaded = adopted("llama")
    injector = calibrated(loaded, ids)
    chosen = units(loaded, sweep="projections", formats="nvfp4")
    injector.calibrated["model.layers.0.mlp.down_proj"] = 0.0
    with unchanged(loaded.model), pytest.raises(NonFiniteError, match="calibrated amax"):
        estimate_window(loaded, ids[0], chosen, injector)


def test_an_overflowing_gradient_is_named(adopted, units, ids):
    loaded = adopted("llama")
    loaded.model.lm_head.weight.data *= float("inf")
    chosen = units(loaded, sweep="layers", formats="nvfp4", operands="weights")
    with pytest.raises(NonFiniteError, match=r"the estimate of nvfp4\|W4A16.*overflowed"):
        estimate_window(loaded, ids[0], chosen, Injector(loaded.model))


def test_a_large_gradient_in_half_precision(adopted, units, calibrated, ids):
    """Between the head and the final norm it is beyond FP16 under the largest loss scale."""
    found = []
    for factor in (1, 2**14):
        loaded = adopted("llama", torch.float16)
        loaded.model.lm_head.weight.data *= factor
        loaded.model.model.norm.weight.data /= factor
        chosen = units(loaded, sweep="layers", formats="nvfp4", operands="weights")
        nats = estimate_window(loaded, ids[0], chosen, Injector(loaded.model)).nats
        found.append(torch.tensor([*nats.values()]))
    assert torch.corrcoef(torch.stack(found))[0, 1] > 0.99


def test_what_the_loss_does_not_depend_on_costs_nothing(adopted, units, calibrated, ids):
    """Such as an expert that no token chose."""
    loaded = adopted("llama")
    injector = calibrated(loaded, ids)
    loaded.model.model.layers[1].mlp.forward = torch.zeros_like
    chosen = units(loaded, sweep="layers", layers="down_proj,up_proj")
    found = estimate_window(loaded, ids[0], chosen, injector).nats
    assert [c.unit.block for c, cost in found.items() if cost == 0] == [1] * 8
    assert len(found) == 16


def test_a_forward_without_gradients_is_refused(adopted, units, ids):
    loaded = adopted("llama")
    loaded.model.forward = torch.no_grad()(loaded.model.forward)
    chosen = units(loaded, sweep="layers", formats="nvfp4", operands="weights")
    with pytest.raises(ModelError, match="no gradient comes"):
        estimate_window(loaded, ids[0], chosen, Injector(loaded.model))
