"""The error of an operand, taken apart."""

import pytest
import torch

from fp4scope import fake_quantize
from fp4scope.formats import get_format
from fp4scope.operands.errors import OperandError, relative_error


def taken(x, name, amax=None):
    found = OperandError()
    found.add(x, get_format(name).for_input, None if amax is None else torch.tensor(amax))
    return found


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["mxfp4", "mxfp4:rceil", "nvfp4", "nvfp4:4over6", "fp8", "hif4"])
def test_its_error_is_that_of_the_image(name):
    x = drawn(5, 96)
    error = (fake_quantize(x, name) - x).double().square().sum()
    found = taken(x, name)
    assert found.sums["error"] == pytest.approx(float(error), rel=1e-6)
    assert found.sums["energy"] == pytest.approx(float(x.double().square().sum()))


def test_clipped_and_flushed_elements_by_hand():
    x = torch.zeros(1, 32)
    # The OCP rule gives an amax of 7.5 the scale 1, whose largest element is 6.
    x[0, :5] = torch.tensor([7.5, -7.2, 6.5, 0.2, 2.4])
    found = taken(x, "mxfp4")
    # 6.5 is nearer to 6 than to the 8 that would be next.
    assert (found.sums["clipped"], found.sums["flushed"]) == (2, 1)
    assert found.sums["clipping"] == pytest.approx(2.25 + 1.44)
    assert found.sums["flushing"] == pytest.approx(0.04)
    assert found.sums["error"] == pytest.approx(2.25 + 1.44 + 0.25 + 0.04 + 0.16)
    assert found.scales == (1.0, 1.0)
    # With 7.5 / 6 for a scale 7.5 is exact, and the others become 6, 6, 0 and 2 times 1.25.
    assert found.sums["exact"] == pytest.approx(0.3**2 + 1.0**2 + 0.2**2 + 0.1**2)


def test_an_input_larger_than_its_calibration_clips():
    x = torch.ones(1, 16)
    assert taken(x, "nvfp4", 1.0).sums["clipped"] == 0
    found = taken(x, "nvfp4", 0.1)
    assert found.sums["clipped"] == 16
    assert found.share("clipping", "error") == 1.0


def test_tails_are_told():
    x = drawn(64, 64)
    assert taken(x, "nvfp4").kurtosis == pytest.approx(3.0, abs=0.2)
    x[0, 0] = 1000.0
    found = taken(x, "nvfp4")
    assert found.kurtosis > 1000
    assert found.share("top", "energy") > 0.99


def test_outlier_channels_are_named_and_how_stable_they_are():
    found = OperandError()
    for channel in (5, 9):
        x = drawn(32, 64)
        x[:, 3] *= 100
        x[:, channel] *= 50
        found.add(x, get_format("nvfp4"), None)
    assert found.always == [3]
    assert found.stable == pytest.approx(1 / 3)


def test_squares_of_a_weight_are_taken_apart_too():
    w = drawn(130, 140)
    found = OperandError()
    found.add(w, get_format("fp8:block128"), None)
    error = (fake_quantize(w, "fp8:block128") - w).double().square().sum()
    assert found.sums["error"] == pytest.approx(float(error), rel=1e-6)


def test_nothing_is_no_error():
    found = OperandError()
    found.add(torch.zeros(0, 32), get_format("nvfp4"), None)
    found.add(torch.zeros(2, 32), get_format("nvfp4"), None)
    assert found.share("clipping", "error") is None
    assert found.kurtosis is None
    assert found.stable is None


def test_a_relative_error_is_a_mean_over_tokens():
    y = torch.tensor([[3.0, 4.0], [0.0, 0.0], [10.0, 0.0]])
    moved = torch.tensor([[0.0, 1.0], [9.0, 9.0], [1.0, 0.0]])
    assert relative_error(moved, y) == pytest.approx((1 / 25 + 1 / 100) / 2)
    assert relative_error(moved[1:2], y[1:2]) is None
