"""FP8 with a scale for a row, a square, a block or the tensor, and HiF4: on every backend."""

import math
import os

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp4scope.errors import FormatError, StudyError
from fp4scope.formats import CACHE_FORMATS, FORMATS, get_cache_format, get_format, oracle
from fp4scope.formats.spec import E4M3
from fp4scope.kernels import fake_quantize, qdq, quantize, using
from fp4scope.study import Study
from fp4scope.treatments import Setting

from .reference import (
    DTYPES,
    F32_MAX,
    HERE,
    assert_same,
    cast,
    gaussian,
    neighbours,
    random_bits,
)

WHOLE = ["fp8", "fp8:tensor", "fp8:block128", "fp8:block128:ue8m0", "hif4"]
FORMS = {name: get_format(name) for name in WHOLE}
FORMS |= {f"{n} of inputs": get_format(n).for_input for n in WHOLE if "block" in n}
FORMS |= CACHE_FORMATS
SQUARES = [name for name in WHOLE if "block" in name]


def inputs():
    """Random bits, rows of every magnitude, and edges of E4M3 of each."""
    for dtype in DTYPES:
        limit = torch.finfo(dtype).max
        yield random_bits(9, 192, seed=1).clamp(-limit, limit).to(dtype)
        yield gaussian(3, 5, 130, dtype=dtype) ** 3
    yield torch.ldexp(gaussian(87, 64, seed=2), (torch.arange(87) * 3 - 132).int()[:, None])
    points = torch.tensor(E4M3.magnitudes)
    edges = torch.from_numpy(neighbours(((points[1:] + points[:-1]) / 2).numpy()))
    yield torch.cat([edges, torch.tensor([448.0])])[None] * torch.tensor([[1.0], [0.37], [-3e-5]])
    # Amaxes beside the steps of E6M2 and of E8M0.
    peaks = torch.from_numpy(neighbours([m * 2.0**k for m in (1, 1.75, 7, 7.9) for k in (-50, 3)]))
    yield torch.linspace(-1, 1, 64) * peaks[:, None]
    yield torch.zeros(2, 64)
    yield torch.tensor([F32_MAX, -F32_MAX, 1.0, 2.0**-149])


def by_oracle(x, fmt, amax=None):
    """Block by block, wherever what shares a scale lies."""
    if fmt.uses_tensor_amax and amax is None:
        amax = x.abs().amax().item()
    values = x.float().reshape(-1, *(x.shape[-2:] if x.ndim > 1 else (1, x.numel()))).numpy()
    out = np.empty_like(values)
    _, rows, cols = values.shape
    size = fmt.block_size
    down, across = {"row": (1, cols), "tensor": (rows, cols)}.get(fmt.block, (1, size))
    down = size if fmt.block == f"{size}x{size}" else down
    for matrix, into in zip(values, out, strict=True):
        for i in range(0, rows, down):
            for j in range(0, cols, across):
                own = matrix[i : i + down, j : j + across]
                found = oracle.fake_quantize_block(own.ravel().tolist(), fmt, amax)
                into[i : i + down, j : j + across] = np.reshape(found, own.shape)
    return cast(out.reshape(x.shape), x.dtype)


@pytest.mark.parametrize("name", FORMS)
def test_torch_has_the_bits_of_the_oracle(name):
    fmt = FORMS[name]
    few = [x[..., :200] if x.ndim < 2 else x[..., :10, :200] for x in inputs() if x.numel()]
    for x in few:
        for amax in (None, 3.0) if fmt.uses_tensor_amax else (None,):
            with using("torch"):
                found = qdq(x, fmt, None if amax is None else torch.tensor(amax))
            assert_same(found, by_oracle(x, fmt, amax), x)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("other", [b for b in HERE if b != "torch"])
def test_every_backend_has_the_bits_of_torch(other, name):
    fmt = FORMS[name]
    for x in inputs():
        amaxes = [None]
        if fmt.uses_tensor_amax and x.numel():
            amaxes += [torch.tensor(3.0), torch.tensor(1e-40), torch.tensor(F32_MAX)]
            if x.ndim == 2:
                amaxes += [x.float().abs().amax(-1, keepdim=True)]
        for amax in amaxes:
            results = []
            for each in ("torch", other):
                with using(each):
                    results.append(qdq(x, fmt, amax))
            assert_same(results[1], results[0], x)


@pytest.mark.parametrize("name", FORMS)
def test_cuda_kernels_in_triton_s_interpreter(name, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    if not os.environ.get("TRITON_INTERPRET"):
        pytest.skip("needs TRITON_INTERPRET=1, which scripts/test sets")
    from triton.runtime import interpreter

    from fp4scope.kernels import dispatch

    from .test_fused import fma

    def create_fma(self, x, y, z):
        return interpreter.TensorHandle(fma(x.data, y.data, z.data), z.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", create_fma)
    fmt = FORMS[name]
    tried = 0
    for x in inputs():
        # The interpreter truncates to BF16 where a GPU rounds.
        if x.dtype == torch.bfloat16 or x.numel() == 0:
            continue
        amaxes = [None]
        if fmt.uses_tensor_amax:
            amaxes += [torch.tensor(3.0), torch.tensor(1e-40)]
            if x.ndim == 2:
                amaxes += [x.float().abs().amax(-1, keepdim=True)]
        for amax in amaxes:
            with using("torch"):
                expected = qdq(x, fmt, amax)
            flag = torch.zeros((), dtype=torch.bool)
            with monkeypatch.context() as patched, np.errstate(all="ignore"):
                patched.setattr(dispatch, "backend", lambda device: "triton")
                found = qdq(x, fmt, amax, flag)
            assert_same(found, expected, x)
            assert not flag
            tried += 1
    assert tried > 7
    with monkeypatch.context() as patched, np.errstate(all="ignore"):
        patched.setattr(dispatch, "backend", lambda device: "triton")
        x = gaussian(5, 300)
        x[4, 299] = torch.inf
        qdq(x, fmt, torch.tensor(1.0) if fmt.uses_tensor_amax else None, flag)
    assert flag


# ---- against arithmetic that shares nothing -----------------------------------------------------


def e4m3(values):
    return np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def test_one_scale_for_each_row_as_compressed_tensors_has_it():
    x = gaussian(7, 300) * torch.logspace(-6, 3, 7)[:, None]
    values = x.numpy()
    scale = np.abs(values).max(-1, keepdims=True) / np.float32(448)
    assert_same(fake_quantize(x, "fp8"), torch.from_numpy(e4m3(values / scale) * scale))


@pytest.mark.parametrize("powers", [False, True])
def test_squares_of_a_weight_and_blocks_of_a_token(powers):
    fmt = get_format("fp8:block128" + ":ue8m0" * powers)
    x = gaussian(200, 300) ** 3
    expected, of_tokens = x.numpy().copy(), x.numpy().copy()
    for target, down in ((expected, 128), (of_tokens, 1)):
        for i in range(0, 200, down):
            for j in range(0, 300, 128):
                own = target[i : i + down, j : j + 128]
                scale = np.abs(own).max() / np.float32(448)
                if powers:
                    scale = np.float32(2.0 ** math.ceil(math.log2(scale)))
                own[:] = e4m3(own / scale) * scale
    assert_same(fake_quantize(x, fmt), torch.from_numpy(expected))
    assert_same(fake_quantize(x, fmt.for_input), torch.from_numpy(of_tokens))
    assert_same(fake_quantize(x.expand(2, 200, 300), fmt)[1], torch.from_numpy(expected))


def test_rows_so_small_that_their_scale_is_zero_become_zeros():
    """FP32 has no 2^-149 / 448. vLLM's floor, 1 / (448 * 512), is far above and not ours."""
    x = torch.tensor([[2.0**-149, -(2.0**-149)], [1e-6, 5e-7]])
    found = fake_quantize(x, "fp8")
    assert found[0].tolist() == [0, 0]
    assert found[0].signbit().tolist() == [False, True]
    assert found[1, 0] == pytest.approx(1e-6, rel=1e-6)
    floored = e4m3(x[1].numpy() * np.float32(448 * 512)) / np.float32(448 * 512)
    assert floored[0] != found[1, 0]


# ---- HiF4 ---------------------------------------------------------------------------------------

HIF4 = {
    # name: (values, E6M2 byte, groups of 8, groups of 4, first codes, first dequantized)
    "scale 1, both bits": ([7.0, 3.5, 0.5, -7.0], 0xC0, 1, 1, [7, 4, 1, 15], [7, 4, 1, -7]),
    "no bits": ([1.75, -1.0, 0.125, 0.124, 7], 0xC0, 1, 2, [4, 10, 0, 0], [2, -1, 0, 0]),
    "halves go up": ([7.0, 0.5, 1.5, 2.5], 0xC0, 1, 1, [7, 1, 2, 3], [7, 1, 2, 3]),
    "smallest scale": ([2.0**-60], 0x00, 0, 0, [0], [0.0]),
    "largest scale": ([3e38], 0xFE, 1, 1, [7], [344064.0]),
}


@pytest.mark.parametrize("name", HIF4)
def test_bytes_of_hif4(name):
    values, scale, eights, fours, codes, expected = HIF4[name]
    x = torch.zeros(64)
    x[: len(values)] = torch.tensor(values)
    found = quantize(x, "hif4")
    assert found.scales.tolist() == [[scale, eights, fours, 0]]
    nibbles = torch.stack([found.codes & 15, found.codes >> 4], -1).flatten()
    assert nibbles[: len(codes)].tolist() == codes
    assert found.dequantize()[: len(expected)].tolist() == expected
    assert oracle.fake_quantize_block(x.tolist(), FORMS["hif4"])[: len(expected)] == expected
    assert found.nbytes == 64 * 4.5 / 8


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=64, max_size=64),
    st.sampled_from(HERE),
)
def test_hif4_is_the_oracle_s(values, name):
    if name == "triton":
        name = "torch"
    x = torch.tensor(values)
    with using(name):
        found = fake_quantize(x, "hif4")
    assert_same(found, torch.tensor(oracle.fake_quantize_block(x.tolist(), FORMS["hif4"])), x)


def test_values_of_hif4_lie_on_its_grid_and_are_near():
    x = gaussian(50, 64)
    for row, quantized in zip(x, fake_quantize(x, "hif4"), strict=True):
        s = float(oracle.hif4_scale(oracle.Fraction(row.abs().max().item())))
        steps = quantized / (s / 4)
        assert torch.equal(steps, steps.round())
        assert (quantized - row).abs().max() <= s  # half a step of 2 s, and what is clipped


# ---- properties ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(-100, 100), st.integers(0, 1000), st.sampled_from(WHOLE))
def test_powers_of_two_and_signs_commute(k, seed, name):
    k = k // 10 if name == "hif4" else k
    x = gaussian(3, 200, seed=seed)
    once = fake_quantize(x, name)
    assert_same(fake_quantize(torch.ldexp(x, torch.tensor(k)), name), once * 2.0**k)
    assert_same(fake_quantize(-x, name), -once)


@pytest.mark.parametrize("name", [n for n in WHOLE if n != "hif4"])
def test_quantizing_twice_is_quantizing_once(name):
    x = gaussian(200, 300) ** 3
    once = fake_quantize(x, name)
    # A scale that is rounded may come out one unit apart.
    assert torch.allclose(fake_quantize(once, name), once, rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("shape", [(), (1,), (40,), (0,), (0, 32), (3, 0), (2, 3, 40), (130, 257)])
def test_bytes_give_the_values_again_in_every_shape(name, shape):
    for dtype in DTYPES:
        x = gaussian(*shape, dtype=dtype)
        packed = quantize(x, name)
        assert_same(packed.dequantize(), fake_quantize(x, name), x)


def test_bytes_of_fp8():
    x = torch.tensor([[448.0, -1.0, 0.0], [0.5, 0.25, 2.0**-9]])
    rows = quantize(x, "fp8")
    assert rows.codes.tolist() == [[0x7E, 0xB8, 0x00], [0x7E, 0x76, 0x3E]]
    assert rows.scales.tolist() == [[1.0], [np.float32(0.5) / np.float32(448)]]
    assert rows.tensor_scale is None
    whole = quantize(x, "fp8:tensor")
    assert (whole.scales, whole.tensor_scale.item()) == (None, 1.0)
    assert whole.codes.tolist() == [[0x7E, 0xB8, 0x00], [0x30, 0x28, 0x01]]
    assert quantize(x, "fp8:tensor", amax=896.0).tensor_scale == 2.0
    stored = whole.codes.view(torch.float8_e4m3fn).float() * whole.tensor_scale
    assert_same(stored, whole.dequantize())
    squares = quantize(gaussian(200, 300), "fp8:block128")
    assert (squares.codes.shape, squares.scales.shape) == ((200, 300), (2, 3))
    powers = quantize(gaussian(2, 200, 300), "fp8:block128:ue8m0")
    assert (powers.scales.shape, powers.scales.dtype) == ((2, 2, 3), torch.uint8)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("backend", [b for b in HERE if b != "triton"])
def test_what_is_not_finite_is_seen(backend, name):
    fmt = FORMS[name]
    amax = torch.tensor(1.0) if fmt.uses_tensor_amax else None
    with using(backend):
        for bad in (None, math.nan, -math.inf):
            x, flag = gaussian(5, 200), torch.zeros((), dtype=torch.bool)
            if bad is not None:
                x[3, 199] = bad
            qdq(x, fmt, amax, flag)
            assert bool(flag) == (bad is not None)


# ---- names --------------------------------------------------------------------------------------


def test_fp8_of_a_cache_has_no_scale_and_fp8_of_a_linear_one_for_each_row():
    assert get_cache_format("FP8") is CACHE_FORMATS["fp8:unscaled"]
    assert get_format("fp8") is FORMATS["fp8"]
    assert get_cache_format("fp8:calibrated") is get_format("fp8:calibrated")
    assert get_format("fp8:calibrated") is FORMATS["fp8:tensor"]
    assert get_cache_format("mxfp8") is get_format("mxfp8") is FORMATS["mxfp8:e4m3:floor"]
    with pytest.raises(FormatError, match=r"fp8:unscaled has no scale; it is for --kv-cache"):
        Study.build(model="x", formats="fp8:unscaled")
    study = Study.build(model="x", kv_cache="fp8", formats="fp8")
    assert study.question.kv_cache is CACHE_FORMATS["fp8:unscaled"]
    assert study.question.formats[0].weight is FORMATS["fp8"]


def test_weight_and_input_of_a_setting_may_have_formats_of_their_own():
    setting = Setting.from_json("nvfp4:4over6/nvfp4")
    assert setting.to_json() == {"weight": "nvfp4:4over6", "input": "nvfp4"}
    assert setting.format == "nvfp4:4over6/nvfp4"
    assert Setting.from_json("fp8") == Setting.from_json("fp8/fp8")
    with pytest.raises(StudyError, match=r"unknown 'nvfp' in 'nvfp4/nvfp'; .* did you mean nvfp4"):
        Setting.from_json("nvfp4/nvfp")


def test_recipes_tell_the_two_apart():
    for name in ("fp8", "fp8:unscaled", "fp8:tensor"):
        setting = Setting.from_json({"input": name})
        assert setting.to_json() == {"input": name}
        assert Setting.from_json(setting.to_json()) == setting
