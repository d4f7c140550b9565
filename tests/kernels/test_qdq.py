"""Quantize-dequantize: equal to the scalar oracle in every bit, and the laws of its arithmetic.

All of it with each backend.
"""

import inspect
import math
from bisect import bisect_right
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp4scope.errors import FormatError
from fp4scope.formats import FORMATS, ScaleRule, get_format
from fp4scope.formats.oracle import block_scale, f32
from fp4scope.formats.spec import E2M1, E4M3
from fp4scope.kernels import dispatch, fake_quantize, qdq

from .reference import (
    DTYPES,
    F32_MAX,
    MICRO,
    MX,
    NV,
    SMALLEST,
    assert_same,
    by_numpy,
    by_oracle,
    check,
    every_finite,
    gaussian,
    neighbours,
    random_bits,
    tensor,
    to_element,
)

pytestmark = pytest.mark.usefixtures("each_backend")

# One format for every path through the kernels, where formats make no other difference.
KINDS = ["mxfp4:floor", "mxfp4:rceil", "mxint8", "nvfp4", "nvfp4:4over6", "nvfp4:mse"]

SEARCHED = ["nvfp4:4over6", "nvfp4:mse"]
"""Formats that do not map the largest to the largest element always."""

quick = settings(max_examples=5, deadline=None, derandomize=True)

# Binades at both ends of E8M0 and FP32, and around the powers that models live in.
BINADES = [-149, -140, -128, -127, -126, -60, -3, 0, 1, 10, 100, 120, 125, 127]
EVERY_BINADE = range(-149, 128)


# ---- grid points, midpoints, edges --------------------------------------------------------------


def points(element):
    """Grid points and midpoints, and what lies past the largest: where it saturates."""
    grid = np.array(element.magnitudes)
    beyond = 2.0 ** (element.max_exponent + 1)
    past = element.max + np.array([0.25, 0.5, 0.75, 1]) * (beyond - element.max)
    return np.concatenate([grid[1:], (grid[1:] + grid[:-1]) / 2, past])


def led_by(lead, k, fmt):
    """Blocks of `lead * 2^k` and then grid points, midpoints and edges with their neighbours."""
    top = lead * 2.0**k
    if not SMALLEST <= top <= F32_MAX:
        return torch.empty(0, fmt.block_size)
    values = np.ldexp(points(fmt.element), k)
    values = neighbours(values[values <= top])
    values = values[values <= top]
    values[::3] *= -1
    size = fmt.block_size - 1
    rows = np.pad(values, (0, -len(values) % size)).reshape(-1, size)
    return torch.from_numpy(np.insert(rows, 0, top, axis=1).astype(np.float32))


def leads(element):
    """The largest element, and an amax that some rules clip: FLOOR in the last case only."""
    return element.max, (element.max + 2.0 ** (element.max_exponent + 1)) / 2


@pytest.mark.parametrize("name", MX)
def test_mx_at_grid_points_midpoints_and_edges(name):
    fmt = get_format(name)
    for lead in leads(fmt.element):
        x = torch.cat([led_by(lead, k, fmt) for k in EVERY_BINADE])
        check(x, name, reference=by_numpy)
    for dtype in DTYPES[1:]:
        y = x.to(dtype)
        check(y[y.isfinite().all(-1)], name, reference=by_numpy)


@pytest.mark.parametrize("name", MX)
def test_mx_at_grid_points_midpoints_and_edges_by_the_oracle(name):
    """Some of the above: all points in few binades, or few points in many."""
    fmt = get_format(name)
    step = -(-len(fmt.element.magnitudes) // 4)
    for lead in leads(fmt.element):
        for i, k in enumerate(BINADES):
            check(led_by(lead, k, fmt)[i % step :: step], name)


@pytest.mark.parametrize("factor", [1.0, 448.0, 2.0**-6])
@pytest.mark.parametrize("name", NV)
def test_tensor_scaled_formats_at_grid_points_midpoints_and_edges(name, factor):
    """With A = 448 * max * 2^k, g is 2^k and s is 1, so that the points are met exactly."""
    fmt = get_format(name)
    rows, amaxes = [], []
    for k in EVERY_BINADE:
        amax = factor * fmt.element.max * 2.0**k
        if SMALLEST <= amax <= F32_MAX:
            x = led_by(fmt.element.max, k, fmt)
            if k in (-149, 0):
                check(x, name, amax)
            rows.append(x)
            amaxes += [amax] * len(x)
    x, amax = torch.cat(rows), tensor(amaxes)[:, None]
    assert_same(qdq(x, fmt, amax), by_numpy(x, name, amax.numpy()), x)


@pytest.mark.parametrize("name", NV)
def test_quotients_that_fp32_rounds_onto_a_tie(name):
    """With a scale that is no power of two, x / d can be a tie in FP32 and beside it exactly."""
    fmt = get_format(name)
    grid = np.array(fmt.element.magnitudes, dtype=np.float32)
    ties, moved = (grid[1:] + grid[:-1]) / 2, 0
    for scale in np.linspace(1.01, 1.99, 15).astype(np.float32):
        amax = float(np.float32(scale * np.float32(fmt.tensor_divisor)))
        d = np.float32(amax) / np.float32(fmt.tensor_divisor)  # times s = 1
        near = neighbours(ties * d)
        exact = near.astype(np.float64) / np.float64(d)
        moved += (np.isin(near / d, ties) & ~np.isin(exact, ties)).sum()
        rows = np.pad(near, (0, -len(near) % 15)).reshape(-1, 15)
        x = torch.from_numpy(np.insert(rows, 0, grid[-1] * d, axis=1))
        check(x, name, amax)
        check(x, name, amax, reference=by_numpy)
    assert moved > 20


@pytest.mark.parametrize("name", MICRO)
def test_random_values_of_every_magnitude(name):
    """Mantissas and exponents at random, over all of FP32."""
    check(random_bits(8, 32), name)
    # Rows of similar magnitude, so that most values of a block survive.
    x = torch.ldexp(gaussian(14, 32, seed=1), torch.linspace(-140, 120, 14).int()[:, None])
    check(x, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MICRO)
def test_bulk_equals_numpy_and_ml_dtypes(name, dtype):
    heavy = gaussian(64, 1024, seed=2) * gaussian(64, 1024, seed=3).exp()
    heavy[:, ::97] *= 50  # outlier channels
    for x in (gaussian(64, 1024), heavy, random_bits(64, 1024)):
        limit = torch.finfo(dtype).max
        check(x.clamp(-limit, limit).to(dtype), name, reference=by_numpy)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", MICRO)
def test_every_value_of_a_16_bit_type(name, dtype):
    x = every_finite(dtype)
    check(x, name, reference=by_numpy)
    # Beside others of all sizes, and with more than one amax.
    shuffled = x.flatten()[torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))]
    check(shuffled.view(x.shape), name, None if name in MX else 5.0, by_numpy)


@pytest.mark.parametrize("factor", [0.5, 2.0, 1.37, 1e-3, 1e3, 1e-30, 1e-42])
@pytest.mark.parametrize("name", NV)
def test_bulk_with_a_calibrated_amax(name, factor):
    x = gaussian(64, 256) * gaussian(64, 1, seed=4).exp()
    amax = float(np.float32(factor * x.abs().amax().item()))
    check(x, name, amax, reference=by_numpy)
    check(x[:2, :48], name, amax)


# ---- the block scale ----------------------------------------------------------------------------


def amaxes(element, binades):
    """On, just below and just above 2^k, max * 2^k and where EVEN rounds up."""
    where = [1, element.max / 2**element.max_exponent, 2 - 2.0 ** -(element.mantissa_bits + 1)]
    steps = [m * 2.0**k for k in binades for m in where if SMALLEST <= m * 2.0**k <= F32_MAX]
    near = neighbours([*steps, F32_MAX])
    return near[near > 0]


# Fractions of the amax that land differently for every scale it could get.
PARTS = [1, -0.9, 0.65, -0.6, 0.4, -0.3, 0.2, -0.15, 0.1, -0.06, 0.03, -0.01]


@pytest.mark.parametrize("name", MX)
def test_amax_at_and_beside_the_steps_of_the_scale_rules(name):
    element = get_format(name).element
    x = torch.from_numpy(np.outer(amaxes(element, EVERY_BINADE), PARTS).astype(np.float32))
    check(x, name, reference=by_numpy)
    some = [-149, -148, *range(-130, -121), -10, 0, 1, 120, 127]
    x = torch.from_numpy(np.outer(amaxes(element, some), PARTS[:3]).astype(np.float32))
    check(x, name)


@pytest.mark.parametrize("k", [0, -40, 100])
@pytest.mark.parametrize("name", NV)
def test_amax_at_and_beside_the_steps_of_e4m3(name, k):
    """Every value of E4M3, every midpoint and their neighbours become a block's scale."""
    fmt = get_format(name)
    grid = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    scales = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2, [460, 1000]])
    peaks = neighbours(np.ldexp(scales * fmt.element.max, k))
    x = torch.from_numpy(np.outer(peaks, PARTS).astype(np.float32))
    amax = math.ldexp(fmt.tensor_divisor, k)  # g is 2^k
    check(x, name, amax, reference=by_numpy)
    check(x[::17, :4], name, amax)


@pytest.mark.parametrize("name", NV)
@pytest.mark.parametrize(
    ("row", "amax"),
    [
        ([6.0, 3.0, 0.7], 2688.0),
        ([6 * 2.0**-9, 2.0**-9, -(2.0**-9)], 2688.0),  # s is the smallest subnormal
        ([9 * 2.0**-9, 2.0**-8], 2688.0),  # s half-way between two subnormals
        ([6 * 2.0**-10, 2.0**-10], 2688.0),  # s half-way to 0: all zeros
        ([0.359375, -0.1], 7.0),  # a / (6 g) is a tie, (a / 6) / g is not
        ([2688.0, -100.0, 3.0], 1344.0),  # s saturates
        ([1.0, -0.5, 0.3], 1e-30),  # s saturates by far: everything clips at 2688 * g
        ([1.0, -0.5], 2688 * SMALLEST),  # g is the smallest FP32 number
        ([1.0, -0.5], SMALLEST),  # g underflows, so d = 0
        ([SMALLEST, -SMALLEST], 2688 * SMALLEST),  # d underflows where s does not
        ([SMALLEST, -3 * SMALLEST], None),
        ([1e-38, -1e-39, 1e-40], None),
        ([F32_MAX, -F32_MAX / 2, 1e38], None),
        ([1.0, -2.0], 3e38),  # s underflows
        ([F32_MAX, -1.0], 1.0),
    ],
)
def test_the_ends_of_tensor_scaled_formats(name, row, amax):
    check(tensor([row]), name, amax)
    check(tensor([row]), name, amax, reference=by_numpy)


@pytest.mark.parametrize("name", NV)
def test_the_amax_measured_is_that_of_the_whole_tensor(name):
    x = gaussian(4, 3, 40)
    amax = x.abs().amax()
    for given_amax in (amax, amax.item(), amax[None], amax.to(torch.float64)):
        assert_same(fake_quantize(x, name, amax=given_amax), fake_quantize(x, name))
    assert not torch.equal(fake_quantize(x, name), fake_quantize(x, name, amax=3 * amax))


@pytest.mark.parametrize("name", NV)
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 5, 1), (3, 5, 1), (5, 1), (1,), ()])
def test_an_amax_for_each_part(name, shape):
    """One amax for each part of a batch is each part alone, to the bit."""
    x = gaussian(3, 5, 40) * torch.logspace(-2, 2, 15).reshape(3, 5, 1)
    amax = 0.1 + gaussian(*shape).abs()
    whole = qdq(x, get_format(name), amax)
    for i in range(3):
        for j in range(5):
            part = amax.expand(3, 5, 1)[i, j].item()
            assert_same(whole[i, j], fake_quantize(x[i, j], name, amax=part))


ORDER_DECIDES = [
    [24, 3.5, 4.75, 0.5, 4.25, 9.5, 6, 5.5, 7.25, 2.75, 11.5, 4.75, 9.75, 1.75, 10.5, 5],
    [6, 1, 4, 3.25, 3, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 1],
    [24, 9.25, 5.75, 3.25, 6.5, 5.25, 2.5, 6.5, 0.25, 8, 11.5, 11.25, 3.75, 1.5, 2.25, 5.25],
]


@pytest.mark.parametrize("amax", [1536.0, 1700.0])
def test_four_over_six_where_the_errors_are_nearly_equal(amax):
    """FP32's roundings decide here, and the order in which the squares are added."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 49, (50_000, 16), generator=generator).to(torch.float32) / 4
    x[:, 0] = 6 * 2.0 ** torch.randint(0, 4, (50_000,), generator=generator)
    x = torch.minimum(x, x[:, :1]) * (1 / 3)
    check(x, "nvfp4:4over6", amax, reference=by_numpy)
    # Adding neighbours first would choose the other scale.
    x = tensor(ORDER_DECIDES) * (1 / 3)
    check(x, "nvfp4:4over6", 1536.0)
    check(x, "nvfp4:4over6", 1536.0, reference=by_numpy)


# ---- shapes, layouts, dtypes --------------------------------------------------------------------


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("cols", [1, 17, 32, 70])
def test_any_last_axis_is_padded_and_cut(name, cols):
    for dtype in DTYPES:
        check(gaussian(3, cols, seed=cols, dtype=dtype), name, reference=by_numpy)


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("spike", [100.0, 1e12])
def test_blocks_do_not_straddle_rows(name, spike):
    """In a 4 x 40 tensor, one large value at the end of row 0 reaches only its ragged block."""
    x = gaussian(4, 40)
    spiked = x.clone()
    spiked[0, 39] = spike
    amax = spike if name in NV else None
    size = get_format(name).block_size
    alone = 40 // size * size
    before, after = fake_quantize(x, name, amax=amax), check(spiked, name, amax)
    assert_same(after[1:], before[1:])
    assert_same(after[0, :alone], before[0, :alone])
    # Eight bits hardly notice 100, and beside 1e12 the tensor scale makes zeros of all.
    if (spike == 100) == (name in NV or get_format(name).element.exponent_bits < 4):
        assert not torch.equal(after[0, alone:39], before[0, alone:39])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (40,), (2, 3, 40), (2, 1, 3, 17)])
def test_any_number_of_axes(name, shape):
    x = gaussian(*shape)
    expected = by_oracle(x.reshape(1, -1) if x.ndim == 0 else x, name).reshape(shape)
    assert_same(fake_quantize(x, name), expected)


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("shape", [(0,), (0, 32), (3, 0), (2, 0, 5)])
def test_empty_tensors_stay_empty(name, shape):
    out = fake_quantize(torch.empty(shape, dtype=torch.bfloat16), name)
    assert (out.shape, out.dtype) == (torch.Size(shape), torch.bfloat16)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[:, ::2],
        lambda x: x[::3, 1:],
        lambda x: x[:1].expand(5, -1),
        lambda x: x.reshape(8, 5, 10).transpose(0, 2),
    ],
    ids=["transposed", "strided", "offset", "expanded", "permuted"],
)
def test_layout_does_not_matter(name, view):
    x = gaussian(8, 50)
    out = fake_quantize(view(x), name)
    assert out.is_contiguous()
    assert_same(out, fake_quantize(view(x).contiguous(), name))
    assert_same(x, gaussian(8, 50))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("piece", [1, 1000, 10**9])
def test_pieces_equal_one_piece(name, piece, monkeypatch):
    x = gaussian(19, 3, 40)
    amax = 0.1 + gaussian(19, 1, 1, seed=5).abs() if name in NV else None
    expected = qdq(x, get_format(name), amax)
    monkeypatch.setattr(dispatch, "_PIECE_ELEMENTS", piece)
    assert_same(qdq(x, get_format(name), amax), expected)


@pytest.mark.parametrize("name", KINDS)
def test_a_tensor_larger_than_a_piece_equals_its_rows(name):
    x = gaussian(2000, 300)
    assert x.numel() > dispatch._PIECE_ELEMENTS
    amax = x.abs().amax().item() if name in NV else None
    rows = torch.cat([fake_quantize(r, name, amax=amax) for r in x.split(200)])
    assert_same(fake_quantize(x, name), rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", [64, 40])
@pytest.mark.parametrize("name", KINDS)
def test_out_is_where_the_result_goes(name, cols, dtype):
    fmt, x = get_format(name), gaussian(5, cols, dtype=dtype)
    expected, before = qdq(x, fmt), x.clone()
    buffer = torch.full_like(x, 7)
    assert qdq(x, fmt, out=buffer) is buffer
    assert_same(buffer, expected)
    assert_same(x, before)
    strided = torch.stack([x, -x], dim=-1)[..., 0]
    assert_same(qdq(strided, fmt, out=torch.full_like(x, 7)), expected)
    assert qdq(x, fmt, out=x) is x
    assert_same(x, expected)


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_keep_shape_and_sign(name, dtype):
    """Integers in two's complement have one zero only."""
    zeros = torch.zeros(3, 40, dtype=dtype)
    zeros[:, 1::2] = -0.0
    integer = get_format(name).element.integer
    assert_same(fake_quantize(zeros, name), zeros.abs() if integer else zeros)
    # A block of zeros beside others, zeros within a block, and values that round to zero.
    x = torch.cat([zeros[:, :32], gaussian(3, 32, dtype=dtype), zeros[:, :9]], dim=1)
    x[1, 40:44] = tensor([1e-6, -1e-6, 0.0, -0.0], dtype)
    out = check(x, name)
    assert torch.equal(out.signbit(), out < 0 if integer else x.signbit())


@pytest.mark.parametrize("name", MICRO)
def test_the_last_cast_saturates(name):
    """65504 under rceil and even rounds to 65536 = 2^16, which FP16 does not have."""
    for dtype in DTYPES:
        limit = torch.finfo(dtype).max
        x = tensor([[limit, -limit, limit / 2, -limit / 5, 1.0]], dtype)
        out = check(x, name)
        assert out.isfinite().all()
        if name.endswith((":rceil", ":even")):
            assert out[0, :2].tolist() == [limit, -limit]


def test_nvfp4_saturates_fp16_too():
    # a / (6 g) = 1.07 rounds up to s = 1.125, so that 6 * d = 68871.
    x = tensor([[65504.0, -65504.0, 1000.0]], torch.float16)
    amax = 65504 / 6 / 1.07 * 2688
    out = check(x, "nvfp4", float(np.float32(amax)))
    assert out[0, :2].tolist() == [65504.0, -65504.0]


@pytest.mark.parametrize("name", NV)
def test_fp32_saturates_too(name):
    """The same near FP32's largest: the amax may round up past it."""
    fmt = get_format(name)
    amax = F32_MAX / fmt.element.max / 1.07 * fmt.tensor_divisor
    amax = min(amax, F32_MAX)  # only where s may be above 1
    check(tensor([[F32_MAX, -F32_MAX, 1e38, F32_MAX / 3]]), name, amax)
    out = check(tensor([[F32_MAX, -F32_MAX, 1e38]]), name)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", MICRO)
def test_16_bit_types_compute_in_fp32_and_cast_once(name):
    for dtype in DTYPES[1:]:
        x = gaussian(8, 96, seed=6, dtype=dtype)
        in_fp32 = fake_quantize(x.to(torch.float32), name)
        assert_same(fake_quantize(x, name), in_fp32.to(dtype))


# ---- laws ---------------------------------------------------------------------------------------


def blocks(low, high, size=32, rows=12):
    """Rows of `size` FP32 values in the binades `low` to `high`: all of them, or five."""

    def build(data, start, narrow):
        word = np.frombuffer(data, dtype=np.uint32).reshape(rows, size)
        first = np.where(narrow, low + start % (high - 3 - low), low)[:, None]
        span = np.where(narrow, 5, high - low + 1)[:, None]
        exponent = first + (word >> 23 & 0xFF).astype(int) % span
        x = np.ldexp(1 + (word & 0x7FFFFF) / 2**23, exponent)
        x = np.where(word == 0, 0, np.where(word >> 31, -x, x))  # shrinks to zeros
        return torch.from_numpy(x.astype(np.float32))

    count = 4 * size * rows
    return st.builds(
        build,
        st.binary(min_size=count, max_size=count),
        st.lists(st.integers(0, 300), min_size=rows, max_size=rows).map(np.array),
        st.lists(st.booleans(), min_size=rows, max_size=rows).map(np.array),
    )


@pytest.mark.parametrize("name", MICRO)
@quick
@given(x=blocks(-149, 127, rows=1))
def test_any_block_equals_the_oracle(name, x):
    check(x, name)


@pytest.mark.parametrize("name", MX)
@quick
@given(x=blocks(-149, 127))
def test_mx_is_idempotent(name, x):
    """True of all three rules and all elements, everywhere.

    FLOOR: the new amax is in the binade of the old, or both have the smallest scale. EVEN: it is
    in that binade, or has just been rounded up to the next, which gives the same scale. RCEIL: it
    is more than half the largest element, or (exactly half) takes half the scale, and twice
    what is on the grid is on the grid while it is not larger than the largest. Half the largest
    is on the grid, so nothing falls below it. A saturated 2^k is the dtype's largest value,
    which gets the same scale again.
    """
    for dtype in DTYPES:
        y = x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
        once = fake_quantize(y, name)
        assert_same(fake_quantize(once, name), once, y)


@pytest.mark.parametrize("name", ["nvfp4", "nvint4"])
@quick
@given(x=blocks(-3, 3), spread=st.floats(0.01, 1.0))
def test_one_given_scale_is_idempotent_while_e4m3_is_normal(name, x, spread):
    """A normal E4M3 scale is within 1/16 of a / max, so a block's amax maps to max again."""
    x[:, 0] = x[:, 16] = x.abs().amax() + 1  # all blocks near the top: s is normal
    x[:, 16:] *= spread
    amax = x.abs().amax().item()
    once = fake_quantize(x, name, amax=amax)
    assert_same(fake_quantize(once, name, amax=amax), once, x)


def test_nvfp4_is_not_idempotent_in_general():
    # Measured amax: FP32 rounds g and d, so the amax moves a step, and the next time again.
    x = tensor([float.fromhex("0x1.9edc6ap+0")])
    once = fake_quantize(x, "nvfp4")
    assert once.item().hex() == "0x1.9edc6c0000000p+0"
    assert fake_quantize(once, "nvfp4").item().hex() == "0x1.9edc6e0000000p+0"
    # Subnormal scale: s = 1.5 * 2^-9 rounds to 2 * 2^-9, where the amax maps to 4, not 6; the
    # second time s is 1.33 * 2^-9, which rounds to 2^-9, and 8 clips at 6.
    x = tensor([9 * 2.0**-9])
    once = fake_quantize(x, "nvfp4", amax=2688.0)
    assert once.item() == 4 * 2.0**-8
    assert fake_quantize(once, "nvfp4", amax=2688.0).item() == 6 * 2.0**-9


def test_four_over_six_is_not_idempotent_even_with_a_given_amax_and_normal_scales():
    """First 4 wins. What comes out is on the grid of the scale for 6 as well, to within FP32's
    roundings, and these decide for 6 and the neighbouring FP32 numbers.
    """
    x = tensor([3.7647864818573, 0.8521828055381775, -0.9375306367874146])
    once = fake_quantize(x, "nvfp4:4over6", amax=9.63723087310791)
    twice = fake_quantize(once, "nvfp4:4over6", amax=9.63723087310791)
    assert once.tolist() == [3.6139614582061768, 0.9034903645515442, -0.9034903645515442]
    assert twice.tolist() == [3.613961696624756, 0.903490424156189, -0.903490424156189]


@pytest.mark.parametrize("name", MICRO)
@quick
@given(x=blocks(-149, 127))
def test_odd(name, x):
    positive_zero = 0.0 if get_format(name).element.integer else -0.0  # x + -0.0 is x
    assert_same(fake_quantize(-x, name), -fake_quantize(x, name) + positive_zero, x)


@pytest.mark.parametrize("name", MICRO)
@quick
@given(x=blocks(-140, 127, size=16))
def test_monotone_within_a_block(name, x):
    out = fake_quantize(x.sort().values, name)
    assert (out.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("name", MICRO)
@quick
@given(x=blocks(-40, 40), k=st.integers(-45, 45))
def test_scaling_by_a_power_of_two_commutes(name, x, k):
    """Inside the range of E8M0 and FP32; a tensor scale's measured amax scales along."""
    assert_same(fake_quantize(x * 2.0**k, name), fake_quantize(x, name) * 2.0**k, x)


@pytest.mark.parametrize("name", [n for n in MICRO if n not in SEARCHED])
@quick
@given(x=blocks(-100, 110, rows=1))
def test_error_is_at_most_half_a_step_where_nothing_clips(name, x):
    """By the oracle's scale. Tensor scales are divided by in FP32, whose rounding counts."""
    fmt = get_format(name)
    whole = Fraction(x.abs().amax().item())
    slack = Fraction(fmt.uses_tensor_amax, 2**22)
    for block in x.view(-1, fmt.block_size):
        out = fake_quantize(block, name, amax=float(whole) if fmt.uses_tensor_amax else None)
        values = [abs(Fraction(v)) for v in block.tolist()]
        scale = block_scale(max(values), fmt, whole)
        grid = [Fraction(m) * scale for m in fmt.element.magnitudes]
        for a, q in zip(values, (abs(Fraction(v)) for v in out.tolist()), strict=True):
            if a >= grid[-1]:  # RCEIL clips nothing but what FP32 rounds to the largest
                assert fmt.rule is not ScaleRule.RCEIL or a <= grid[-1] * (1 + Fraction(1, 2**22))
                assert q == f32(grid[-1])
            else:
                above = bisect_right(grid, a)
                half = (grid[above] - grid[above - 1]) / 2
                assert abs(q - a) <= half + slack * a


@pytest.mark.parametrize("seed", range(3))
def test_no_scale_from_3_below_to_7_above_is_better_than_the_searched_one(seed):
    x = gaussian(200, 16, seed=seed) * gaussian(200, 1, seed=9).exp()
    g = x.abs().amax() / 2688
    y = (x.abs() / g).double().numpy()
    every = np.array(E4M3.magnitudes)
    own = np.abs(every - y.max(-1, keepdims=True) / 6).argmin(-1)
    errors = []
    for step in range(-3, 8):
        s = every[np.clip(own + step, 1, 126)][:, None]
        q = to_element((y / s).astype(np.float32), E2M1)
        errors.append(np.square(q * s - y).sum(-1))
    ours = ((fake_quantize(x, "nvfp4:mse") - x) / g).double().square().sum(-1).numpy()
    assert (ours <= np.min(errors, 0) * (1 + 1e-5)).all()
    assert len(set(np.argmin(errors, 0))) > 6, "of one block this is best, of another that"


@pytest.mark.parametrize("seed", range(3))
def test_four_over_six_is_never_worse_than_six(seed):
    """In squared error of a block, against the same tensor scale with the scale for 6 only."""
    x = gaussian(200, 16, seed=seed) * gaussian(200, 1, seed=9).exp()
    g = x.abs().amax().item() / 1536
    ours = (fake_quantize(x, "nvfp4:4over6") - x).square().sum(-1)
    # Six only: as NVFP4 with an amax that makes the same tensor scale.
    six = (fake_quantize(x, "nvfp4", amax=2688 * g) - x).square().sum(-1)
    assert (ours <= six * (1 + 1e-5)).all()
    assert (ours < 0.9 * six).sum() > 20, "for many blocks it is far better"


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "bad", [[math.nan], [math.inf], [-math.inf], [math.nan, math.inf, -math.inf]], ids=str
)
def test_nan_and_inf_are_an_error_that_counts_them(name, dtype, bad):
    x = gaussian(3, 40, dtype=dtype)
    x[1, 2 : 2 + len(bad)] = tensor(bad, dtype)
    with pytest.raises(FormatError) as error:
        fake_quantize(x, name)
    message = str(error.value)
    assert f"{len(bad)} of 120 values of x" in message
    assert "(3, 40)" in message
    assert str(dtype) in message
    assert "fp4scope stats" in message
    assert x.isnan().sum() + x.isinf().sum() == len(bad)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (36, 39)], ids=["first piece", "last piece"])
def test_qdq_flags_nan_and_inf_without_raising(name, bad, place, monkeypatch):
    monkeypatch.setattr(dispatch, "_PIECE_ELEMENTS", 400)
    x = gaussian(37, 40)
    flag = torch.zeros((), dtype=torch.bool)
    qdq(x, get_format(name), None, flag)
    assert not flag
    x[place] = bad
    qdq(x, get_format(name), None, flag)
    assert flag
    qdq(gaussian(37, 40), get_format(name), None, flag)
    assert flag, "the flag is sticky: a later clean tensor does not clear it"


def test_the_largest_finite_value_is_no_error():
    for dtype in DTYPES:
        x = torch.full((2, 32), torch.finfo(dtype).max, dtype=dtype)
        for name in MICRO:
            assert fake_quantize(x, name).isfinite().all()


@pytest.mark.parametrize("name", MX)
def test_mx_refuses_an_amax(name):
    with pytest.raises(FormatError, match=rf"{name} has no tensor scale, so amax=1\.0"):
        fake_quantize(torch.ones(4), name, amax=1.0)


@pytest.mark.parametrize("amax", [0.0, torch.tensor(0.0), 1e-60])
def test_an_amax_of_zero_for_values_that_are_not(amax):
    with pytest.raises(FormatError, match="amax is 0 but x is not all zeros"):
        fake_quantize(torch.ones(4), "nvfp4", amax=amax)
    zeros = tensor([0.0, -0.0])
    assert_same(fake_quantize(zeros, "nvfp4", amax=amax), zeros)


@pytest.mark.parametrize("amax", [-1.0, math.nan, math.inf, -math.inf, 1e39])
def test_an_amax_that_makes_no_sense(amax):
    with pytest.raises(FormatError, match="must be finite in FP32 and not negative") as error:
        fake_quantize(torch.ones(4), "nvfp4", amax=amax)
    assert str(float(amax)) in str(error.value)


def test_fake_quantize_takes_one_amax():
    with pytest.raises(FormatError, match=r"amax has shape \(2,\)"):
        fake_quantize(torch.ones(2, 4), "nvfp4", amax=torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int8, torch.bool])
def test_other_dtypes_are_refused(dtype):
    unchecked = inspect.unwrap(fake_quantize)  # past the type checks that run in tests only
    with pytest.raises(FormatError, match=rf"x has dtype {dtype}.*convert it"):
        unchecked(torch.ones(4).to(dtype), "mxfp4")


def test_unknown_format():
    with pytest.raises(FormatError, match=r"unknown format 'nvpf4'; did you mean nvfp4"):
        fake_quantize(torch.ones(4), "nvpf4")


def test_a_format_object_does_as_well_as_its_name():
    x = gaussian(2, 40)
    for name in FORMATS:
        assert_same(fake_quantize(x, get_format(name)), fake_quantize(x, name))
    assert_same(fake_quantize(x, "mxfp4"), fake_quantize(x, "mxfp4:floor"))
