"""Input statistics: quantiles against sorted data, exact maxima, and hooks that go away."""

import numpy as np
import pytest
import torch
from torch import nn

from fp4scope.models import find_layout
from fp4scope.operands import InputStatistics, observe_inputs
from fp4scope.operands import statistics as statistics_module

QUANTILES = (0.0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)


def observe(*tensors, dtype=torch.float32):
    """Statistics of what a linear of that dtype is given."""
    model = nn.Sequential(nn.Linear(tensors[0].shape[-1], 2, dtype=dtype))
    return observe_inputs(model, ["0"], (model(x.to(dtype)) for x in tensors))["0"]


def exact(q, *tensors):
    values = np.concatenate([x.abs().double().numpy().ravel() for x in tensors])
    return float(np.quantile(values, q, method="inverted_cdf"))


@pytest.fixture
def heavy():
    """Heavy tails, some exact zeros: what enters the linears of language models."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1000, generator=generator) ** 5
    x[torch.rand(x.shape, generator=generator) < 0.02] = 0
    return x


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 3e5, 1e30])
def test_fp32_quantiles_are_within_half_a_percent(scale, heavy):
    x = heavy * scale
    statistics = observe(x)
    for q in QUANTILES:
        assert statistics.quantile(q) == pytest.approx(exact(q, x), rel=0.005, abs=0)
    assert statistics.max == x.abs().max().item()
    assert statistics.elements == x.numel()
    assert statistics.ratio == pytest.approx(statistics.max / exact(0.999, x), rel=0.005)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 3e5, 1e30])
def test_bf16_quantiles_are_exact(scale, heavy):
    x = (heavy * scale).bfloat16()
    statistics = observe(x, dtype=torch.bfloat16)
    for q in QUANTILES:
        assert statistics.quantile(q) == exact(q, x)
    assert statistics.ratio == x.abs().max().item() / exact(0.999, x)


def test_fp16_quantiles_are_within_half_a_percent(heavy):
    x = (heavy / heavy.abs().max() * 6e4).half()
    statistics = observe(x, dtype=torch.float16)
    for q in (0.5, 0.999, 1.0):
        assert statistics.quantile(q) == pytest.approx(exact(q, x), rel=0.005, abs=0)


@pytest.mark.parametrize("size", [1, 2, 999, 1000, 1001, 2000])
def test_the_rank_is_the_one_of_sorted_data(size):
    """Distinct BF16 numbers, so that one rank off is another number."""
    codes = torch.randperm(size, generator=torch.Generator().manual_seed(size)) + 0x3F00
    x = codes.to(torch.int16).view(torch.bfloat16)[None]
    statistics = observe(x, dtype=torch.bfloat16)
    for q in (*QUANTILES, 1 / size, 0.5 + 0.5 / size):
        assert statistics.quantile(q) == exact(q, x)


def test_no_quantile_is_above_the_maximum():
    statistics = observe(torch.full((3, 7), 1.0001))
    assert statistics.quantile(0.999) == statistics.max == np.float32(1.0001)
    assert statistics.ratio == 1.0


def test_several_forwards_make_one_distribution(heavy):
    parts = (heavy, 128 * heavy[:7], heavy[:1] / 128)
    together = observe(*parts)
    apart = [observe(x) for x in parts]
    merged = apart[0] + apart[1] + apart[2]
    for statistics in (together, merged):
        assert statistics.elements == sum(x.numel() for x in parts)
        assert statistics.max == 128 * heavy[:7].abs().max().item()
        assert statistics.quantile(0.999) == pytest.approx(exact(0.999, *parts), rel=0.005)
    assert torch.equal(together.counts, merged.counts)
    # Adding changes neither side.
    assert apart[0].elements == heavy.numel()


def test_nonfinite_elements_are_counted_apart(heavy):
    clean = observe(heavy)
    dirty = heavy.clone()
    dirty[0, :5] = torch.tensor([float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0])
    rest = torch.cat([heavy[1:].flatten(), dirty[0, 4:]])
    statistics = observe(dirty)
    assert statistics.nonfinite == 4
    assert statistics.elements == heavy.numel() - 4
    assert statistics.max == rest.abs().max().item()
    assert statistics.quantile(1.0) <= statistics.max
    assert statistics.quantile(0.999) == pytest.approx(exact(0.999, rest), rel=0.005)
    assert (statistics + clean).nonfinite == 4


@pytest.mark.parametrize(
    ("x", "elements", "quantile"),
    [
        (torch.zeros(2, 4), 8, 0.0),
        (torch.full((2, 4), float("nan")), 0, float("nan")),
        (torch.zeros(0, 4), 0, float("nan")),
    ],
    ids=["zeros", "NaN", "empty"],
)
def test_without_a_distribution_there_is_no_ratio(x, elements, quantile):
    statistics = observe(x)
    assert statistics.elements == elements
    assert statistics.max == 0.0
    assert statistics.quantile(0.5) == pytest.approx(quantile, nan_ok=True)
    assert statistics.ratio is None


def test_memory_does_not_grow_with_what_is_seen(heavy):
    assert observe(heavy).counts.shape == observe(heavy[:1]).counts.shape == (1 << 15,)
    assert InputStatistics().counts.shape == (1 << 15,)


# On models.


def test_every_linear_of_a_model_against_its_captured_inputs(family, tiny_model, ids):
    model = tiny_model(family)
    linears = find_layout(model).linears
    captured = {name: [] for name in linears}

    def keep(name):
        return lambda _, args, __: captured[name].append(args[0].clone())

    hooks = [model.get_submodule(n).register_forward_hook(keep(n)) for n in linears]
    statistics = observe_inputs(model, linears, (model(w[None], use_cache=False) for w in ids))
    for hook in hooks:
        hook.remove()
    assert list(statistics) == list(linears)
    for name, inputs in captured.items():
        assert len(inputs) == 2
        assert statistics[name].max == max(x.abs().max().item() for x in inputs)
        assert statistics[name].elements == sum(x.numel() for x in inputs)
        assert statistics[name].nonfinite == 0
        for q in (0.5, 0.999):
            assert statistics[name].quantile(q) == pytest.approx(exact(q, *inputs), rel=0.005)


class TwoReaders(nn.Module):
    """Two linears that read one tensor, changed in place in between if `added` is not 0."""

    def __init__(self, added):
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)
        self.added = added

    def forward(self, x):
        x = x.clone()
        self.first(x)
        if self.added:
            x.add_(self.added)
        self.second(x)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("added", [0.0, 5.0])
def test_a_shared_input_is_binned_once_unless_it_changed(mode, added, monkeypatch):
    binned = []
    original = statistics_module._bin
    monkeypatch.setattr(statistics_module, "_bin", lambda x: binned.append(1) or original(x))
    model, x = TwoReaders(added), torch.ones(3, 4)
    with mode():
        found = observe_inputs(model, ["first", "second"], (model(x) for _ in range(2)))
    assert (found["first"].max, found["second"].max) == (1.0, 1.0 + added)
    assert found["second"].quantile(0.5) == pytest.approx(1.0 + added, rel=0.005)
    assert [s.elements for s in found.values()] == [24, 24]
    shared = mode is torch.enable_grad and not added
    assert len(binned) == (2 if shared else 4)


def test_a_linear_that_never_ran_has_no_elements():
    model = nn.ModuleDict({"ran": nn.Linear(4, 2), "idle": nn.Linear(4, 2)})
    found = observe_inputs(model, list(model), (model["ran"](torch.ones(1, 4)) for _ in "ab"))
    assert (found["ran"].elements, found["idle"].elements) == (8, 0)


def test_nothing_is_left_on_the_model(tiny_model, ids, unchanged):
    model = tiny_model("llama")
    linears = find_layout(model).linears

    def forwards(fail):
        model(ids, use_cache=False)
        yield
        if fail:
            raise ZeroDivisionError
        yield

    with unchanged(model):
        observe_inputs(model, linears, forwards(fail=False))
        with pytest.raises(ZeroDivisionError):
            observe_inputs(model, linears, forwards(fail=True))
