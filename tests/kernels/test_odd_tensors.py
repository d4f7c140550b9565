"""What is no tensor of numbers, and what is no amax: one message that says what to give."""

import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch

from fp4scope.errors import FormatError
from fp4scope.kernels import fake_quantize, quantize, using

# Past the type checks that run in tests only.
FUNCTIONS = [inspect.unwrap(fake_quantize), inspect.unwrap(quantize)]
X = torch.linspace(-3, 3, 64).reshape(2, 32)


def _quantized():
    return torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [1.0], "x is a list, not a torch tensor; give torch.tensor(x)"),
        (lambda: 1.0, "x is a float, not a torch tensor; give torch.tensor(x)"),
        (lambda: None, "x is a NoneType, not a torch tensor"),
        (lambda: "x", "x is a str, not a torch tensor"),
        (lambda: X.numpy(), "x is a numpy.ndarray, not a torch tensor; give torch.from_numpy(x)"),
        (lambda: X.to("meta"), "x is on the device meta, so it has no values"),
        (lambda: X.to_sparse(), "x has the layout torch.sparse_coo; give x.to_dense()"),
        (lambda: X.to_mkldnn(), "x has the layout torch._mkldnn; give x.to_dense()"),
        (lambda: torch.nested.nested_tensor([X, X]), "x is a nested tensor; give its parts"),
        (_quantized, "x has dtype torch.qint8; give x.dequantize()"),
        (lambda: X + 1j, "x has dtype torch.complex64; nvfp4 quantizes float32, bfloat16 or"),
        (lambda: X + 1j, "quantize x.real and x.imag"),
        (lambda: X.int(), "x has dtype torch.int32; nvfp4 quantizes float32, bfloat16 or float16"),
        (lambda: X > 0, "convert it with x.float()"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's, about prototypes
def test_what_is_no_tensor_of_numbers(make, message):
    for function in FUNCTIONS:
        with pytest.raises(FormatError) as caught:
            function(make(), "nvfp4")
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("amax", "message"),
    [
        ("a", "amax is 'a'; give a number"),
        ("3", "amax is '3'; give a number"),
        ([1], "amax is [1]; give a number"),
        (1j, "amax is 1j; give a number"),
        (True, "amax is True; give a number"),
        (np.ones(1), "amax is array([1.]); give a number"),
        (torch.tensor(True), "amax is tensor(True); give a number"),
        (torch.tensor(1j), "give a number, or a tensor with one real number"),
        (torch.tensor(1.0, device="meta"), "amax is on the device meta, so it has no values"),
        (torch.ones(1).to_sparse(), "amax has the layout torch.sparse_coo; give amax.to_dense()"),
        (torch.ones(0), "amax has shape (0,)"),
        (10**400, "amax is inf; it must be finite"),
        (float("nan"), "amax is nan; it must be finite"),
        (-1, "amax is -1.0; it must be finite in FP32 and not negative"),
    ],
    ids=range(14),
)
def test_what_is_no_amax(amax, message):
    for function in FUNCTIONS:
        with pytest.raises(FormatError) as caught:
            function(X, "nvfp4", amax=amax)
        assert message in str(caught.value)


@pytest.mark.parametrize("amax", [2, np.float32(2), np.int64(2), Fraction(2), torch.tensor([[2]])])
def test_whatever_is_one_number_is_an_amax(amax):
    expected = fake_quantize(X, "nvfp4", amax=2.0)
    for function in FUNCTIONS:
        found = function(X, "nvfp4", amax=amax)
        assert torch.equal(
            found if isinstance(found, torch.Tensor) else found.dequantize(), expected
        )


@pytest.mark.parametrize("name", [None, 4, ["nvfp4"], b"nvfp4", object()])
def test_what_is_no_format(name):
    for function in FUNCTIONS:
        with pytest.raises(FormatError, match=r"unknown format .*choices: mxfp4:floor"):
            function(X, name)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_negative_view_is_quantized_as_what_it_shows(backend):
    negative = torch._neg_view(X)
    expected = fake_quantize(-X, "nvfp4")
    with using(backend):
        assert torch.equal(fake_quantize(negative, "nvfp4"), expected)
    assert torch.equal(quantize(negative, "nvfp4").dequantize(), expected)
