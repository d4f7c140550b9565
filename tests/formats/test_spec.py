"""The formats as data: every E2M1 code against the specification, names, bits, and the errors."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from fp4scope.errors import FormatError
from fp4scope.formats import FORMATS, ScaleRule, get_format
from fp4scope.formats.spec import (
    ALIASES,
    CACHE_FORMATS,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    INT4,
    INT8,
    S1P2,
    WEIGHT_FORMATS,
    Span,
)

# OCP MX v1.0, table 5: the value of S_EE_M, by its three bits EE_M.
TABLE_5 = {
    0b00_0: 0.0,
    0b00_1: 0.5,  # the one subnormal
    0b01_0: 1.0,
    0b01_1: 1.5,
    0b10_0: 2.0,
    0b10_1: 3.0,
    0b11_0: 4.0,
    0b11_1: 6.0,
}


def test_every_e2m1_code_has_the_value_of_the_specification():
    assert dict(enumerate(E2M1.magnitudes)) == TABLE_5


def test_e2m1_parameters_are_those_of_the_specification():
    # Table 5 too: bias 1, largest 6.0 = 2^2 * 1.5, smallest normal 1.0 = 2^0, no Inf, no NaN.
    assert (E2M1.bits, E2M1.exponent_bits, E2M1.mantissa_bits, E2M1.bias) == (4, 2, 1, 1)
    assert (E2M1.max, E2M1.max_exponent, E2M1.min_exponent) == (6.0, 2, 0)
    assert E2M1.max == E2M1.magnitudes[-1]


FLOATS = [
    (E2M1, ml_dtypes.float4_e2m1fn),
    (E2M3, ml_dtypes.float6_e2m3fn),
    (E3M2, ml_dtypes.float6_e3m2fn),
    (E4M3, ml_dtypes.float8_e4m3fn),
    (E5M2, ml_dtypes.float8_e5m2),
]


@pytest.mark.parametrize(
    ("element", "reference"), FLOATS, ids=lambda v: getattr(v, "name", getattr(v, "__name__", ""))
)
def test_magnitudes_by_code_equal_ml_dtypes(element, reference):
    codes = np.arange(2 ** (element.bits - 1), dtype=np.uint8)
    values = codes.view(reference).astype(np.float32)
    used = len(element.magnitudes)
    assert list(element.magnitudes) == values[:used].tolist()
    assert not np.isfinite(values[used:]).any(), "codes past the largest are NaN or Inf"
    info = ml_dtypes.finfo(reference)
    assert element.bits == info.bits
    assert element.max == float(info.max) == element.magnitudes[-1]
    assert 2.0**element.min_exponent == float(info.smallest_normal)
    assert element.smallest == float(info.smallest_subnormal) == element.magnitudes[1]
    assert 2.0**element.max_exponent <= element.max < 2.0 ** (element.max_exponent + 1)
    assert not element.integer


@pytest.mark.parametrize(("element", "bits", "unit"), [(INT4, 4, 1), (INT8, 8, 1 / 64)])
def test_integers_are_floats_of_one_binade(element, bits, unit):
    """Symmetric: the most negative of two's complement is left unused."""
    assert (element.bits, element.integer, element.smallest) == (bits, True, unit)
    largest = 2 ** (bits - 1) - 1
    assert element.magnitudes == tuple(n * unit for n in range(largest + 1))
    assert element.max == largest * unit == element.magnitudes[-1]
    if element is INT4:
        assert largest == int(ml_dtypes.iinfo(ml_dtypes.int4).max)
        assert element.max_exponent == 2
    else:  # MX: largest exponent 0, and an implied scale of 2^-6 (OCP MX v1.0, section 5.3.4)
        assert element.max_exponent == 0


def test_every_element_is_checked_above():
    assert {f.element for f in FORMATS.values()} == {*(e for e, _ in FLOATS), INT4, INT8, S1P2}


def test_formats_are_complete():
    rows = {
        name: (f.element, f.block_size, f.rule, f.bits_per_element, f.uses_tensor_amax)
        for name, f in FORMATS.items()
    }
    rules = (ScaleRule.FLOOR, ScaleRule.RCEIL, ScaleRule.EVEN)
    mx = (
        ("mxfp4", E2M1, 4.25),
        ("mxfp6:e2m3", E2M3, 6.25),
        ("mxfp6:e3m2", E3M2, 6.25),
        ("mxfp8:e4m3", E4M3, 8.25),
        ("mxfp8:e5m2", E5M2, 8.25),
    )
    assert rows == {
        **{f"{n}:{r.name.lower()}": (e, 32, r, b, False) for n, e, b in mx for r in rules},
        "mxint8": (INT8, 32, ScaleRule.FLOOR, 8.25, False),
        "nvfp4": (E2M1, 16, ScaleRule.TENSOR, 4.5, True),
        "nvfp4:4over6": (E2M1, 16, ScaleRule.FOUR_OVER_SIX, 4.5, True),
        "nvfp4:mse": (E2M1, 16, ScaleRule.MSE, 4.5, True),
        "nvint4": (INT4, 16, ScaleRule.TENSOR, 4.5, True),
        "hif4": (S1P2, 64, ScaleRule.HIF4, 4.5, False),
        "fp8": (E4M3, 1, ScaleRule.AMAX, 8.0, False),
        "fp8:tensor": (E4M3, 1, ScaleRule.AMAX, 8.0, True),
        "fp8:block128": (E4M3, 128, ScaleRule.AMAX, 8 + 32 / 128**2, False),
        "fp8:block128:ue8m0": (E4M3, 128, ScaleRule.RCEIL, 8 + 8 / 128**2, False),
    }
    assert all(name == f.name for name, f in FORMATS.items())
    scales = {f.scale: f.scale_bits for f in FORMATS.values()}
    assert scales == {"E8M0": 8, "E4M3 x FP32": 8, "FP32": 32, "E6M2 x 2^{0,1,2}": 32}


def test_what_shares_a_scale():
    spans = {n: f.block for n, f in FORMATS.items() if "fp8" in n and "mx" not in n}
    assert spans == {
        "fp8": "row",
        "fp8:tensor": "tensor",
        "fp8:block128": "128x128",
        "fp8:block128:ue8m0": "128x128",
    }
    squares = FORMATS["fp8:block128"]
    assert (squares.for_input.block, squares.for_input.name) == ("128", squares.name)
    assert squares.for_input is squares.for_input, "looked up by identity"
    assert {n for n, f in FORMATS.items() if f.for_input is not f} == {
        n for n in spans if "k1" in n
    }
    assert FORMATS["nvfp4"].block == "16"
    assert FORMATS["fp8"].bits_in(896) == 8 + 32 / 896
    assert FORMATS["fp8"].span is Span.ROW


def test_magnitudes_of_hif4_are_quarters():
    assert S1P2.magnitudes == tuple(n / 4 for n in range(8))
    assert (S1P2.bits, S1P2.smallest) == (4, 0.25)


def test_tensor_divisors():
    """448 is the largest E4M3; four over six leaves room for 1.5 times 256, also E4M3."""
    divisors = {name: f.tensor_divisor for name, f in FORMATS.items() if f.uses_tensor_amax}
    assert divisors == {
        "nvfp4": 2688.0,
        "nvfp4:4over6": 1536.0,
        "nvfp4:mse": 2688.0,
        "nvint4": 3136.0,
        "fp8:tensor": 448.0,
    }
    assert 1.5 * 256 in E4M3.magnitudes


def test_every_rule_has_a_format_a_formula_and_a_source():
    known = FORMATS | CACHE_FORMATS | WEIGHT_FORMATS
    assert {f.rule for f in known.values()} == set(ScaleRule)
    assert all(rule.formula and rule.source for rule in ScaleRule)


@pytest.mark.parametrize(
    ("name", "full_name"),
    [
        ("mxfp4", "mxfp4:floor"),
        ("mxfp6:e3m2", "mxfp6:e3m2:floor"),
        ("MXFP4:RCEIL", "mxfp4:rceil"),
        (" NVFP4 ", "nvfp4"),
    ]
    + [(name, name) for name in FORMATS],
)
def test_names_and_aliases(name, full_name):
    assert get_format(name) is FORMATS[full_name]


def test_aliases_name_formats_and_hide_none():
    assert set(ALIASES.values()) <= set(FORMATS)
    assert not set(ALIASES) & set(FORMATS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nvpf4", "did you mean nvfp4"),
        ("mxfp4:ceil", "did you mean mxfp4:rceil"),
        (
            "bf16",
            "choices: mxfp4:floor, mxfp4:rceil, mxfp4:even, nvfp4, nvfp4:4over6, nvfp4:mse",
        ),
        ("int8", "did you mean mxint8"),
        ("", "choices: mxfp4:floor"),
    ],
)
def test_unknown_format_names_the_value_and_the_nearest(name, hint):
    with pytest.raises(FormatError) as error:
        get_format(name)
    assert repr(name) in str(error.value)
    assert hint in str(error.value)
    assert isinstance(error.value, ValueError)


def test_formats_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        E2M1.max = 8.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_format("nvfp4").block_size = 32
