"""The torch kernel: equal to the scalar oracle in every bit, and the laws of its arithmetic.

Equality here is of bits, so the sign of zero counts. Where the oracle would be too slow, the
reference is `ml_dtypes` and numpy, which share nothing with the kernel either.
"""

import inspect
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp4scope.errors import FormatError
from fp4scope.formats import FORMATS, get_format
from fp4scope.formats.oracle import block_scale, e4m3, fake_quantize_block
from fp4scope.formats.spec import E2M1
from fp4scope.kernels import eager, fake_quantize, qdq
from fp4scope.kernels.eager import round_to_element_

MX = [name for name in FORMATS if name.startswith("mxfp4")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NUMPY = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16}
F32_MAX = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149

quick = settings(max_examples=50, deadline=None, derandomize=True)


def tensor(values, dtype=torch.float32):
    return torch.tensor(values, dtype=torch.float32).to(dtype)


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def neighbours(*points):
    """Each point with the FP32 numbers just below and just above it, within FP32."""
    p = np.array(points, dtype=np.float32)
    with np.errstate(under="ignore"):
        near = [np.nextafter(p, np.float32(0)), p, np.nextafter(p, np.float32(F32_MAX))]
    return sorted({float(v) for v in np.concatenate(near)})


def bits(x):
    """The bits of `x` as integers: equal only if values and signs of zeros are."""
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def assert_same(actual, expected, x=None):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    wrong = bits(actual.contiguous()) != bits(expected.contiguous())
    shown = [] if x is None else [v.hex() for v in x[wrong].tolist()[:3]]
    got, want = actual[wrong].tolist()[:3], expected[wrong].tolist()[:3]
    assert not wrong.any(), f"{int(wrong.sum())} differ: x {shown}, got {got}, want {want}"


def cast(values, dtype):
    """FP32 to `dtype`: round to nearest even, saturating. By numpy, not by torch."""
    if dtype != torch.float32:
        limit = torch.finfo(dtype).max
        values = np.clip(values, -limit, limit).astype(NUMPY[dtype]).astype(np.float32)
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(dtype)


def by_oracle(x, name, amax=None):
    """What the oracle makes of `x`, block by block."""
    fmt = get_format(name)
    if fmt.uses_tensor_amax and amax is None:
        amax = x.abs().amax().item()
    size = fmt.block_size
    rows = x.reshape(-1, x.shape[-1]).tolist()
    out = [
        [v for i in range(0, len(r), size) for v in fake_quantize_block(r[i : i + size], fmt, amax)]
        for r in rows
    ]
    return cast(np.array(out).reshape(x.shape), x.dtype)


def check(x, name, amax=None):
    """`fake_quantize(x)` equals the oracle and leaves `x` alone."""
    before = x.clone()
    actual = fake_quantize(x, name, amax=amax)
    assert_same(actual, by_oracle(x, name, amax), x)
    assert_same(x, before)
    return actual


# ---- rounding to the element --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_every_16_bit_value(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    y = every[every.isfinite()].to(torch.float32)
    expected = np.clip(y.numpy(), -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    actual = round_to_element_(y.clone(), E2M1).copysign(y)
    assert_same(actual, torch.from_numpy(expected), y)


# Binades at both ends of E8M0 and FP32, and around the powers that models live in.
BINADES = [-149, -140, -130, *range(-128, -122), -60, -3, 0, 1, 10, 60, 120, 123, 124, 125]
EDGES = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 7.5]


def led_by(lead, k, size):
    """Blocks of `lead * 2^k` and then grid points, midpoints and edges with their neighbours."""
    top = lead * 2.0**k
    if top > F32_MAX:
        return []
    points = [p * 2.0**k for p in (*E2M1.magnitudes[1:], *EDGES)]
    values = [v for v in neighbours(*(p for p in points if p <= top)) if v <= top]
    values = [-v if i % 3 == 0 else v for i, v in enumerate(values)]
    values += [0.0] * (-len(values) % (size - 1))
    parts = [values[i : i + size - 1] for i in range(0, len(values), size - 1)]
    return [[top, *part] for part in parts]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MX)
def test_mx_at_grid_points_midpoints_and_edges(name, dtype):
    rows = [row for k in BINADES for lead in (6.0, 7.5) for row in led_by(lead, k, 32)]
    x = tensor(rows, dtype)
    check(x[x.isfinite().all(-1)], name)


@pytest.mark.parametrize("factor", [1.0, 448.0, 2.0**-6])
def test_nvfp4_at_grid_points_midpoints_and_edges(factor):
    """With A = 448 * 6 * 2^k, g is 2^k and s is 1, so that the points are met exactly."""
    for k in BINADES:
        amax = factor * 6.0 * 2.0**k
        if SMALLEST <= amax <= F32_MAX:
            check(tensor(led_by(6.0, k, 16)), "nvfp4", amax)


@pytest.mark.parametrize("name", FORMATS)
def test_random_values_of_every_magnitude(name):
    """Mantissas and exponents at random, over all of FP32."""
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 0x7F800000, size=(40, 64), dtype=np.int64).astype(np.int32)
    sign = rng.integers(0, 2, size=raw.shape).astype(np.int32) << 31
    x = torch.from_numpy((raw | sign).view(np.float32))
    check(x, name)
    # Rows of similar magnitude, so that most values of a block survive.
    x = torch.ldexp(gaussian(40, 64, seed=1), torch.linspace(-140, 120, 40).int()[:, None])
    check(x, name)


# ---- bulk, against numpy and ml_dtypes ----------------------------------------------------------


def by_numpy(x, name, amax=None):
    """The rules in numpy and ml_dtypes, for finite FP32 blocks away from the ends of the range."""
    fmt = get_format(name)
    y = x.to(torch.float32).numpy().reshape(-1, fmt.block_size)
    peak = np.abs(y).max(-1, keepdims=True)
    if fmt.uses_tensor_amax:
        g = np.float32(np.abs(y).max() if amax is None else amax) / np.float32(2688)
        s = np.minimum(peak / (np.float32(6) * g), np.float32(448))
        scale = s.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * g
    else:
        mantissa, exponent = np.frexp(peak if name != "mxfp4:rceil" else peak / np.float32(6))
        # frexp's mantissa is in [0.5, 1): 0.875 stands for 1.75, and 0.5 for a power of two.
        shift = {
            "mxfp4:floor": -3,
            "mxfp4:even": -3 + (mantissa >= 0.875),
            "mxfp4:rceil": -(mantissa == 0.5).astype(int),
        }[name]
        scale = np.ldexp(np.float32(1), exponent + shift)
    q = np.clip(y / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    return cast((q * scale).reshape(x.shape), x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_bulk_equals_numpy_and_ml_dtypes(name, dtype):
    heavy = gaussian(64, 1024, seed=2) * gaussian(64, 1024, seed=3).exp()
    heavy[:, ::97] *= 50  # outlier channels
    for x in (gaussian(64, 1024, dtype=dtype), heavy.to(dtype)):
        assert_same(fake_quantize(x, name), by_numpy(x, name), x)


@pytest.mark.parametrize("factor", [0.5, 2.0, 1.37])
def test_bulk_nvfp4_with_a_calibrated_amax(factor):
    x = gaussian(64, 1024) * gaussian(64, 1, seed=4).exp()
    amax = factor * x.abs().amax().item()
    amax = float(np.float32(amax))
    assert_same(fake_quantize(x, "nvfp4", amax=amax), by_numpy(x, "nvfp4", amax), x)


def test_the_cast_to_e4m3_is_that_of_ml_dtypes_and_of_the_oracle():
    """Torch's cast is a step of the NVFP4 kernel: every value, midpoint and neighbour of E4M3."""
    grid = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    points = np.array(neighbours(*grid, *((grid[1:] + grid[:-1]) / 2)), dtype=np.float32)
    every = np.arange(2**15, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    points = np.concatenate([points, every])
    points = points[points <= 448]
    actual = torch.from_numpy(points).to(torch.float8_e4m3fn).to(torch.float32)
    expected = points.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert_same(actual, torch.from_numpy(expected))
    for x, value in zip(points[:700].tolist(), expected[:700].tolist(), strict=True):
        assert float(e4m3(Fraction(x))) == value


# ---- the block scale ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MX)
def test_amax_at_and_beside_the_steps_of_the_scale_rules(name):
    """Amax on, just below and just above 2^k, 6 * 2^k and 1.75 * 2^k: where the rules step."""
    amaxes = [
        a
        for k in (-149, -148, *range(-130, -121), -50, -10, -2, -1, 0, 1, 2, 3, 50, 120, 125, 127)
        for a in neighbours(*(m * 2.0**k for m in (1.0, 1.5, 1.75) if m * 2.0**k <= F32_MAX))
        if a > 0
    ]
    # Fractions of the amax that land differently for every scale it could get.
    parts = [1, -0.9, 0.65, -0.6, 0.4, -0.3, 0.2, -0.15, 0.1, -0.06, 0.03, -0.01]
    check(tensor([[a * p for p in parts] for a in [*amaxes, F32_MAX]]), name)


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
def test_nvfp4_at_the_ends_of_its_scales(row, amax):
    check(tensor([row]), "nvfp4", amax)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 2.0, 1e-3, 1e3])
def test_nvfp4_with_a_calibrated_amax(factor):
    x = gaussian(6, 48) * torch.logspace(-3, 2, 6)[:, None]
    check(x, "nvfp4", float(np.float32(factor * x.abs().amax().item())))


def test_nvfp4_measures_the_amax_of_the_whole_tensor():
    x = gaussian(4, 3, 40)
    amax = x.abs().amax()
    for given_amax in (amax, amax.item(), amax[None], amax.to(torch.float64)):
        assert_same(fake_quantize(x, "nvfp4", amax=given_amax), fake_quantize(x, "nvfp4"))
    assert not torch.equal(fake_quantize(x, "nvfp4"), fake_quantize(x, "nvfp4", amax=3 * amax))


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 5, 1), (3, 5, 1), (5, 1), (1,), ()])
def test_nvfp4_with_an_amax_for_each_part(shape):
    """One amax for each part of a batch is each part alone, to the bit."""
    x = gaussian(3, 5, 40) * torch.logspace(-2, 2, 15).reshape(3, 5, 1)
    amax = 0.1 + gaussian(*shape).abs()
    whole = qdq(x, get_format("nvfp4"), amax)
    for i in range(3):
        for j in range(5):
            part = amax.expand(3, 5, 1)[i, j].item()
            assert_same(whole[i, j], fake_quantize(x[i, j], "nvfp4", amax=part))


# ---- shapes, layouts, dtypes --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cols", [1, 15, 16, 17, 31, 32, 33, 70])
def test_any_last_axis_is_padded_and_cut(name, cols, dtype):
    check(gaussian(3, cols, seed=cols, dtype=dtype), name)


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_do_not_straddle_rows(name):
    """In a 4 x 40 tensor, one 100.0 at the end of row 0 reaches only its own ragged block."""
    x = gaussian(4, 40)
    spiked = x.clone()
    spiked[0, 39] = 100.0
    amax = 100.0 if name == "nvfp4" else None
    size = get_format(name).block_size
    alone = 40 // size * size
    before, after = fake_quantize(x, name, amax=amax), check(spiked, name, amax)
    assert_same(after[1:], before[1:])
    assert_same(after[0, :alone], before[0, :alone])
    assert not torch.equal(after[0, alone:39], before[0, alone:39])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(), (1,), (40,), (2, 3, 40), (2, 1, 3, 17)])
def test_any_number_of_axes(name, shape):
    x = gaussian(*shape)
    expected = by_oracle(x.reshape(1, -1) if x.ndim == 0 else x, name).reshape(shape)
    assert_same(fake_quantize(x, name), expected)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(0,), (0, 32), (3, 0), (2, 0, 5)])
def test_empty_tensors_stay_empty(name, shape):
    out = fake_quantize(torch.empty(shape, dtype=torch.bfloat16), name)
    assert (out.shape, out.dtype) == (torch.Size(shape), torch.bfloat16)


@pytest.mark.parametrize("name", FORMATS)
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


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("piece", [1, 100, 1000, 10**9])
def test_pieces_equal_one_piece(name, piece, monkeypatch):
    x = gaussian(37, 3, 40)
    amax = 0.1 + gaussian(37, 1, 1, seed=5).abs() if name == "nvfp4" else None
    expected = qdq(x, get_format(name), amax)
    monkeypatch.setattr(eager, "_PIECE_ELEMENTS", piece)
    assert_same(qdq(x, get_format(name), amax), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_tensor_larger_than_a_piece_equals_its_rows(name):
    x = gaussian(700, 300)
    assert x.numel() > eager._PIECE_ELEMENTS
    amax = x.abs().amax().item() if name == "nvfp4" else None
    rows = torch.cat([fake_quantize(r, name, amax=amax) for r in x.split(70)])
    assert_same(fake_quantize(x, name), rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_zeros_keep_shape_and_sign(name, dtype):
    zeros = torch.zeros(3, 40, dtype=dtype)
    zeros[:, 1::2] = -0.0
    assert_same(fake_quantize(zeros, name), zeros)
    # A block of zeros beside others, zeros within a block, and values that round to zero.
    x = torch.cat([zeros[:, :32], gaussian(3, 32, dtype=dtype), zeros[:, :9]], dim=1)
    x[1, 40:44] = tensor([1e-6, -1e-6, 0.0, -0.0], dtype)
    out = check(x, name)
    assert torch.equal(out.signbit(), x.signbit())


@pytest.mark.parametrize("name", FORMATS)
def test_the_last_cast_saturates(name):
    """65504 under rceil and even rounds to 4 * 2^14 = 65536, which FP16 does not have."""
    for dtype in DTYPES:
        limit = torch.finfo(dtype).max
        x = tensor([[limit, -limit, limit / 2, -limit / 5, 1.0]], dtype)
        out = check(x, name)
        assert out.isfinite().all()
        if name in ("mxfp4:rceil", "mxfp4:even"):
            assert out[0, :2].tolist() == [limit, -limit]


def test_nvfp4_saturates_fp16_too():
    # a / (6 g) = 1.07 rounds up to s = 1.125, so that 6 * d = 68871.
    x = tensor([[65504.0, -65504.0, 1000.0]], torch.float16)
    amax = 65504 / 6 / 1.07 * 2688
    out = check(x, "nvfp4", float(np.float32(amax)))
    assert out[0, :2].tolist() == [65504.0, -65504.0]


@pytest.mark.parametrize("name", FORMATS)
def test_16_bit_types_compute_in_fp32_and_cast_once(name):
    for dtype in DTYPES[1:]:
        x = gaussian(8, 96, seed=6, dtype=dtype)
        in_fp32 = fake_quantize(x.to(torch.float32), name)
        assert_same(fake_quantize(x, name), in_fp32.to(dtype))


@pytest.mark.parametrize("name", FORMATS)
def test_fp16_subnormals(name):
    every = torch.arange(1, 2**10 + 40, dtype=torch.int16).view(torch.float16)
    check(every[: 33 * 32].reshape(33, 32), name)


# ---- laws ---------------------------------------------------------------------------------------


def blocks(low, high, size=32):
    """One row of `size` FP32 values in the binades `low` to `high`: all of them, or five."""

    def build(data, start, narrow):
        word = np.frombuffer(data, dtype=np.uint32)
        span = 5 if narrow else high - low + 1
        exponent = (start if narrow else low) + (word >> 23 & 0xFF).astype(int) % span
        x = np.ldexp(1 + (word & 0x7FFFFF) / 2**23, exponent)
        x = np.where(word == 0, 0, np.where(word >> 31, -x, x))  # shrinks to zeros
        return torch.from_numpy(x.astype(np.float32))[None]

    data = st.binary(min_size=4 * size, max_size=4 * size)
    return st.builds(build, data, st.integers(low, high - 4), st.booleans())


anything = blocks(-149, 127)


@pytest.mark.parametrize("name", FORMATS)
@quick
@given(x=anything)
def test_any_block_equals_the_oracle(name, x):
    check(x, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MX)
@quick
@given(x=anything)
def test_mx_is_idempotent(name, dtype, x):
    """True of all three rules, everywhere.

    The new amax is 4, 6 or (rceil only) 3 times the old scale. From 4 and 6 each rule finds the
    same scale again; from 3, rceil takes half of it, and twice {0, .5, 1, 1.5, 2, 3} is on the
    grid too. A saturated 4 * 2^126 is FP32's largest, which gets the same scale again.
    """
    x = x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    once = fake_quantize(x, name)
    assert_same(fake_quantize(once, name), once, x)


@quick
@given(x=blocks(-3, 3), spread=st.floats(0.01, 1.0))
def test_nvfp4_with_a_given_amax_is_idempotent_while_its_scales_are_normal(x, spread):
    """A normal E4M3 scale is within 1/16 of a / 6, so the amax of a block maps to 6 again."""
    x[0, 0] = x[0, 16] = x.abs().amax() + 1  # both blocks near the top: s is normal
    x[0, 16:] *= spread
    amax = x.abs().amax().item()
    once = fake_quantize(x, "nvfp4", amax=amax)
    assert_same(fake_quantize(once, "nvfp4", amax=amax), once, x)


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


@pytest.mark.parametrize("name", FORMATS)
@quick
@given(x=anything)
def test_odd(name, x):
    assert_same(fake_quantize(-x, name), -fake_quantize(x, name), x)


@pytest.mark.parametrize("name", FORMATS)
@quick
@given(x=blocks(-140, 127, size=16))
def test_monotone_within_a_block(name, x):
    out = fake_quantize(x.sort().values, name)
    assert (out.diff() >= 0).all()


@pytest.mark.parametrize("name", FORMATS)
@quick
@given(x=blocks(-40, 40), k=st.integers(-45, 45))
def test_scaling_by_a_power_of_two_commutes(name, x, k):
    """Inside the range of E8M0 and FP32; NVFP4 too, whose measured amax scales along."""
    assert_same(fake_quantize(x * 2.0**k, name), fake_quantize(x, name) * 2.0**k, x)


@pytest.mark.parametrize("name", MX)
@quick
@given(x=blocks(-120, 120))
def test_error_is_at_most_half_a_step_where_nothing_clips(name, x):
    values = [Fraction(v) for v in x[0].tolist()]
    scale = block_scale(max(abs(v) for v in values), get_format(name), Fraction(0))
    grid = [Fraction(m) * (scale or 1) for m in E2M1.magnitudes]
    for v, q in zip(values, fake_quantize(x, name)[0].tolist(), strict=True):
        a = abs(v)
        if a > grid[-1]:
            assert name != "mxfp4:rceil" or a <= grid[-1] * (1 + Fraction(1, 2**22))
            continue
        low = max(m for m in grid if m <= a)
        high = min(m for m in grid if m >= a)
        assert abs(Fraction(q) - v) <= (high - low) / 2


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
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


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (36, 39)], ids=["first piece", "last piece"])
def test_qdq_flags_nan_and_inf_without_raising(name, bad, place, monkeypatch):
    monkeypatch.setattr(eager, "_PIECE_ELEMENTS", 400)
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
        for name in FORMATS:
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
    with pytest.raises(FormatError, match=r"unknown format 'nvpf4'; did you mean nvfp4\?"):
        fake_quantize(torch.ones(4), "nvpf4")


def test_a_format_object_does_as_well_as_its_name():
    x = gaussian(2, 40)
    for name, fmt in FORMATS.items():
        assert_same(fake_quantize(x, fmt), fake_quantize(x, name))
    assert_same(fake_quantize(x, "mxfp4"), fake_quantize(x, "mxfp4:floor"))
