"""Injection: exact in what it computes, and without a trace afterwards."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers.pytorch_utils import Conv1D

from fp4scope import fake_quantize
from fp4scope.errors import NonFiniteError, UnitError
from fp4scope.formats import FORMATS
from fp4scope.models import find_layout
from fp4scope.operands import Injector, treated
from fp4scope.operands import apply as injector_module
from fp4scope.treatments import Amax, Setting, Treatment

MX, STATIC = Treatment(FORMATS["mxfp4:floor"]), Treatment(FORMATS["nvfp4"])
NV = Treatment(STATIC.format, Amax.WINDOW)
QDQ = "fp4scope.operands.treated.qdq"


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits


@contextmanager
def seen_by(module):
    """What the module's own forward gets and gives, as lists."""
    inputs, outputs = [], []

    def see(_, args, output):
        inputs.append(args[0].clone())
        outputs.append(output.clone())

    hook = module.register_forward_hook(see)
    try:
        yield inputs, outputs
    finally:
        hook.remove()


def seen_once(model, name, ids):
    """What the linear gets and gives on the first window."""
    with seen_by(model.get_submodule(name)) as (inputs, outputs):
        logits(model, ids[:1])
    return inputs[0], outputs[0]


@pytest.fixture
def qdq_calls(monkeypatch):
    """Shapes of what was quantized, in order."""
    calls = []
    original = treated.qdq

    def counted(x, *args, **kwargs):
        calls.append(tuple(x.shape))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(QDQ, counted)
    return calls


def everything(model, treatment):
    setting = Setting(treatment, treatment)
    return dict.fromkeys(find_layout(model).linears, setting)


# The model is the same before, after, and wherever it is not quantized.


def test_identity_quantizer_changes_no_logit(family, tiny_model, ids, monkeypatch):
    model = tiny_model(family)
    reference = logits(model, ids)
    for fmt in (MX, NV):
        with Injector(model).applied(everything(model, fmt)):
            assert not torch.equal(logits(model, ids), reference)

    monkeypatch.setattr(QDQ, lambda x, fmt, amax=None, nonfinite=None: x)
    for fmt in (MX, NV):
        with Injector(model).applied(everything(model, fmt)):
            assert torch.equal(logits(model, ids), reference)


def test_quantizing_nothing_changes_nothing(family, tiny_model, ids, unchanged):
    model = tiny_model(family)
    reference = logits(model, ids)
    injector = Injector(model)
    with unchanged(model), injector.applied({}), unchanged(model):
        assert torch.equal(logits(model, ids), reference)


def test_model_is_the_same_afterwards(family, tiny_model, ids, unchanged):
    model = tiny_model(family)
    reference = logits(model, ids)
    injector = Injector(model)
    with unchanged(model):
        for fmt in (MX, NV, MX):
            with injector.applied(everything(model, fmt)):
                logits(model, ids)
    assert torch.equal(logits(model, ids), reference)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_model_is_the_same_after_an_exception(family, error, tiny_model, ids, unchanged):
    model = tiny_model(family)
    injector = Injector(model)
    with unchanged(model):
        with pytest.raises(error), injector.applied(everything(model, NV)):
            fails_with(error)(logits(model, ids))
        # From inside a forward, with hooks of some linears already run.
        last = find_layout(model).linears[-1]
        hook = model.get_submodule(last).register_forward_pre_hook(fails_with(error))
        with pytest.raises(error), injector.applied(everything(model, NV)):
            logits(model, ids)
        hook.remove()


def fails_with(error):
    def hook(*_):
        raise error

    return hook


@pytest.mark.parametrize("missing", ["model.layers.9.mlp.up_proj", "model.norm", "lm_hea"])
def test_unknown_linear_is_an_error_that_undoes_the_others(missing, tiny_model, unchanged):
    model = tiny_model("llama")
    settings = everything(model, MX) | {missing: Setting(weight=MX)}
    with (
        unchanged(model),
        pytest.raises(UnitError, match=f"no linear called '{missing}'"),
        Injector(model).applied(settings),
    ):
        pass


def test_only_targeted_weights_are_replaced(family, tiny_model):
    """Head, embeddings, norms and biases are the same objects while all is quantized."""
    model = tiny_model(family)
    linears = find_layout(model).linears
    before = dict(model.named_parameters(remove_duplicate=False))
    with Injector(model).applied(everything(model, MX)):
        inside = dict(model.named_parameters(remove_duplicate=False))
        changed = {name for name in before if inside[name] is not before[name]}
        assert changed == {f"{name}.weight" for name in linears}
        for name in linears:
            weight, image = before[f"{name}.weight"], inside[f"{name}.weight"]
            assert torch.equal(
                image, quantized_weight(model.get_submodule(name), weight, MX.format)
            )
            assert not torch.equal(image, weight)
            assert not image.requires_grad


# What one linear computes, against the same operation by hand.


def quantized_weight(module, weight, fmt):
    """Blocks run along the reduction axis: the last of nn.Linear, the first of Conv1D."""
    if isinstance(module, Conv1D):
        return fake_quantize(weight.T, fmt).T.contiguous()
    return fake_quantize(weight, fmt)


def by_hand(module, x, setting, amax=None):
    weight = module.weight.detach()
    if setting.weight:
        weight = quantized_weight(module, weight, setting.weight.format)
    if setting.input:
        x = fake_quantize(x, setting.input.format, amax=amax)
    if isinstance(module, Conv1D):
        y = torch.addmm(module.bias, x.view(-1, x.shape[-1]), weight)
        return x, y.view(*x.shape[:-1], -1)
    return x, F.linear(x, weight, module.bias)


@pytest.mark.parametrize("case", ["mxfp4:floor", "nvfp4 dynamic", "nvfp4 calibrated"])
def test_one_linear_equals_the_computation_by_hand(case, family, tiny_model, ids):
    model = tiny_model(family)
    how = {"nvfp4 dynamic": NV, "nvfp4 calibrated": STATIC}.get(case, MX)
    layout = find_layout(model)
    for layer, (name,) in layout.layers.items():
        if layer.block != layout.blocks - 1:
            continue
        module = model.get_submodule(name)
        x, plain = seen_once(model, name, ids)
        amax = 0.7 * x.abs().max().item() if case.endswith("calibrated") else None
        injector = Injector(model, None if amax is None else {name: amax})
        results = [plain]
        for setting in (Setting(how, how), Setting(weight=how), Setting(input=how)):
            expected = by_hand(module, x, setting, amax if setting.input else None)
            with injector.applied({name: setting}):
                entering, output = seen_once(model, name, ids)
            assert torch.equal(entering, expected[0]), (name, setting)
            assert torch.equal(output, expected[1]), (name, setting)
            assert not any(torch.equal(output, other) for other in results)
            results.append(output)


def test_calibrated_amax_is_each_linears_own(tiny_model, ids):
    model = tiny_model("llama")
    up, down = (f"model.layers.0.mlp.{name}_proj" for name in ("up", "down"))
    amax = {up: 3.0, down: 0.125}
    settings = dict.fromkeys(amax, Setting(input=STATIC))
    plain, _ = seen_once(model, up, ids)
    with Injector(model, amax).applied(settings):
        got, _ = seen_once(model, up, ids)
        got_down, _ = seen_once(model, down, ids)
    assert torch.equal(got, fake_quantize(plain, "nvfp4", amax=3.0))
    assert got_down.abs().max() <= 0.125


# Caches: quantized weights, shared inputs.


def test_kept_weights_give_what_fresh_ones_do(family, tiny_model, ids, qdq_calls):
    model = tiny_model(family)
    kept = Injector(model)
    linears = len(find_layout(model).linears)
    seen = {}
    for fmt in (MX, MX, NV, MX):
        settings = dict.fromkeys(find_layout(model).linears, Setting(weight=fmt))
        qdq_calls.clear()
        with kept.applied(settings):
            got = logits(model, ids)
        assert len(qdq_calls) == (0 if fmt in seen else linears)
        with Injector(model).applied(settings):
            assert torch.equal(logits(model, ids), got)
        assert torch.equal(seen.setdefault(fmt, got), got)
    assert not torch.equal(seen[MX], seen[NV])


def test_kept_weights_are_of_their_own_treatment_until_they_are_forgotten(tiny_model, qdq_calls):
    """Recipes that mix formats quantize every weight once in each."""
    model = tiny_model("llama")
    injector = Injector(model)
    names = find_layout(model).linears
    for turn in range(3):
        settings = {n: Setting(weight=(MX, STATIC)[(i + turn) % 2]) for i, n in enumerate(names)}
        with injector.applied(settings):
            pass
    assert len(qdq_calls) == 2 * len(names)
    assert injector.held == {(name, how) for name in names for how in (MX, STATIC)}
    injector.forget([(names[0], MX)])
    assert (names[0], MX) not in injector.held
    assert (names[0], STATIC) in injector.held
    injector.forget()
    assert injector.held == set()


def test_a_kept_weight_is_not_served_for_another_parameter(x):
    """Both have version 0: only the object tells them apart."""
    model = TwoReaders()
    injector = Injector(model)
    settings = {"first": Setting(weight=MX)}
    for factor in (1.0, -0.7):
        model.first.weight = nn.Parameter(factor * model.first.weight.detach())
        assert model.first.weight._version == 0
        with torch.no_grad(), injector.applied(settings):
            first, _ = model(x)
        assert torch.equal(first, by_hand(model.first, x, settings["first"])[1])


@pytest.mark.parametrize("fmt", [MX, NV], ids=lambda treatment: treatment.format.name)
def test_shared_inputs_are_quantized_once_and_to_the_same(
    fmt, family, tiny_model, ids, qdq_calls, monkeypatch
):
    model = tiny_model(family)
    layout = find_layout(model)
    settings = dict.fromkeys(layout.linears, Setting(input=fmt))
    with Injector(model).applied(settings):
        shared = logits(model, ids)
    # q, k, v read one tensor, and gate and up another.
    assert len(qdq_calls) == 4 * layout.blocks

    qdq_calls.clear()
    monkeypatch.setattr(injector_module.SharedInput, "is_for", lambda *_: False)
    with Injector(model).applied(settings):
        assert torch.equal(logits(model, ids), shared)
    assert len(qdq_calls) == len(layout.linears)


class TwoReaders(nn.Module):
    """Two linears that read one tensor, changed in place in between."""

    def __init__(self, added=0.0):
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(64, 32)
        self.added = added

    def forward(self, x):
        x = x.clone()
        first = self.first(x)
        if self.added:
            x.add_(self.added)
        return first, self.second(x)


def test_a_weight_that_changed_is_quantized_again(tiny_model, ids):
    """Kept while nothing changes: neither the values nor the parameter itself."""
    model = copy.deepcopy(tiny_model("llama"))
    injector = Injector(model)
    settings = everything(model, MX)
    with injector.applied(settings):
        before = logits(model, ids)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data.mul_(3)
    weight.detach().add_(0)  # counts as a change, as any in-place operation does
    with injector.applied(settings):
        after = logits(model, ids)
    with Injector(model).applied(settings):
        fresh = logits(model, ids)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)


def test_one_injector_is_not_applied_twice_at_once(tiny_model, unchanged):
    model = tiny_model("llama")
    injector = Injector(model)
    with (
        unchanged(model),
        injector.applied({}),
        pytest.raises(RuntimeError, match="applied already"),
        injector.applied({}),
    ):
        pass
    with injector.applied({}):
        pass


@pytest.fixture
def x():
    """Two windows of 5 tokens, the second 50 times larger."""
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2))
    x[1] *= 50
    return x


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_input_changed_in_place_is_not_served_stale(mode, x):
    model = TwoReaders(added=1.0)
    settings = dict.fromkeys(("first", "second"), Setting(input=MX))
    with mode(), Injector(model).applied(settings):
        first, second = model(x)
    assert torch.equal(first, model.first(fake_quantize(x, MX.format)))
    assert torch.equal(second, model.second(fake_quantize(x + 1.0, MX.format)))


@pytest.mark.parametrize(
    ("formats", "amax"),
    [
        ((MX, STATIC), (8.0, 8.0)),
        ((STATIC, STATIC), (8.0, 2.0)),
        ((NV, STATIC), (8.0, 2.0)),
        ((MX, Treatment(FORMATS["mxfp4:rceil"])), None),
        ((MX, MX), None),
    ],
)
def test_readers_of_one_input_with_settings_of_their_own(formats, amax, x):
    model = TwoReaders()
    names = ("first", "second")
    amax = dict(zip(names, amax, strict=True)) if amax else None
    settings = {n: Setting(input=f) for n, f in zip(names, formats, strict=True)}
    with torch.no_grad(), Injector(model, amax).applied(settings):
        outputs = model(x)
    for name, how, output in zip(names, formats, outputs, strict=True):
        windows = x if how is STATIC else x.split(1)
        own = amax[name] if how is STATIC else None
        images = [fake_quantize(window, how.format, amax=own) for window in windows]
        expected = model.get_submodule(name)(torch.cat(images).view_as(x))
        assert torch.equal(output, expected)


# NVFP4's tensor scale.


def inputs_seen(model, name, x, amax=None):
    with (
        torch.no_grad(),
        Injector(model, amax).applied({name: Setting(input=STATIC if amax else NV)}),
        seen_by(model.get_submodule(name)) as (inputs, _),
    ):
        model(x)
    return inputs[0]


def test_dynamic_scale_is_each_windows_own(x):
    model = TwoReaders()
    together = inputs_seen(model, "first", x)
    alone = [inputs_seen(model, "first", window[None])[0] for window in x]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(together, torch.stack([fake_quantize(w, "nvfp4") for w in x]))
    # One scale for the batch would be another result, so this test can see the difference.
    assert not torch.equal(together, fake_quantize(x, "nvfp4"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dynamic_scale_in_half_precision(dtype, x):
    model, x = TwoReaders().to(dtype), x.to(dtype)
    got = inputs_seen(model, "first", x)
    assert got.dtype == dtype
    assert torch.equal(got, torch.stack([fake_quantize(w, "nvfp4") for w in x]))


def test_dynamic_scale_of_rows_without_windows(x):
    """What reaches an expert: tokens of a batch in one axis, or none at all."""
    model = TwoReaders()
    rows = x.flatten(0, 1)
    assert torch.equal(inputs_seen(model, "first", rows), fake_quantize(rows, "nvfp4"))
    assert inputs_seen(model, "first", rows[:0]).shape == (0, 64)
    assert inputs_seen(model, "first", rows[:0], {"first": 0.0}).shape == (0, 64)


def test_calibrated_scale_is_not_the_batchs(x):
    got = inputs_seen(TwoReaders(), "first", x, {"first": 3.0})
    assert torch.equal(got, fake_quantize(x, "nvfp4", amax=3.0))
    assert got.abs().max() <= 3.0 < x.abs().max()


@pytest.mark.parametrize("amax", [None, {"second": 1.0}])
def test_an_input_that_was_not_calibrated_is_an_error(amax, unchanged):
    model = TwoReaders()
    names = ("second", "first") if amax else ("first", "second")
    with (
        unchanged(model),
        pytest.raises(UnitError, match="the input of first has no calibrated amax"),
        Injector(model, amax).applied(dict.fromkeys(names, Setting(STATIC, STATIC))),
    ):
        pass


def test_amax_of_zero_names_the_linear_unless_the_input_is_zero(x, unchanged):
    model = TwoReaders()
    amax = {"first": 1.0, "second": 0.0}
    settings = dict.fromkeys(amax, Setting(input=STATIC))
    injector = Injector(model, amax)
    with (
        unchanged(model),
        pytest.raises(NonFiniteError, match="amax of the input of second is 0"),
        torch.no_grad(),
        injector.applied(settings),
    ):
        model(x)
    with torch.no_grad(), injector.applied(settings):
        outputs = model(torch.zeros_like(x))
    assert torch.equal(outputs[1], model.second.bias.expand_as(outputs[1]))


# NaN and Inf.


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fmt", [MX, NV], ids=lambda treatment: treatment.format.name)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nonfinite_weight_names_the_linear(bad, fmt, family, tiny_model, unchanged):
    model = tiny_model(family)
    name = find_layout(model).linears[-2]
    model.get_submodule(name).weight[3, 5] = bad
    injector = Injector(model)
    for _ in range(2):  # an image that was complained of is not taken for a good one
        with (
            unchanged(model),
            pytest.raises(NonFiniteError, match=f"weight of {name} has NaN or Inf"),
            injector.applied(everything(model, fmt)),
        ):
            pass


def test_a_nonfinite_weight_is_found_after_another_error(tiny_model):
    model = tiny_model("llama")
    name = find_layout(model).linears[-2]
    model.get_submodule(name).weight[3, 5] = float("nan")
    injector = Injector(model)
    with pytest.raises(KeyError), injector.applied(everything(model, MX)):
        raise KeyError
    with (
        pytest.raises(NonFiniteError, match=f"weight of {name} has NaN or Inf"),
        injector.applied(everything(model, MX)),
    ):
        pass


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("amax", [None, 5.0])
@pytest.mark.parametrize("fmt", [MX, NV], ids=lambda treatment: treatment.format.name)
def test_nonfinite_input_names_the_linear(bad, amax, fmt, x, unchanged):
    model = TwoReaders(added=1.0)
    if fmt is NV and amax is not None:
        fmt = STATIC
    injector = Injector(model, None if amax is None else dict.fromkeys(("first", "second"), amax))
    settings = dict.fromkeys(("second", "first"), Setting(input=fmt))
    x[1, 2, 3] = bad
    with (
        unchanged(model),
        pytest.raises(NonFiniteError, match=r"input of first has NaN or Inf in torch.float32"),
        torch.no_grad(),
        injector.applied(settings),
    ):
        model(x)
    # Nothing of it is left for the next `with`, nor without a bad input.
    with torch.no_grad(), injector.applied(settings):
        model(torch.ones_like(x))
        injector.check()


def test_nonfinite_input_is_named_where_it_first_shows(tiny_model, ids):
    model = tiny_model("llama")
    model.model.layers[1].input_layernorm.weight[7] = float("inf")
    injector = Injector(model)
    name = "model.layers.1.self_attn.q_proj"
    with (
        pytest.raises(NonFiniteError, match=f"input of {name} has"),
        injector.applied(everything(model, MX)),
    ):
        logits(model, ids)


def test_nonfinite_inputs_can_be_asked_for_at_any_time(x):
    model = TwoReaders()
    injector = Injector(model)

    def run():
        with injector.applied({"second": Setting(input=MX)}):
            model(x)
            injector.check()
            model(x / 0)
            injector.check()
            pytest.fail("went on")

    with torch.no_grad(), pytest.raises(NonFiniteError, match="input of second has"):
        run()


def test_an_exception_is_not_hidden_by_a_nonfinite_input(x):
    model = TwoReaders()
    with (
        pytest.raises(ZeroDivisionError),
        torch.no_grad(),
        Injector(model).applied({"first": Setting(input=MX)}),
    ):
        fails_with(ZeroDivisionError)(model(x / 0))


def test_gradients_pass_straight_through_and_change_no_bit():
    """The quantized input is the same with a gradient wanted, and hands it on as it comes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False)).requires_grad_(False)
    injector = Injector(model)
    x = torch.randn(1, 3, 64)
    setting = {"0": Setting(NV, NV)}
    with injector.applied(setting), torch.no_grad():
        plain = model(x)
    leaf = x.clone().requires_grad_()
    with injector.applied(setting):
        output = model(leaf)
        (gradient,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
    assert torch.equal(output, plain)
    image = injector.quantized_weight("0", NV)
    assert torch.equal(gradient, torch.ones(1, 3, 32) @ image)
