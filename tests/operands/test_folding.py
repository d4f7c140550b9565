"""Smoothing folded into norms: the same function, smaller outliers, and nothing else touched."""

import pytest
import torch

from fp4scope import fake_quantize
from fp4scope.models import find_layout
from fp4scope.operands.folding import fold_all, folds_of, largest_by_channel

CHANNEL = 5


def folded(model, ids):
    """Folds of a model, those that were made with their factors, and logits before."""

    def logits():
        with torch.no_grad():
            return model(ids, use_cache=False).logits

    before = logits()
    folds = folds_of(model, find_layout(model).linears, logits)
    largest = largest_by_channel(
        model, [f.norm for f in folds], (logits() is None for _ in range(1))
    )
    return folds, fold_all(model, folds, largest, logits), before, logits


@pytest.fixture
def loud(tiny_model):
    """A model with a channel that is loud behind every norm of a block."""

    def build(family):
        model = tiny_model(family)
        for name, module in model.named_modules():
            if name.endswith("layernorm"):
                module.weight.data[CHANNEL] = 300.0
        return model

    return build


def test_the_function_stays_to_the_bit(family, tiny_model, ids):
    model = tiny_model(family)
    folds, done, before, logits = folded(model, ids)
    assert torch.equal(logits(), before)
    assert set(done) <= set(folds)


def test_mixtures_too(mixture, tiny_model, ids):
    model = tiny_model(mixture)
    _, _, before, logits = folded(model, ids)
    assert torch.equal(logits(), before)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_each_norm_of_a_block_is_folded_into_all_that_read_it(name, loud, ids):
    model = loud(name)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    folds, done, before, logits = folded(model, ids)
    assert set(done) == set(folds)
    assert {(f.kind, tuple(n.rpartition(".")[2] for n in f.readers)) for f in done} == {
        ("input_layernorm", ("q_proj", "k_proj", "v_proj")),
        ("post_attention_layernorm", ("gate_proj", "up_proj")),
    }
    assert torch.equal(logits(), before)
    for fold, factor in done.items():
        assert torch.equal(factor.log2(), factor.log2().round())
        # The loud channel is the one that is divided most.
        assert factor.argmax() == CHANNEL
        assert factor[CHANNEL] >= 8
        norm = f"{fold.norm}.weight"
        assert torch.equal(model.get_parameter(norm) * factor, weights[norm])
        for reader in fold.readers:
            own = f"{reader}.weight"
            assert torch.equal(model.get_parameter(own) / factor, weights[own])
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, weights[n])}
    assert changed <= {f"{n}.weight" for f in done for n in (f.norm, *f.readers)}


def test_fp4_loses_less_behind_it(loud, ids):
    """Errors of a product whose operands are both quantized, where one channel is loud."""

    def error(model):
        layer = model.get_submodule("model.layers.0")
        seen = []
        hook = layer.input_layernorm.register_forward_hook(lambda *of: seen.append(of[2]))
        with torch.no_grad():
            model(ids, use_cache=False)
        hook.remove()
        x, w = seen[0].flatten(0, 1), layer.self_attn.q_proj.weight
        exact, image = x @ w.T, fake_quantize(x, "nvfp4") @ fake_quantize(w, "nvfp4").T
        return float((image - exact).square().sum() / exact.square().sum())

    model = loud("llama")
    before = error(model)
    folded(model, ids)
    assert error(model) < before


def test_what_reads_a_norm_unseen_is_left_alone(tiny_model, ids):
    """Another reader would see other numbers: the kind is taken back, to the bit."""
    model = tiny_model("llama")
    block = model.get_submodule("model.layers.1")
    plain = block.mlp.forward
    block.mlp.forward = lambda x: plain(x) + 0.1 * x  # reads the norm's output beside its linears
    weights = {n: p.clone() for n, p in model.named_parameters()}
    folds, done, before, logits = folded(model, ids)
    assert {f.kind for f in folds} - {f.kind for f in done} == {"post_attention_layernorm"}
    assert torch.equal(logits(), before)
    for fold in folds:
        if fold not in done:
            for name in (fold.norm, *fold.readers):
                assert torch.equal(model.get_parameter(f"{name}.weight"), weights[f"{name}.weight"])
