"""Compiled norms, rotary embeddings and gates: what is replaced, and that it is put back.

What the compiler makes is looked at on a GPU (`benchmarks/sweep.py`); here a stand-in notes calls.
"""

import pytest
import torch
from transformers.models.llama import modeling_llama

from fp4scope.models import fusion


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


def test_norms_and_rotary_embeddings_run_compiled(compiled, tiny_model, ids):
    model = tiny_model("llama")
    expected = model(ids).logits
    with fusion.fused(model):
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
        with fusion.fused(model):
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
    with fusion.fused(model):
        assert torch.equal(model(ids).logits, expected)
    fusion._compiled.cache_clear()
    assert len(asked) == len(set(asked)) == 3
