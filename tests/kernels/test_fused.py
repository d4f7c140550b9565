"""The CUDA kernel's logic, run by Triton's interpreter on a CPU, against plain torch.

The interpreter divides as IEEE says where a GPU does not, takes exact roots, and truncates to BF16
where a GPU rounds. Before Triton 3.9 its multiply-add rounds twice: here one that rounds once, as a
GPU's does, takes its place under every version. So the logic is proved and the device is not:
`benchmarks/qdq.py --device cuda` compares there.
"""

import math
import os
from fractions import Fraction

import numpy as np
import pytest
import torch

from fp4scope.formats import get_format
from fp4scope.formats.oracle import f32
from fp4scope.kernels import fp32, qdq, using

from .reference import DTYPES, F32_MAX, NV, assert_same, bits, gaussian, golden_finite, random_bits

pytest.importorskip("triton", reason="Triton is not installed")
if not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("needs TRITON_INTERPRET=1, which scripts/test sets", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime import interpreter

from fp4scope.kernels import fused

# What the kernel's own arithmetic meets, numpy warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|divide by zero|invalid value|underflow) encountered:RuntimeWarning"
)
# Every rule, and every kind of element.
NAMES = ["mxfp4:floor", "mxfp4:rceil", "mxfp8:e5m2:even", "mxint8", *NV]


def fma(x, y, z):
    """x y + z of FP32 arrays, rounded once.

    In FP64 the product is exact, and so is what the sum lacks (TwoSum). With that the sum is
    rounded to odd, so that rounding it once more, to FP32, gives what rounding x y + z does.
    """
    x, y, z = (np.asarray(v).astype(np.float64) for v in (x, y, z))
    with np.errstate(all="ignore"):
        product = x * y
        total = np.asarray(product + z)
        added = total - product
        lacking = (product - (total - added)) + (z - added)
        even = total.view(np.int64) % 2 == 0
        odd = np.nextafter(total, np.copysign(np.inf, lacking))
        inexact = np.isfinite(total) & (lacking != 0)
        return np.where(inexact & even, odd, total).astype(np.float32)


@pytest.fixture(autouse=True)
def rounded_once(monkeypatch):
    """The interpreter's multiply-add rounds once, as a GPU's does."""

    def create_fma(self, x, y, z):
        assert x.data.dtype == y.data.dtype == z.data.dtype == np.float32
        return interpreter.TensorHandle(fma(x.data, y.data, z.data), z.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", create_fma)


@triton.jit
def _multiply_add(x, y, z, out, size: tl.constexpr):
    i = tl.arange(0, size)
    tl.store(out + i, tl.fma(tl.load(x + i), tl.load(y + i), tl.load(z + i)))


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


def test_multiply_adds_round_once():
    x, y, z = (random_bits(1, 4096, seed=seed)[0] for seed in range(3))
    x[:2048], y[:2048] = gaussian(2, 2048, seed=3)
    z[:1024] = -(x * y)[:1024]  # leaves what the product lacks
    z[1024:2048] = (x * y)[1024:2048] * 2.0 ** torch.arange(-32, 32).repeat(16)
    # Beside halfway between two FP32 numbers, by a part that FP64 loses.
    x[:64], y[:64], z[:64] = 1 + 2.0**-12, 1 + 2.0**-12, 2.0 ** torch.arange(-70, -6)
    x[64:128], y[64:128], z[64:128] = 1 + 2.0**-12, 1 + 2.0**-12, -(2.0 ** torch.arange(-70, -6))
    # Beside halfway between two numbers at FP32's small end.
    x[128:192], y[128:192], z[128:192] = 2.0**-75, 2.0**-75, 2.0**-149 * torch.arange(64)
    x[192:256], y[192:256], z[192:256] = 2.0**-75, 2.0**-75 + 2.0**-98, 2.0**-149 * torch.arange(64)
    fits = (x.double() * y.double() + z.double()).abs() <= F32_MAX
    out = torch.empty_like(x)
    _multiply_add[(1,)](x, y, z, out, size=len(x))
    sums = [
        Fraction(a) * Fraction(b) + Fraction(c)
        for a, b, c in zip(x[fits].tolist(), y[fits].tolist(), z[fits].tolist(), strict=True)
    ]
    assert out[fits].tolist() == [float(f32(s)) for s in sums]
    assert (out[fits] != x[fits] * y[fits] + z[fits]).sum() > 500, "two roundings show"
    nearly = (x.double() * y.double() + z.double()).float()[fits]
    assert (out[fits] != nearly).any(), "so does FP64 alone"
    assert out[~fits].isinf().all()


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
