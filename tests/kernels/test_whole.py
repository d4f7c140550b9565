"""FP8 with one scale for a tensor: torch's cast is the rounding that the oracle defines."""

import pytest
import torch

from fp4scope.errors import FormatError
from fp4scope.formats import CACHE_FORMATS, FORMATS, get_cache_format, get_format, oracle
from fp4scope.kernels import qdq
from fp4scope.study import Study

VALUES = torch.cat(
    [
        torch.tensor([0.0, -0.0, 448.0, -449.0, 464.0, 480.0, 1e9, 2.0**-9, 2.0**-10, 3e-4, -1e-9]),
        # Every midpoint of E4M3, and its neighbours.
        torch.tensor(
            [
                (a + b) / 2 * (1 + e)
                for a, b in zip(
                    FORMATS["mxfp8:e4m3:floor"].element.magnitudes,
                    FORMATS["mxfp8:e4m3:floor"].element.magnitudes[1:],
                    strict=False,
                )
                for e in (-1e-6, 0.0, 1e-6)
            ]
        ),
        torch.randn(200, generator=torch.Generator().manual_seed(0)) ** 5,
    ]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "amax"), [("fp8", None), ("fp8:calibrated", 100.0)])
def test_as_the_oracle_has_it(name, amax, dtype):
    fmt = CACHE_FORMATS[name]
    x = VALUES.clamp(-6e4, 6e4).to(dtype)
    given = None if amax is None else torch.tensor(amax)
    found = qdq(x, fmt, given)
    expected = oracle.fake_quantize_block(x.tolist(), fmt, amax)
    assert found.dtype == dtype
    assert torch.equal(found, torch.tensor(expected).to(dtype))
    assert torch.equal(found.signbit(), x.signbit())


def test_one_scale_for_each_row_and_none_for_zeros():
    fmt = CACHE_FORMATS["fp8:calibrated"]
    x = torch.stack([VALUES[-64:], 100 * VALUES[-64:], 0 * VALUES[-64:]])
    amax = x.abs().amax(-1, keepdim=True)
    found = qdq(x, fmt, amax)
    assert torch.equal(found, torch.stack([qdq(row, fmt) for row in x]))
    assert not found[2].any()


def test_what_is_not_finite_is_seen():
    flag = torch.zeros((), dtype=torch.bool)
    qdq(torch.ones(3), CACHE_FORMATS["fp8"], None, flag)
    assert not flag
    qdq(torch.tensor([1.0, torch.inf]), CACHE_FORMATS["fp8"], None, flag)
    assert flag


def test_fp8_is_for_caches_alone():
    assert get_cache_format("FP8") is CACHE_FORMATS["fp8"]
    assert get_cache_format("mxfp8") is get_format("mxfp8") is FORMATS["mxfp8:e4m3:floor"]
    with pytest.raises(FormatError, match=r"fp8 has one scale .* it is for --kv-cache"):
        Study.build(model="x", formats="fp8")
    with pytest.raises(FormatError, match=r"fp8 has one scale .* it is for --kv-cache"):
        Study.build(model="x", all_quantized="fp8/w4a16")
