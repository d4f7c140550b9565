"""What a gate makes, quantized in the kernel that makes it, run by Triton's interpreter."""

import os
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from fp4scope.errors import NonFiniteError
from fp4scope.formats import FORMATS
from fp4scope.kernels import activation_of, is_fused, qdq, qdq_gated
from fp4scope.models import adopt
from fp4scope.operands import Injector
from fp4scope.operands import apply as injector_module
from fp4scope.treatments import Amax, Setting, Treatment

pytest.importorskip("triton", reason="Triton is not installed")
if not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("needs TRITON_INTERPRET=1, which scripts/test sets", allow_module_level=True)

# What the kernel's own arithmetic meets, numpy warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|divide by zero|invalid value|underflow) encountered:RuntimeWarning"
)
MX, NV = (Treatment(FORMATS[name]) for name in ("mxfp4:floor", "nvfp4"))
OWN = Treatment(NV.format, Amax.WINDOW)
DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (functional.silu, "silu"),
        (ACT2FN["silu"], "silu"),
        (ACT2FN["gelu_pytorch_tanh"], "gelu_tanh"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (functional.gelu, None),
        (functional.relu, None),
        (lambda x: functional.silu(1.001 * x), None),
        (lambda x: functional.silu(x).clamp(max=7), None),
        (nn.Linear(3, 3), None),
    ],
)
def test_activations_are_known_by_what_they_compute(function, name):
    assert activation_of(function) == name


@pytest.mark.parametrize("fmt", ["mxfp4:floor", "mxfp4:even", "mxfp8:e4m3:floor", "nvfp4"])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_gating_and_then_quantizing(fmt, activation, dtype):
    generator = torch.Generator().manual_seed(0)
    gate, x = 3 * torch.randn(2, 2, 33, 96, generator=generator).to(dtype)
    fmt = FORMATS[fmt]
    known = {"silu": functional.silu, "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh")}
    product = known[activation](gate) * x
    amax = product.abs().max().float() if fmt.uses_tensor_amax else None
    flag = torch.zeros((), dtype=torch.bool)
    found, expected = qdq_gated(gate, x, activation, fmt, amax, flag), qdq(product, fmt, amax)
    assert not flag
    assert found.shape == x.shape
    # A product beside a tie may round to the other side.
    apart = (found - expected).abs()
    assert (apart > 0).float().mean() < 2e-3
    assert (apart <= 0.51 * product.abs().max()).all()
    assert (found != product).float().mean() > 0.5


@pytest.mark.parametrize("place", ["gate", "x"])
def test_what_is_not_finite_is_told(place):
    gate, x = torch.ones(2, 4, 32)
    {"gate": gate, "x": x}[place][1, 3] = float("inf")
    flag = torch.zeros((), dtype=torch.bool)
    qdq_gated(gate, x, "silu", MX.format, None, flag)
    assert flag


def test_no_such_kernel_on_a_cpu_or_for_other_formats(monkeypatch):
    x = torch.ones(2, 64)
    assert not is_fused(x, MX.format)
    monkeypatch.setattr("fp4scope.kernels.gated.backend", lambda _: "triton")
    assert is_fused(x, MX.format)
    assert is_fused(x, NV.format)
    assert not is_fused(x[:, :40].contiguous(), MX.format), "padded"
    assert not is_fused(x.T, MX.format), "not contiguous"
    assert not any(is_fused(x, FORMATS[n]) for n in ("fp8", "fp8:tensor", "fp8:block128", "hif4"))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Gates are fused as on a GPU, nothing is compiled, and calls of the kernel are noted."""
    calls = []

    def noted(*args):
        calls.append(args[3].name)
        return qdq_gated(*args)

    monkeypatch.setattr("fp4scope.kernels.gated.backend", lambda _: "triton")
    monkeypatch.setattr(injector_module, "qdq_gated", noted)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    return calls


@contextmanager
def watched(linear):
    seen = []
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    yield seen
    hook.remove()


@pytest.fixture
def llama(tiny_model, tiny_tokenizer):
    return adopt(tiny_model("llama", intermediate_size=96), tiny_tokenizer())


@torch.no_grad()
def both_ways(loaded, injector, settings, ids):
    """Logits with quantized inputs of gates made elsewhere, and in the gate's kernel."""
    found = []
    for entering in (None, injector.gated):
        with injector.applied(settings), loaded.stack.fused(entering):
            found.append(loaded.model(ids, use_cache=False).logits)
    return found


@pytest.mark.parametrize("treatment", [MX, NV], ids=["mxfp4", "nvfp4"])
def test_a_model_computes_the_same(on_a_gpu, llama, ids, treatment):
    injector = Injector(llama.model, dict.fromkeys(llama.layout.linears, 4.0))
    settings = dict.fromkeys(llama.layout.linears, Setting(treatment, treatment))
    apart, within = both_ways(llama, injector, settings, ids)
    assert on_a_gpu == [treatment.format.name] * llama.layout.blocks
    torch.testing.assert_close(within, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "setting",
    [
        None,
        Setting(MX, None),
        Setting(OWN, OWN),
        Setting(MX, MX, noise=-30.0),
        Setting(MX, Treatment(MX.format, hadamard=32)),
    ],
    ids=["plain", "weights", "amax of the window", "noise", "rotated"],
)
def test_what_another_kernel_does_stays_there(on_a_gpu, llama, ids, setting):
    injector = Injector(llama.model)
    settings = {} if setting is None else {DOWN: setting}
    apart, within = both_ways(llama, injector, settings, ids)
    assert torch.equal(apart, within)
    assert not on_a_gpu


def test_who_watches_sees_what_the_model_computes(on_a_gpu, llama, ids):
    injector = Injector(llama.model)
    linear = llama.model.get_submodule(DOWN)
    with watched(linear) as before:
        both_ways(llama, injector, {}, ids)
    with watched(linear) as seen:
        both_ways(llama, injector, {DOWN: Setting(MX, MX)}, ids)
    assert not on_a_gpu
    assert all(torch.equal(x, before[0]) for x in seen)


def test_inference_mode(on_a_gpu, llama, ids):
    """Its tensors cannot tell whether they were changed."""
    injector = Injector(llama.model)
    with torch.inference_mode():
        apart, within = both_ways(llama, injector, {DOWN: Setting(MX, MX)}, ids)
    assert torch.equal(apart, within)
    assert not on_a_gpu


def test_a_calibrated_amax_of_zero_is_still_an_error(on_a_gpu, llama, ids):
    injector = Injector(llama.model, {DOWN: 0.0})
    with pytest.raises(NonFiniteError, match="is 0"):
        both_ways(llama, injector, {DOWN: Setting(NV, NV)}, ids)
    assert not on_a_gpu


def test_infinity_in_a_gate_names_the_linear(on_a_gpu, llama, ids):
    llama.model.get_submodule(DOWN.replace("down", "up")).weight.data[3] = float("inf")
    injector = Injector(llama.model)
    settings = {DOWN: Setting(MX, MX)}
    with (
        torch.no_grad(),
        pytest.raises(NonFiniteError, match=DOWN),
        injector.applied(settings),
        llama.stack.fused(injector.gated),
    ):
        llama.model(ids, use_cache=False)
    assert on_a_gpu
