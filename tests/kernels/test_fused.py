"""The CUDA kernel's logic, run by Triton's interpreter on a CPU, against plain torch.

The interpreter divides as IEEE says where a GPU does not, and truncates to BF16 where a GPU rounds:
it proves the logic and not the device. `benchmarks/qdq.py --device cuda` compares there.
"""

import math
import os

import pytest
import torch

from fp4scope.formats import get_format
from fp4scope.kernels import fp32, qdq, using

from .reference import DTYPES, F32_MAX, NV, assert_same, bits, gaussian, golden_finite, random_bits

pytest.importorskip("triton", reason="Triton is not installed")
if not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("needs TRITON_INTERPRET=1, which scripts/test sets", allow_module_level=True)

from fp4scope.kernels import fused

# What the kernel's own arithmetic meets, numpy warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|divide by zero|invalid value|underflow) encountered:RuntimeWarning"
)
# Every rule, and every kind of element.
NAMES = ["mxfp4:floor", "mxfp4:rceil", "mxfp8:e5m2:even", "mxint8", *NV]


@pytest.fixture
def check():
    """`check(x, name, amax=None)`: the kernel gives the bits of plain torch, and flags nothing."""

    def run(x, name, amax=None):
        fmt = get_format(name)
        if name in NV and amax is None:
            amax = x.abs().amax().to(torch.float32).reshape(1)
        out, flag = torch.full_like(x, torch.nan), torch.zeros((), dtype=torch.bool)
        fused.qdq(x, fmt, amax, out, flag)
        with using("torch"):
            expected = qdq(x, fmt, amax if amax is None or amax.numel() == 1 else amax[:, None])
        assert_same(out, expected, x)
        assert not flag

    return run


@pytest.fixture
def kernel_of(monkeypatch):
    """`kernel_of(dtype)`: FP32 gets its kernel from now on; the interpreter truncates to BF16."""
    original = fused._constants

    def use(dtype):
        limit = {"LIMIT": fp32.bits(F32_MAX)}
        monkeypatch.setattr(fused, "_constants", lambda fmt, _: original(fmt, dtype) | limit)

    return use


@pytest.mark.parametrize("name", NAMES)
def test_golden_inputs_of_whole_blocks(check, name):
    tried = 0
    for x in golden_finite().values():
        whole = x.numel() // 32 * 32
        if whole:
            check(x.flatten()[:whole].view(-1, 32).to(torch.float32), name)
            tried += 1
    assert tried > 20


@pytest.mark.parametrize("name", NAMES)
def test_all_of_fp32_and_fp16(check, name):
    for dtype in (torch.float32, torch.float16):
        limit = torch.finfo(dtype).max
        check(random_bits(70, 96, seed=1).clamp(-limit, limit).to(dtype), name)
    rows = torch.ldexp(gaussian(254, 64, seed=2), (torch.arange(254) - 130).int()[:, None])
    check(rows, name)
    check(torch.zeros(3, 64), name)
    check(-torch.zeros(3, 64), name)


@pytest.mark.parametrize("name", NV)
def test_the_kernel_of_short_numbers_in_all_of_fp32(check, kernel_of, name):
    kernel_of(torch.bfloat16)
    x = gaussian(254, 64, seed=3).bfloat16().float()
    exponents = torch.arange(254) - 128
    check(torch.ldexp(x, exponents[:, None]), name)
    for exponent, row in zip(exponents[::20], x[::20], strict=True):
        check(torch.ldexp(row[None], exponent), name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NV)
def test_finite_numbers_far_above_a_tiny_amax_are_not_flagged(check, kernel_of, name, dtype):
    kernel_of(dtype)
    x = torch.tensor([2.0**67, -(2.0**68), 2.0**100, 2.0**127]).repeat(4, 8)
    for amax in (0.0, 2.0**-149, 2.0**-80, 2.0**-70):
        check(x, name, torch.tensor([amax]))
        check(x, name, torch.full((4,), amax))


@pytest.mark.parametrize("name", NV)
def test_scales_that_vanish(check, name):
    """Times a tensor scale of a few units of the smallest FP32 number a block scale may be 0."""
    factors = torch.arange(1, 60)
    amax = factors * (2.0**-149 * get_format(name).tensor_divisor)
    x = torch.arange(80).repeat_interleave(16) * 2.0**-149
    check(x.expand(59, -1).contiguous(), name, amax)


def test_an_amax_whose_quotient_is_beside_the_smallest_scale(check):
    edge = torch.tensor([6.0 * 2.0**-127]).view(torch.int32) + torch.arange(-2, 4).int()
    x = edge.view(torch.float32)[:, None] * torch.linspace(0, 1, 32).round(decimals=1)
    check(x, "mxfp4:rceil")


@pytest.mark.parametrize("name", NV)
@pytest.mark.parametrize("factor", [1e-30, 0.3, 1.0, 5.0, 1e30])
def test_a_given_amax(check, name, factor):
    x = gaussian(20, 64) * torch.logspace(-3, 3, 20)[:, None]
    check(x, name, factor * x.abs().amax().reshape(1))
    check(x, name, factor * x.abs().amax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["nvfp4", "nvint4"])
def test_values_beside_ties_of_scales_beside_short_numbers(check, kernel_of, name, dtype):
    """Where quotients are halfway between FP32 numbers, or as near as can be."""
    kernel_of(dtype)
    fmt = get_format(name)
    short = ((127 << 23) + (torch.arange(9, dtype=torch.int32) << 20))[:, None]
    wanted = (short + torch.arange(-3, 4)).flatten().int().view(torch.float32)
    s = (8 + torch.arange(8))[:, None, None] / 8
    near = (wanted[:, None] / s * fmt.tensor_divisor).view(torch.int32) + torch.arange(-2, 3)
    amax = near.int().view(torch.float32)
    scale = amax / torch.full_like(amax, fmt.tensor_divisor) * s
    found = torch.isin(scale, wanted)
    amax, scale = amax[found], scale[found]
    assert len(scale) > 200
    assert (scale.view(torch.int32) % (1 << 23) == (1 << 23) - 1).any(), "a significand of ones"
    halves = torch.tensor([m + 0.5 for m in range(7)] + [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    ties = (halves[None] * scale[:, None]).to(dtype)
    x = torch.stack([(bits(ties) + step).view(dtype) for step in (-2, -1, 0, 1, 2)], 1)
    # The first of each block decides which s it gets.
    first = (fmt.element.max * scale).to(dtype)[:, None, None].expand(-1, 5, 2)
    check(torch.cat([first, x], -1).reshape(len(scale), -1).float(), name, amax)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_raise_the_flag(name, bad):
    amax = torch.full((1,), 5.0) if name in NV else None
    for place in ((0, 0), (99, 63)):
        x, flag = gaussian(100, 64), torch.zeros((), dtype=torch.bool)
        x[place] = bad
        fused.qdq(x, get_format(name), amax, torch.empty_like(x), flag)
        assert flag
        fused.qdq(gaussian(100, 64), get_format(name), amax, torch.empty_like(x), flag)
        assert flag, "the flag is sticky"
        fused.qdq(x, get_format(name), amax, torch.empty_like(x), None)


@pytest.mark.parametrize("name", NAMES)
def test_in_place(name):
    x = gaussian(50, 64)
    amax = x.abs().amax().reshape(1) if name in NV else None
    with using("torch"):
        expected = qdq(x, get_format(name))
    fused.qdq(x, get_format(name), amax, x, None)
    assert_same(x, expected)
