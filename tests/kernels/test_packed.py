"""The bytes: every code, the layout, and `dequantize` against `fake_quantize`."""

import inspect
import math

import ml_dtypes
import numpy as np
import pytest
import torch

from fp4scope.errors import FormatError
from fp4scope.formats import get_format
from fp4scope.formats.spec import E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8
from fp4scope.kernels import QuantizedTensor, fake_quantize, quantize
from fp4scope.kernels.packed import _decode, _encode, _packed, _unpacked

from .reference import (
    DTYPES,
    F32_MAX,
    MICRO,
    ML_DTYPES,
    MX,
    NV,
    SMALLEST,
    assert_same,
    bits,
    every_finite,
    gaussian,
    golden_finite,
    mx_exponent,
    random_bits,
    tensor,
)

ELEMENTS = [E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8]


# ---- codes --------------------------------------------------------------------------------------


def every_code(element):
    return torch.arange(2**element.bits, dtype=torch.int32).to(torch.uint8)


def values_by_ml_dtypes(element):
    """The FP32 value of every code; NaN where we use none."""
    codes = every_code(element).numpy()
    if element is INT4:
        values = codes.view(np.uint8).astype(np.int8)
        values = np.where(values > 7, values - 16, values).astype(ml_dtypes.int4)
        values = values.astype(np.float32)
        return np.where(values == -8, np.nan, values).astype(np.float32)
    if element is INT8:
        values = codes.view(np.int8).astype(np.float32) / 64
        return np.where(values == -2, np.nan, values).astype(np.float32)
    values = codes.view(ML_DTYPES[element.name]).astype(np.float32)
    return np.where(np.isinf(values), np.nan, values)  # E5M2 has infinities


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_every_code_decodes_and_encodes_and_decodes(element):
    codes = every_code(element)
    values = _decode(codes, element)
    expected = torch.from_numpy(values_by_ml_dtypes(element))
    assert torch.equal(values.isnan(), expected.isnan())
    used = ~expected.isnan()
    assert_same(values[used], expected[used])
    again = _encode(values[used].abs(), values[used], element)
    assert torch.equal(again, codes[used])
    assert_same(_decode(again, element), expected[used])


@pytest.mark.parametrize(
    ("element", "unused"),
    [
        (E2M1, []),
        (E2M3, []),
        (E3M2, []),
        (E4M3, [0x7F, 0xFF]),  # NaN
        (E5M2, [0x7C, 0x7D, 0x7E, 0x7F, 0xFC, 0xFD, 0xFE, 0xFF]),  # Inf and NaN
        (INT4, [0x8]),  # -8
        (INT8, [0x80]),  # -128
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_codes_that_stand_for_nothing(element, unused):
    codes = every_code(element)
    assert codes[_decode(codes, element).isnan()].tolist() == unused


@pytest.mark.parametrize("name", [name for name in MICRO if name != "nvfp4:mse"])
def test_every_code_through_quantize(name):
    """Blocks that hold every value of the format, each led by the largest: scale 1.

    A searched scale may be another that holds a block exactly too.
    """
    fmt = get_format(name)
    element, size = fmt.element, fmt.block_size
    values = values_by_ml_dtypes(element)
    codes = every_code(element)[torch.from_numpy(~np.isnan(values))]
    values = values[~np.isnan(values)]
    fill = -len(values) % (size - 1)
    rows = np.pad(values, (0, fill)).reshape(-1, size - 1)
    x = torch.from_numpy(np.insert(rows, 0, element.max, axis=1))
    q = quantize(x, name, amax=fmt.tensor_divisor if name in NV else None)
    unpacked = _unpacked(q.codes, element)
    largest = len(element.magnitudes) - 1
    assert (unpacked[:, 0] == largest).all()
    found = unpacked[:, 1:].flatten()[: len(values)]
    assert torch.equal(found, codes)
    assert_same(q.dequantize(), x)
    assert q.scales.to(torch.float32).unique().tolist() == [127 if name in MX else 1]


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_packing_and_unpacking_every_pair(element):
    codes = torch.cartesian_prod(every_code(element), every_code(element)).to(torch.uint8)
    packed = _packed(codes, element)
    assert torch.equal(_unpacked(packed, element), codes)
    if element.bits == 4:
        assert torch.equal(packed[:, 0], codes[:, 0] + 16 * codes[:, 1])  # even index low
    else:
        assert packed is codes


# ---- layout, by hand ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "amax", "codes", "scales"),
    [
        ("mxfp4", [6.0, -0.5, 1.0, -6.0, -0.0], None, [0x97, 0xF2, 0x08], [127]),
        ("mxfp4:rceil", [7.0, -2.0], None, [0xA6], [128]),  # 3.5 ties to 4, -1
        ("mxfp4", [0.0, -0.0], None, [0x80], [0]),  # zeros have the smallest scale
        ("mxfp4", [6 * 2.0**-127, -(2.0**-127)], None, [0xA7], [0]),
        ("mxfp4", [F32_MAX], None, [0x07], [252]),
        ("mxint8", [1.0, -1.0, 127 / 64, -127 / 64], None, [0x40, 0xC0, 0x7F, 0x81], [127]),
        ("mxint8", [2.0**127], None, [0x40], [254]),
        ("mxfp8:e4m3", [448.0, -448.0, 2.0**-9, 0.0], None, [0x7E, 0xFE, 0x01, 0x00], [127]),
        ("mxfp8:e5m2", [57344.0, -1.0, 2.0**-16], None, [0x7B, 0xBC, 0x01], [127]),
        ("mxfp6:e2m3", [7.5, -1.0, 0.125], None, [0x1F, 0x28, 0x01], [127]),
        ("mxfp6:e3m2", [28.0, -1.0, 0.0625], None, [0x1F, 0x2C, 0x01], [127]),
        ("nvfp4", [6.0, -3.0, 0.5], 2688.0, [0xD7, 0x01], [0x38]),
        ("nvfp4", [2688.0, -2688.0], 1344.0, [0xF7], [0x7E]),  # saturates at 448
        ("nvfp4", [6 * 2.0**-9, -(2.0**-9)], 2688.0, [0xA7], [0x01]),
        ("nvint4", [7.0, -7.0, -1.0, 0.0, -0.4], 3136.0, [0x97, 0x0F, 0x00], [0x38]),
        # 4 * 1.5 = 6, which 1 * 6 gives as well; 4 and 3 are exact with 6, 1.5 only with 4.
        ("nvfp4:4over6", [6.0, 4.5, -1.5], 1536.0, [0x56, 0x0A], [0x3C]),
        ("nvfp4:4over6", [6.0, 4.0, -1.5], 1536.0, [0x67, 0x0B], [0x38]),
        ("nvfp4:4over6", [6.0], 1536.0, [0x07], [0x38]),  # a tie keeps 6
        ("nvfp4:mse", [6.0, 4.5, -1.5], 2688.0, [0x56, 0x0A], [0x3C]),
        # 6 under 1, 1.5 and others: a tie keeps the largest, of those that are tried.
        ("nvfp4:mse", [6.0], 2688.0, [0x06], [0x3C]),
        ("nvfp4:mse", [0.0], 2688.0, [0x00], [0x00]),
    ],
)
def test_bytes_by_hand(name, values, amax, codes, scales):
    q = quantize(tensor(values), name, amax=amax)
    fmt = get_format(name)
    width = fmt.block_size * (1 if fmt.element.bits > 4 else fmt.element.bits / 8)
    assert q.codes.shape == (width,)
    assert q.codes[: len(codes)].tolist() == codes
    assert not q.codes[len(codes) :].any()
    assert q.scales.view(torch.uint8).tolist() == scales


@pytest.mark.parametrize("name", MICRO)
def test_shapes_dtypes_and_sizes(name):
    fmt = get_format(name)
    x = gaussian(2, 3, 40, dtype=torch.bfloat16)
    q = quantize(x, name)
    assert isinstance(q, QuantizedTensor)
    blocks = -(-40 // fmt.block_size)
    width = blocks * fmt.block_size // (2 if fmt.element.bits == 4 else 1)
    assert (q.codes.dtype, q.codes.shape) == (torch.uint8, (2, 3, width))
    assert q.scales.shape == (2, 3, blocks)
    assert q.scales.dtype == (torch.uint8 if name in MX else torch.float8_e4m3fn)
    assert (q.format, q.shape, q.dtype) == (fmt, (2, 3, 40), torch.bfloat16)
    assert q.nbytes == 6 * (width + blocks) + (4 if name in NV else 0)
    if name in MX:
        assert q.tensor_scale is None
    else:
        assert q.tensor_scale.shape == ()
        amax = np.float32(x.abs().amax().item())
        assert q.tensor_scale.item() == float(amax / np.float32(fmt.tensor_divisor))


@pytest.mark.parametrize("name", MICRO)
def test_one_amax_for_all_rows_is_the_tensor_scale(name):
    if name in MX:
        with pytest.raises(FormatError, match=rf"{name} has no tensor scale"):
            quantize(torch.ones(4), name, amax=1.0)
        return
    fmt = get_format(name)
    for amax in (3.0, torch.tensor(3.0), torch.tensor([3.0], dtype=torch.float64)):
        q = quantize(gaussian(3, 40), name, amax=amax)
        assert q.tensor_scale.item() == float(np.float32(3) / np.float32(fmt.tensor_divisor))


@pytest.mark.parametrize("name", MX)
def test_the_scale_byte_is_the_exponent(name):
    fmt = get_format(name)
    x = torch.cat([random_bits(300, 32), every_finite(torch.bfloat16).to(torch.float32)])
    peak = x.abs().amax(-1).numpy()
    with np.errstate(all="ignore"):
        expected = mx_exponent(peak, fmt) + 127
    assert quantize(x, name).scales[:, 0].tolist() == expected.tolist()


# ---- the way back -------------------------------------------------------------------------------


def assert_round_trip(x, name, amax=None):
    before = x.clone()
    q = quantize(x, name, amax=amax)
    assert_same(x, before)
    back = q.dequantize()
    assert_same(back, fake_quantize(x, name, amax=amax), x)
    return q


@pytest.mark.parametrize("name", MICRO)
def test_dequantize_equals_fake_quantize(name):
    inputs = [
        *golden_finite().values(),
        *(every_finite(d) for d in DTYPES[1:]),
        random_bits(100, 96),
    ]
    for x in inputs:
        assert_round_trip(x, name)
        if name in NV:
            for factor in (0.3, 3.0):
                amax = (factor * x.abs().amax().to(torch.float32)).clamp(max=F32_MAX).item()
                if amax > 0:
                    assert_round_trip(x, name, amax)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MICRO)
def test_dequantize_for_every_shape(name, dtype):
    for shape in ((), (1,), (40,), (2, 1, 3, 17)):
        assert_round_trip(gaussian(*shape, dtype=dtype), name)
    for shape in ((0,), (0, 32), (3, 0)):
        q = assert_round_trip(torch.empty(shape, dtype=dtype), name)
        assert (q.codes.numel(), q.scales.numel()) == (0, 0)
        assert q.nbytes == (4 if name in NV else 0)
    x = gaussian(8, 50, dtype=dtype)
    for view in (x.T, x[::3, 1::2], x[:1].expand(5, -1)):
        assert_round_trip(view, name)
    for zeros in (torch.zeros(4, 40, dtype=dtype), -torch.zeros(40, dtype=dtype)):
        assert_round_trip(zeros, name)
    limit = torch.finfo(dtype).max
    assert_round_trip(tensor([limit, -limit, limit / 3], dtype), name)


@pytest.mark.parametrize("name", NV)
@pytest.mark.parametrize("amax", [SMALLEST, 2688 * SMALLEST, 1e-30, 1.0, 3e38])
def test_dequantize_at_the_ends_of_the_tensor_scale(name, amax):
    for x in ([1.0, -0.5, 0.3], [SMALLEST, -3 * SMALLEST], [F32_MAX, -1.0], [1e-38, 1e-40]):
        assert_round_trip(tensor(x), name, amax)


@pytest.mark.parametrize("name", MICRO)
def test_the_bytes_are_all_that_counts(name):
    """Decoding by hand, from codes, scales and the tensor scale, in FP64."""
    fmt = get_format(name)
    q = quantize(gaussian(5, 96), name, amax=2.0 if name in NV else None)
    table = values_by_ml_dtypes(fmt.element).astype(np.float64)
    elements = table[_unpacked(q.codes, fmt.element).numpy()].reshape(5, -1, fmt.block_size)
    if name in MX:
        scale = np.ldexp(1.0, q.scales.numpy().astype(int) - 127)
    else:
        e4m3 = q.scales.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
        scale = (e4m3.astype(np.float32) * q.tensor_scale.numpy()).astype(np.float64)
    values = (elements * scale[..., None]).astype(np.float32).reshape(5, 96)
    assert_same(q.dequantize(), torch.from_numpy(values))


def test_nothing_is_shared_with_the_input():
    x = gaussian(4, 64).requires_grad_()
    q = quantize(x, "nvfp4")
    before = q.dequantize()
    assert not before.requires_grad
    with torch.no_grad():
        x.zero_()
    assert_same(q.dequantize(), before)
    assert_same(q.dequantize(), before)  # no step of it is in place


def test_saturation_of_a_16_bit_dtype_on_the_way_back():
    q = quantize(torch.full((32,), 65504.0, dtype=torch.float16), "mxfp4:rceil")
    assert q.dequantize().tolist() == [65504.0] * 32
    q = quantize(torch.full((32,), F32_MAX), "mxfp4:rceil")
    assert q.dequantize().tolist() == [F32_MAX] * 32


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_refused(name, bad):
    x = gaussian(3, 40)
    x[2, 39] = bad
    with pytest.raises(FormatError, match="1 of 120 values of x"):
        quantize(x, name)


def test_quantize_refuses_what_fake_quantize_refuses():
    unchecked = inspect.unwrap(quantize)  # past the type checks that run in tests only
    with pytest.raises(FormatError, match=r"x has dtype torch\.float64.*convert it"):
        unchecked(torch.ones(4, dtype=torch.float64), "mxfp4")
    with pytest.raises(FormatError, match="amax is 0 but x is not all zeros"):
        quantize(torch.ones(4), "nvfp4", amax=0.0)
    with pytest.raises(FormatError, match="unknown format 'nvfp5'"):
        quantize(torch.ones(4), "nvfp5")
    assert bits(quantize(torch.zeros(4), "nvfp4", amax=0.0).dequantize()).tolist() == [0] * 4
