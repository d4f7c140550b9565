"""Images that are fitted to inputs: second-order rounding and smoothing."""

import pytest
import torch
from torch import nn

from fp4scope import fake_quantize
from fp4scope.deploy.exactly import exactly
from fp4scope.errors import StudyError, UnitError
from fp4scope.formats import get_format
from fp4scope.operands import Injector, observe_moments
from fp4scope.operands.fitted import Moments, second_order, smoothing
from fp4scope.recipes import Recipe
from fp4scope.treatments import Setting

FORMATS = ["mxfp4:floor", "mxfp4:even", "nvfp4", "nvfp4:4over6", "nvfp4:mse", "mxfp8:e4m3:even"]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(cols=64, seed=1):
    """Channels that go together, and one that is large."""
    x = drawn(500, cols, seed=seed) @ (
        drawn(cols, cols, seed=seed + 1) / cols**0.5 + torch.eye(cols)
    )
    x[:, 5] *= 20
    return x


@pytest.mark.parametrize("name", FORMATS)
def test_channels_that_have_nothing_in_common_leave_rounding_to_the_nearest(name):
    w = drawn(24, 96)
    found = second_order(w, get_format(name), torch.diag(torch.arange(1.0, 97.0)), None)
    assert torch.equal(found, fake_quantize(w, name))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_the_output_is_off_by_less_than_with_rounding_to_the_nearest(name, seed):
    w, x = drawn(24, 64, seed=seed), inputs(seed=10 + seed)
    found = second_order(w, get_format(name), x.T @ x, None)
    nearest = fake_quantize(w, name)
    error, before = (((w - image) @ x.T).square().sum() for image in (found, nearest))
    assert error < 0.6 * before
    assert (found - w).square().sum() > (nearest - w).square().sum()


def test_columns_make_up_for_those_before_them():
    """Beside it, each column's elimination written out, with the whole inverse."""
    w, x, fmt = drawn(8, 64).double(), inputs().double(), get_format("mxfp4:even")
    gram = x.T @ x
    gram += 0.01 * gram.diagonal().mean() * torch.eye(64)
    inverse, left, image = torch.linalg.inv(gram), w.clone(), torch.empty_like(w)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]).double()
    grid = torch.cat([grid, -grid])
    for place in range(64):
        if place % 32 == 0:
            block = left[:, place : place + 32].float()
            one = torch.zeros_like(block)
            # A number that is as large as the block's amax, and one that is as small as a step.
            one[:, 0] = block.abs().amax(1)
            scale = torch.stack([_step(row, fmt) for row in one]).double()
        column = left[:, place]
        near = (column[:, None] / scale[:, None] - grid).abs().argmin(1)
        image[:, place] = grid[near] * scale
        off = (column - image[:, place]) / inverse[place, place]
        left = left - off[:, None] * inverse[place]
        inverse = inverse - inverse[:, [place]] @ inverse[[place]] / inverse[place, place]
    found = second_order(w.float(), fmt, (x.T @ x).float(), None)
    assert (found.double() == image).float().mean() > 0.99


def _step(row, fmt):
    """The scale of a block: what its largest number is multiplied by, from the kernel itself."""
    from fp4scope.kernels.eager import quantize_blocks

    return quantize_blocks(row[None, None], fmt, None).scale.flatten()[0]


def test_a_channel_that_was_always_zero_is_rounded_to_the_nearest():
    w, x = drawn(8, 32), inputs(32)
    x[:, 7] = 0
    found = second_order(w, get_format("mxfp8:e4m3:even"), x.T @ x, None)
    assert found.isfinite().all()
    assert (found[:, 7] - w[:, 7]).abs().max() < 0.1 * w[:, 7].abs().max()


def test_factors_are_powers_of_two_that_share_the_range_out():
    amax = torch.tensor([64.0, 1.0, 0.0, 3.0])
    w = torch.tensor([[1.0, -4.0, 2.0, 0.0]])
    found = smoothing(Moments(torch.eye(4), amax), w)
    assert found.tolist() == [8.0, 0.5, 1.0, 1.0]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 32, bias=False), nn.Linear(32, 64, bias=False)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, x):
        return self.b(self.a(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def test_moments_are_sums_over_all_tokens(model):
    windows = [inputs(seed=seed) for seed in (1, 4)]
    found = observe_moments(model, ["a"], (model(x) for x in windows))
    x = torch.cat(windows)
    assert list(found) == ["a"]
    assert torch.allclose(found["a"].gram, x.T @ x, rtol=1e-4, atol=1e-2)
    assert torch.equal(found["a"].amax, x.abs().amax(0))


def test_fitted_weights_and_smoothed_operands_stand_in_the_model(model):
    x, injector = inputs(), Injector(model, {"a": 100.0, "b": 100.0})
    injector.fit(observe_moments(model, ["a"], (model(x) for _ in range(1))))
    expected, before = model(x), model.a.weight.clone()
    errors = {}
    for name in ("nvfp4", "nvfp4+gptq/nvfp4", "nvfp4+gptq/w4a16", "nvfp4+smooth"):
        with injector.applied({"a": Setting.from_json(name)}):
            errors[name] = float((model(x) - expected).square().sum())
    assert torch.equal(model.a.weight, before)
    assert errors["nvfp4+gptq/w4a16"] < errors["nvfp4+gptq/nvfp4"] < errors["nvfp4"]
    assert errors["nvfp4+smooth"] != errors["nvfp4"]
    with injector.applied({"a": Setting.from_json("nvfp4+gptq/w4a16")}):
        gram = x.T @ x
        assert torch.equal(model.a.weight, second_order(before, get_format("nvfp4"), gram, None))


def test_what_nothing_is_known_of_is_refused(model):
    injector = Injector(model, {"a": 1.0, "b": 1.0})
    with (
        pytest.raises(UnitError, match=r"inputs of b, of which nothing is known.*--remedies"),
        injector.applied({"b": Setting.from_json("nvfp4+gptq/nvfp4")}),
    ):
        pass


def test_names_and_engines():
    fitted = Setting.from_json("nvfp4+gptq/nvfp4")
    assert fitted.name == "nvfp4+gptq/nvfp4"
    assert Setting.from_json(fitted.to_json()) == fitted
    # Engines could run the first, but nothing exports it.
    for name in ("nvfp4+gptq/nvfp4", "nvfp4+smooth"):
        assert exactly(Recipe(Setting.from_json(name))) == {}
    with pytest.raises(StudyError, match="gptq"):
        Setting.from_json("nvfp4+gptp/nvfp4")
