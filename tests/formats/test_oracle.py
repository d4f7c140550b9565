"""The oracle on its own: its rounding helpers against numpy and ml_dtypes, and cases by hand."""

import math
import random
from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

from fp4scope.formats import FORMATS, get_format
from fp4scope.formats.oracle import (
    block_scale,
    e4m3,
    f32,
    fake_quantize_block,
    nearest_element,
    tensor_scale,
)

F32_MAX = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149  # the smallest FP32 subnormal
FP4 = get_format("mxfp4")
# A format of every element; HiF4 rounds halves up, and is tested beside its kernels.
ELEMENTS = {f.element.name: name for name, f in FORMATS.items() if name != "hif4"}
MX = [name for name, f in FORMATS.items() if f.scale == "E8M0"]
REFERENCES = {
    "E2M1": "float4_e2m1fn",
    "E2M3": "float6_e2m3fn",
    "E3M2": "float6_e3m2fn",
    "E4M3": "float8_e4m3fn",
    "E5M2": "float8_e5m2",
}


def two_to(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def above(x: float) -> float:
    return float(np.nextafter(np.float32(x), np.float32(np.inf)))


def below(x: float) -> float:
    return float(np.nextafter(np.float32(x), np.float32(0)))


# ---- f32 ----------------------------------------------------------------------------------------


def f32_cases():
    rng = random.Random(0)
    for exponent in range(-152, 128):  # from below the subnormals to the last binade
        yield math.ldexp(1.0, exponent)
        yield from (math.ldexp(rng.uniform(1, 2), exponent) for _ in range(5))
    for x in (1.0, 1.5, 3e38, 2.0**-126, 2.0**-140, 5 * SMALLEST, SMALLEST, F32_MAX):
        low, high = below(x), x  # float64 holds the midpoint of two FP32 numbers exactly
        middle = (low + high) / 2
        yield from (low, high, middle, math.nextafter(middle, 0), math.nextafter(middle, math.inf))
    yield from (0.0, SMALLEST / 2, math.nextafter(SMALLEST / 2, 1), 3 * SMALLEST / 2, F32_MAX)


def test_f32_rounds_doubles_as_numpy_does():
    for x in f32_cases():
        for signed in (x, -x):
            assert float(f32(Fraction(signed))) == float(np.float32(signed)), signed.hex()


@pytest.mark.parametrize("divisor", [3.0, 6.0, 2688.0])
def test_f32_of_a_quotient_is_the_ieee_division(divisor):
    rng = random.Random(1)
    for exponent in range(-149, 128, 3):
        x = np.float32(math.ldexp(rng.uniform(1, 2), exponent))
        expected = float(x / np.float32(divisor))
        assert float(f32(Fraction(float(x)) / Fraction(divisor))) == expected, float(x).hex()


# ---- e4m3 ---------------------------------------------------------------------------------------


def test_e4m3_rounds_as_ml_dtypes_does_at_every_value_midpoint_and_neighbour():
    grid = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert grid[0] == 0
    assert grid[1] == 2.0**-9  # the smallest subnormal
    assert grid[-1] == 448
    points = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2])
    points = np.concatenate([points, np.nextafter(points, 0), np.nextafter(points, 448)])
    for x in points[(points >= 0) & (points <= 448)]:
        expected = float(x.astype(ml_dtypes.float8_e4m3fn))
        assert float(e4m3(Fraction(float(x)))) == expected, float(x).hex()


# ---- nearest_element ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "rounded"),
    [
        *((m, m) for m in FP4.element.magnitudes),
        # Ties to the even code: 0, 1, 2 and 4 have a mantissa bit of 0.
        *((0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4)),
        *((7, 6), (8, 6), (1e30, 6), (3e38, 6)),  # saturates; no infinity to go to
    ],
)
def test_nearest_element_of_grid_points_ties_and_large_values(y, rounded):
    assert nearest_element(Fraction(y), FP4) == Fraction(rounded)
    assert nearest_element(-Fraction(y), FP4) == -Fraction(rounded)


@pytest.mark.parametrize("name", ELEMENTS.values(), ids=ELEMENTS)
def test_nearest_element_on_either_side_of_a_tie(name):
    fmt = get_format(name)
    grid = [Fraction(m) for m in fmt.element.magnitudes]
    for low, high in pairwise(grid):
        tie, tiny = (low + high) / 2, two_to(-200)
        assert nearest_element(tie - tiny, fmt) == low
        assert nearest_element(tie + tiny, fmt) == high
        assert nearest_element(-tie - tiny, fmt) == -high


@pytest.mark.parametrize("name", ELEMENTS.values(), ids=ELEMENTS)
def test_nearest_element_at_grid_points_and_midpoints_is_that_of_ml_dtypes(name):
    fmt = get_format(name)
    element = fmt.element
    grid = np.array(element.magnitudes)
    points = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2])
    if element.integer:
        rounded = np.rint(points / element.smallest) * element.smallest
    else:
        reference = getattr(ml_dtypes, REFERENCES[element.name])
        rounded = points.astype(np.float32).astype(reference).astype(np.float64)
    for point, expected in zip(points.tolist(), rounded.tolist(), strict=True):
        assert nearest_element(Fraction(point), fmt) == Fraction(expected), point
    for large in (element.max * 1.01, 2 * element.max, 3e38, math.ldexp(1, 200)):
        assert nearest_element(Fraction(large), fmt) == Fraction(element.max)
        assert nearest_element(-Fraction(large), fmt) == -Fraction(element.max)


# ---- the three MX scale rules -------------------------------------------------------------------
# The largest E2M1 is 6 = 1.5 * 2^2, so emax = 2.
#   floor: floor(log2 a) - 2          rceil: ceil(log2(fp32(a / 6)))
#   even:  the floor, plus one where the mantissa of a is at least 1.75

MX_EXPONENTS = [
    # amax, floor, rceil, even
    (1.0, -2, -2, -2),  # 1/6 = 0.167 lies in (2^-3, 2^-2]
    (below(1.0), -3, -2, -2),  # mantissa 1.99..: floor drops a binade, even carries it back
    (above(1.0), -2, -2, -2),
    (2.0, -1, -1, -1),
    (6.0, 0, 0, 0),  # a/6 is 2^0 exactly: 6 is stored as 6
    (below(6.0), 0, 0, 0),
    # One step (2^-21) above 6, a/6 = 1 + 0.67 * 2^-23 rounds up to the next FP32 number after 1,
    # so the ceiling is 1. A logarithm in FP32 of that number is 0 and would miss it.
    (above(6.0), 0, 1, 0),
    (below(7.0), 0, 1, 0),
    (7.0, 0, 1, 1),  # 7 = 1.75 * 4, where even begins to round up
    (above(7.0), 0, 1, 1),
    (below(8.0), 0, 1, 1),
    (8.0, 1, 1, 1),
    (12.0, 1, 1, 1),
    (above(12.0), 1, 2, 1),
    # The top: FP32's largest is 1.99.. * 2^127; a/6 = 0.67 * 2^126.
    (F32_MAX, 125, 126, 126),
    (2.0**127, 125, 125, 125),  # 2^127/6 = 0.67 * 2^125
    # The bottom: E8M0 ends at 2^-127.
    (1.5 * 2.0**-125, -127, -127, -127),  # 6 * 2^-127
    # One step above 6 * 2^-127, a/6 is subnormal and rounds back to 2^-127: no 2^-126.
    (above(1.5 * 2.0**-125), -127, -127, -127),
    (1.75 * 2.0**-125, -127, -126, -126),  # a/6 = 1.17 * 2^-127; even carries
    (1.75 * 2.0**-126, -127, -127, -127),  # floor would be -128 and stops at -127
    (2.0**-126, -127, -127, -127),
    (SMALLEST, -127, -127, -127),
]


@pytest.mark.parametrize(
    ("amax", "floor", "rceil", "even"), MX_EXPONENTS, ids=[float(r[0]).hex() for r in MX_EXPONENTS]
)
def test_mx_scale_by_hand(amax, floor, rceil, even):
    scales = {
        rule: block_scale(Fraction(amax), get_format(f"mxfp4:{rule}"), Fraction(0))
        for rule in ("floor", "rceil", "even")
    }
    assert scales == {"floor": two_to(floor), "rceil": two_to(rceil), "even": two_to(even)}


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("k", [-126, -100, -1, 0, 7, 110])
def test_where_the_scale_rules_step(name, k):
    """An amax of max * 2^k has the scale 2^k under every rule. Then each has its own step."""
    fmt = get_format(name)
    element = fmt.element

    def exponent(amax):
        scale = block_scale(Fraction(amax), fmt, Fraction(0))
        return math.frexp(float(scale))[1] - 1

    top = element.max * 2.0**k
    binade = 2.0 ** (k + element.max_exponent)  # where max * 2^k lies
    even = (2 - 2.0 ** -(element.mantissa_bits + 1)) * binade
    assert exponent(top) == k
    assert [exponent(v) for v in (binade, below(2 * binade), 2 * binade)] == {
        "FLOOR": [k, k, k + 1],
        "RCEIL": [k, k + 1, k + 1],
        "EVEN": [k, k + 1, k + 1],
    }[fmt.rule.name]
    assert [exponent(v) for v in (above(top), below(even), even, above(even))] == {
        "FLOOR": [k, k, k, k],
        "RCEIL": [k + 1, k + 1, k + 1, k + 1],
        "EVEN": [k, k, k + 1, k + 1],
    }[fmt.rule.name]


# ---- the NVFP4 scale ----------------------------------------------------------------------------
# A = 2688 makes g = 1, so the block scale is E4M3(a / 6) itself.

NVFP4_SCALES = [
    # block amax, tensor amax, scale
    (6.0, 2688.0, 1),
    (2688.0, 2688.0, 448),
    (6 * 1.0625, 2688.0, 1),  # half-way between 1 and 1.125: to the even mantissa, 000
    (6 * 1.1875, 2688.0, Fraction(5, 4)),  # half-way between 1.125 and 1.25: to 010
    (6 * 2.0**-9, 2688.0, two_to(-9)),  # the smallest subnormal of E4M3 is used
    (9 * 2.0**-9, 2688.0, two_to(-8)),  # 1.5 * 2^-9: half-way between subnormals 1 and 2
    (6 * 2.0**-10, 2688.0, 0),  # half of the smallest subnormal: to 0
    (above(6 * 2.0**-10), 2688.0, two_to(-9)),
    (2688.0, 1344.0, 224),  # A too low by half: 896 saturates at 448, g = 1/2
    (2688.0, 5376.0, 448),  # A too high by half: E4M3 is 224, g = 2
    (0.0, 2688.0, 0),
    # g = fp32(1/2688): by hand only through f32. 1/2688 has no finite binary expansion.
    (1.0, 1.0, f32(448 * f32(Fraction(1, 2688)))),
    # g = fp32(7/2688) = fp32(1/384) and 6 g = 1/64, so that a / (6 g) = 23, half-way between 22
    # and 24: to 24. In another order, (a / 6) / g is 23 - 2^-19 and would go to 22.
    (0.359375, 7.0, f32(24 * f32(Fraction(1, 384)))),
    (SMALLEST, SMALLEST, 0),  # g underflows to 0, so everything does
    # g = 2^-149 = FP32's smallest; a / (6 g) = 1/6, which E4M3 holds as 11/64; but the product
    # 11/64 * 2^-149 underflows: the scale is 0 though its E4M3 part is not.
    (SMALLEST, 2688 * SMALLEST, 0),
    # Here a / (6 g) = 1 and d = 2^-149.
    (6 * SMALLEST, 2688 * SMALLEST, Fraction(SMALLEST)),
]


@pytest.mark.parametrize(("amax", "tensor_amax", "scale"), NVFP4_SCALES)
def test_nvfp4_scale_by_hand(amax, tensor_amax, scale):
    assert block_scale(Fraction(amax), FORMATS["nvfp4"], Fraction(tensor_amax)) == scale


def test_nvint4_and_four_over_six_have_their_own_tensor_scales():
    # 448 * 7 = 3136, and 256 * 6 = 1536.
    for name, tensor_amax in (("nvfp4", 2688.0), ("nvint4", 3136.0), ("nvfp4:4over6", 1536.0)):
        fmt = get_format(name)
        assert tensor_scale(Fraction(tensor_amax), fmt) == 1
        assert tensor_scale(Fraction(1.0), fmt) == f32(Fraction(1) / Fraction(tensor_amax))
        largest = Fraction(fmt.element.max)
        assert block_scale(largest, fmt, Fraction(tensor_amax)) == 1
        assert block_scale(1000 * largest, fmt, Fraction(tensor_amax)) == 448


# ---- whole blocks -------------------------------------------------------------------------------


CLIPPED = [6.0, *[0.9375 * n for n in (1.5, 1.0, 3.0) for _ in range(5)]]


@pytest.mark.parametrize(
    ("name", "values", "tensor_amax", "expected"),
    [
        # Scale 1 (amax 6 for every MX rule): the values are their own grid coordinates.
        *((n, [6, 0.2, -0.75, 2.5, 5], None, [6, 0, -1, 2, 4]) for n in FORMATS if "mxfp4" in n),
        # amax 7: floor clips at 6 * 1; rceil and even take scale 2, where 7/2 ties to 4.
        ("mxfp4:floor", [7, 1, -0.5], None, [6, 1, -0.5]),
        ("mxfp4:rceil", [7, 1, -0.5], None, [8, 1, 0]),
        ("mxfp4:even", [7, 1, -0.5], None, [8, 1, 0]),
        # amax 6.5: only rceil takes scale 2, where 6.5/2 = 3.25 rounds to 3.
        ("mxfp4:floor", [6.5, 5], None, [6, 4]),
        ("mxfp4:rceil", [6.5, 5], None, [6, 4]),
        ("mxfp4:even", [6.5, 3], None, [6, 3]),
        ("mxfp4:rceil", [6.5, 3], None, [6, 3]),
        # The top of FP32 under scale 2^126: 3.99.. rounds to 4 = 2^128, which saturates.
        ("mxfp4:rceil", [F32_MAX, -(2.0**126)], None, [F32_MAX, -(2.0**126)]),
        ("mxfp4:floor", [F32_MAX], None, [6 * 2.0**125]),
        # The bottom: scale 2^-127 = 2^22 * SMALLEST, whose half step is 2^20 * SMALLEST.
        ("mxfp4", [2.0**-129, above(2.0**-129)], None, [0, 2.0**-128]),
        # NVFP4 with g = 1 and s = 1; then A too low by half, which clips at 6 * 224.
        ("nvfp4", [6, -2.6, 0.25], 2688.0, [6, -3, 0]),
        ("nvfp4", [2688, 224, -100], 1344.0, [1344, 224, -112]),
        ("nvfp4", [1, -2, 3], 0.0, [0, 0, 0]),
        ("nvfp4", [SMALLEST, -SMALLEST], None, [0, 0]),
        # The FP32 roundings are in the definition: g = fp32(11 / 2688) is no exact 11 / 2688, and
        # 6 * fp32(448 g) misses 11 by one step.
        ("nvfp4", [11], None, [above(11.0)]),
        # Integers, multiples of 1/64 in [-127/64, 127/64]: scale 1, then 2, and no -128/64.
        ("mxint8", [1, -0.5, 1 / 64, 1 / 128, 3 / 128], None, [1, -0.5, 1 / 64, 0, 2 / 64]),
        ("mxint8", [2, 1 / 64, -3 / 64], None, [2, 0, -4 / 64]),
        ("mxint8", [-below(2.0)], None, [-127 / 64]),
        # Integers in [-7, 7], scale 1; ties to even.
        ("nvint4", [7, -6.5, 2.5, 0.5, -1.5], 3136.0, [7, -6, 2, 0, -2]),
        ("nvint4", [3136, -7000], 1568.0, [1568, -1568]),
        # E2M3 with scale 1: steps of 1/8 below 2, of 1/2 above 4; 7.75 is a tie with 8.
        ("mxfp6:e2m3:floor", [7.5, 0.1875, 4.25, 1.1], None, [7.5, 0.25, 4, 1.125]),
        ("mxfp6:e2m3:floor", [7.75, 0.125], None, [7.5, 0.125]),
        ("mxfp6:e2m3:rceil", [7.75, 0.125], None, [8, 0]),
        ("mxfp6:e2m3:even", [7.75, 0.125], None, [8, 0]),
        ("mxfp6:e2m3:even", [below(7.75), 0.125], None, [7.5, 0.125]),
        # E3M2 with scale 1: the largest is 28, the smallest 1/16.
        ("mxfp6:e3m2", [28, 0.0625, 0.03125, -27], None, [28, 0.0625, 0, -28]),
        # E4M3 with scale 1: 464 is a tie with 480, which is NaN in E4M3.
        ("mxfp8:e4m3:floor", [464, 2.0**-9, 500], None, [448, 2.0**-9, 448]),
        ("mxfp8:e4m3:rceil", [464, 2.0**-9], None, [448, 0]),
        ("mxfp8:e4m3:even", [464, 2.0**-9, -300], None, [448, 2.0**-9, -288]),
        ("mxfp8:e5m2", [57344, 2.0**-16, 2.0**-17, 60000], None, [57344, 2.0**-16, 0, 57344]),
        # Four over six with g = 1. 4.5 is worst under 6's scale 1 and exact under 1.5.
        ("nvfp4:4over6", [6, 4.5, -1.5], 1536.0, [6, 4.5, -1.5]),
        ("nvfp4:4over6", [6, 4, -1.5, 0.5], 1536.0, [6, 4, -1.5, 0.5]),
        # 5 is nearer to 4.5 = 3 * 1.5 than to 4.
        ("nvfp4:4over6", [6, 5], 1536.0, [6, 4.5]),
        # 4.25 is as far from 4 as from 4.5: a tie, where 6's scale stays.
        ("nvfp4:4over6", [6, 4.25], 1536.0, [6, 4]),
        # An amax far too small: both scales are 448, and |x| / g is beyond FP32.
        ("nvfp4:4over6", [3e38, -1.0], 1536 * 2.0**-100, [2688 * 2.0**-100, -2688 * 2.0**-100]),
        ("nvfp4:4over6", [1.0, 0.0], SMALLEST, [0, 0]),  # g underflows
        # Searched, with g = 1. 1.5 is 4 codes above 1, and exact: 6, 4.5 and 1.5 are multiples.
        ("nvfp4:mse", [6, 4.5, -1.5], 2688.0, [6, 4.5, -1.5]),
        # Exact under the next scale below 1, but for 6, which is clipped: 0.375^2 is the least.
        ("nvfp4:mse", CLIPPED, 2688.0, [5.625, *CLIPPED[1:]]),
        # Exact under 1, which is 5 codes above the scale of the amax.
        ("nvfp4:mse", [4, 2], 2688.0, [4, 2]),
        ("nvfp4:mse", [3e38, -1.0], 2688 * 2.0**-100, [2688 * 2.0**-100, -2688 * 2.0**-100]),
        ("nvfp4:mse", [1.0, 0.0], SMALLEST, [0, 0]),
        # The scale of the amax rounds to 0; those above are tried.
        ("nvfp4:mse", [2.0**-9, 0], 2688.0, [2.0**-9, 0]),
    ],
)
def test_blocks_by_hand(name, values, tensor_amax, expected):
    values = [float(v) for v in values]
    assert fake_quantize_block(values, get_format(name), tensor_amax) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_keep_their_sign_but_for_integers(name):
    fmt = get_format(name)
    for values in ([0.0, -0.0], [6.0, 0.0, -0.0, 1e-9, -1e-9, -6.0]):
        out = fake_quantize_block(values, fmt)
        signs = [math.copysign(1, v) for v in values]
        if fmt.element.integer:
            signs = [-1 if v < 0 else 1 for v in out]
        assert [math.copysign(1, v) for v in out] == signs


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_block_is_empty(name):
    assert fake_quantize_block([], get_format(name)) == []
