"""Compiled norms, rotary embeddings and gates: what is replaced, and that it is put back.

What the compiler makes is looked at on a GPU (`benchmarks/sweep.py`); here a stand-in notes calls.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers.models.llama import modeling_llama

from fp4scope.models import adopt, fusion


@pytest.fixture
def compiled(monkeypatch):
    """`torch.compile` as a wrapper that notes which function was called."""
    called = []

    def compile_(function, **options):
        assert options["options"] == {"emulate_precision_casts": True}

        def run(*args, **kwargs):
            called.append(function.__qualname__)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    fusion._compiled.cache_clear()
    yield called
    fusion._compiled.cache_clear()


def test_norms_rotary_embeddings_and_gates_run_compiled(
    compiled, tiny_model, tiny_tokenizer, ids, monkeypatch
):
    model = tiny_model("llama")
    expected = model(ids).logits
    stack = adopt(model, tiny_tokenizer()).stack
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    with stack.fused():
        found = model(ids).logits
    assert torch.equal(found, expected)
    depth = model.config.num_hidden_layers
    assert compiled.count("apply_rotary_pos_emb") == depth
    assert compiled.count("LlamaRMSNorm.forward") == 2 * depth + 1  # with the final one
    assert compiled.count("_gate") == depth
    assert len(compiled) == 4 * depth + 1


@pytest.mark.parametrize("leave", [None, KeyError])
def test_everything_is_put_back(leave, compiled, tiny_model, ids):
    model, rotary = tiny_model("llama"), modeling_llama.apply_rotary_pos_emb
    try:
        with fusion.fused(model, [model.model.layers[0].mlp]):
            assert modeling_llama.apply_rotary_pos_emb is not rotary
            if leave:
                raise leave
    except KeyError:
        pass
    assert modeling_llama.apply_rotary_pos_emb is rotary
    assert not any("forward" in vars(module) for module in model.modules())
    model(ids)
    assert not compiled


def test_torchs_own_norms_are_left_alone(compiled, tiny_model, ids):
    model = tiny_model("gpt2")
    with fusion.fused(model):
        model(ids)
    assert not compiled


class Gated(nn.Module):
    """The usual gated MLP in its usual words, with a place for something more."""

    def __init__(self, act_fn=nn.functional.silu):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            nn.Linear(*sizes, bias=False) for sizes in ((8, 24), (8, 24), (24, 8))
        )
        self.act_fn = act_fn

    def before(self, x):
        return x

    def forward(self, x):
        x = self.before(x)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class OtherWords(Gated):
    def forward(self, hidden_states):
        wide = self.up_proj(hidden_states)
        wide *= self.act_fn(self.gate_proj(hidden_states))
        return self.down_proj(wide)


class SameWordsOfOtherInputs(Gated):
    def before(self, x):
        return x.mul_(2)


class Clamped(Gated):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=100) * self.up_proj(x))


class RoundedOnce(Gated):
    def forward(self, x):
        product = self.act_fn(self.gate_proj(x).float()) * self.up_proj(x).float()
        return self.down_proj(product.to(x.dtype))


class Scaled(Gated):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 1.01


class ActivatesTheOther(Gated):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class ReadsAWeight(Gated):
    def forward(self, x):
        gate = nn.functional.linear(x, self.gate_proj.weight)
        return self.down_proj(self.act_fn(gate) * self.up_proj(x))


class GivesMore(Gated):
    def forward(self, x):
        return super().forward(x), None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", [Gated, OtherWords])
def test_a_gate_is_told_by_what_it_computes(kind, device, dtype, unchanged):
    for act_fn in (nn.functional.silu, nn.GELU(approximate="tanh"), torch.relu):
        with torch.device(device):
            mlp = kind(act_fn).to(dtype)
        with unchanged(mlp) if device == "cpu" else nullcontext():
            assert fusion.is_gated(mlp)


@pytest.mark.parametrize("kind", [*Gated.__subclasses__()[1:], nn.Identity])
def test_what_computes_something_else_is_no_gate(kind):
    mlp = kind().to(torch.bfloat16)
    assert not fusion.is_gated(mlp)
    assert all(isinstance(child, nn.Linear) for child in mlp.children())  # all are back


@pytest.mark.parametrize(
    ("family", "gates"), [("llama", 2), ("gemma3", 7), ("qwen2-moe", 2), ("gpt2", 0)]
)
def test_gates_of_real_models(tiny_model, family, gates):
    assert sum(map(fusion.is_gated, tiny_model(family).modules())) == gates


def test_a_compiler_that_fails_is_asked_once(monkeypatch, tiny_model, ids):
    asked = []

    def compile_(function, **_):
        def run(*args, **kwargs):
            asked.append(function)
            raise torch._dynamo.exc.TorchDynamoException("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    fusion._compiled.cache_clear()
    model = tiny_model("llama")
    expected = model(ids).logits
    with fusion.fused(model, [layer.mlp for layer in model.model.layers]):
        assert torch.equal(model(ids).logits, expected)
    fusion._compiled.cache_clear()
    assert len(asked) == len(set(asked)) == 3
