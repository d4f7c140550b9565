"""The formats as data: every E2M1 code against the specification, names, bits, and the errors."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from fp4scope.errors import FormatError
from fp4scope.formats import FORMATS, ElementFormat, ScaleRule, get_format
from fp4scope.formats.spec import ALIASES, E2M1

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


@pytest.mark.parametrize(
    ("element", "reference"),
    [
        (E2M1, ml_dtypes.float4_e2m1fn),
        (
            ElementFormat(name="E2M3", exponent_bits=2, mantissa_bits=3, bias=1, max=7.5),
            ml_dtypes.float6_e2m3fn,
        ),
        (
            ElementFormat(name="E3M2", exponent_bits=3, mantissa_bits=2, bias=3, max=28.0),
            ml_dtypes.float6_e3m2fn,
        ),
    ],
    ids=lambda v: getattr(v, "name", getattr(v, "__name__", "")),
)
def test_magnitudes_by_code_equal_ml_dtypes(element, reference):
    codes = np.arange(2 ** (element.bits - 1), dtype=np.uint8)
    assert list(element.magnitudes) == codes.view(reference).astype(np.float32).tolist()
    info = ml_dtypes.finfo(reference)
    assert element.max == float(info.max)
    assert 2.0**element.min_exponent == float(info.smallest_normal)
    assert 2.0**element.max_exponent <= element.max < 2.0 ** (element.max_exponent + 1)


def test_formats_are_complete():
    rows = {
        name: (f.element, f.block_size, f.rule, f.bits_per_element, f.uses_tensor_amax)
        for name, f in FORMATS.items()
    }
    assert rows == {
        "mxfp4:floor": (E2M1, 32, ScaleRule.FLOOR, 4.25, False),
        "mxfp4:rceil": (E2M1, 32, ScaleRule.RCEIL, 4.25, False),
        "mxfp4:even": (E2M1, 32, ScaleRule.EVEN, 4.25, False),
        "nvfp4": (E2M1, 16, ScaleRule.TENSOR, 4.5, True),
    }
    assert all(name == f.name for name, f in FORMATS.items())


def test_every_rule_has_a_format_a_formula_and_a_source():
    assert {f.rule for f in FORMATS.values()} == set(ScaleRule)
    assert all(rule.formula and rule.source for rule in ScaleRule)


@pytest.mark.parametrize(
    ("name", "full_name"),
    [("mxfp4", "mxfp4:floor"), ("MXFP4:RCEIL", "mxfp4:rceil"), (" NVFP4 ", "nvfp4")]
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
        ("nvpf4", "did you mean nvfp4?"),
        ("mxfp4:ceil", "did you mean mxfp4:rceil"),
        ("int8", "choices: mxfp4:floor, mxfp4:rceil, mxfp4:even, nvfp4"),
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
