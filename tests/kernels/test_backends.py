"""Backends: each gives the bits of plain torch, on many inputs; which one runs; threads."""

import numpy as np
import pytest
import torch

from fp4scope.errors import FormatError
from fp4scope.formats import get_format
from fp4scope.formats.spec import E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8
from fp4scope.kernels import BACKENDS, backend, compiled, dispatch, qdq, using
from fp4scope.kernels.eager import round_, two_to

from .reference import (
    DEVICES,
    DTYPES,
    F32_MAX,
    HERE,
    MICRO,
    ML_DTYPES,
    NV,
    assert_same,
    every_finite,
    gaussian,
    golden_finite,
    neighbours,
    random_bits,
    to_element,
)

ELEMENTS = [E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8]
MAXIMA = [e.max / 2**e.max_exponent for e in ELEMENTS]
CPU = torch.device("cpu")


# ---- one backend equals another -----------------------------------------------------------------


def shared_inputs():
    """Golden inputs, every 16-bit value, random bits, and rows of every magnitude."""
    yield from golden_finite().values()
    yield from (every_finite(dtype) for dtype in DTYPES[1:])
    for dtype in DTYPES:
        limit = torch.finfo(dtype).max
        yield random_bits(500, 96, seed=1).clamp(-limit, limit).to(dtype)
    yield torch.ldexp(gaussian(508, 192, seed=2), (torch.arange(508) // 2 - 130).int()[:, None])
    # The largest element of every format and powers of two, at all ends of the range.
    peaks = [m * 2.0**k for k in (-149, *range(-130, -120), 0, 112) for m in (1, 7.5, *MAXIMA)]
    yield torch.from_numpy(np.outer(neighbours(peaks), np.linspace(1, -1, 32)).astype(np.float32))
    heavy = gaussian(300, 70, seed=3) ** 5
    yield from (heavy, heavy.T, torch.zeros(3, 40))


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("other", [b for b in HERE if b != "torch"])
def test_every_backend_gives_the_bits_of_torch(other, name):
    fmt, used = get_format(name), set()
    for x in shared_inputs():
        for factor in (None, 0.3, 1e-4, 3.0) if name in NV else (None,):
            amax = None if factor is None else factor * x.abs().amax().to(torch.float32)
            amax = amax if factor is None else amax.clamp(max=F32_MAX)
            for device in DEVICES:
                results = []
                for each in ("torch", other):
                    with using(each):
                        used.add(backend(torch.device(device)))
                        results.append(qdq(x.to(device), fmt, amax).cpu())
                assert_same(results[1], results[0])
    assert used == {"torch", other}


@pytest.mark.parametrize("name", NV)
@pytest.mark.parametrize("other", [b for b in HERE if b != "torch"])
def test_block_scales_at_their_ties(other, name):
    """Amaxes whose scale lies at a midpoint of E4M3: another order of operations shows there."""
    fmt = get_format(name)
    points = torch.tensor(E4M3.magnitudes)
    middles = (points[1:] + points[:-1]) / 2
    for seed in range(20):
        amax = 2 * torch.rand((), generator=torch.Generator().manual_seed(seed)) + 1
        g = amax / fmt.tensor_divisor
        ratios = torch.cat([middles, middles / 1.5]) if "4over6" in name else middles
        peaks = torch.from_numpy(neighbours((ratios * fmt.element.max * g).numpy()))
        x = gaussian(len(peaks), 16, seed=seed).clamp(-1, 1) * peaks[:, None]
        x[:, 3] = -peaks
        results = []
        for each in ("torch", other):
            with using(each):
                results.append(qdq(x, fmt, amax))
        assert_same(results[1], results[0])


# ---- rounding to the element --------------------------------------------------------------------


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_rounding_of_every_16_bit_value_in_torch(element):
    for dtype in DTYPES[1:]:
        y = every_finite(dtype).to(torch.float32).abs()
        rounded = round_(y.clone(), element)
        assert_same(rounded, torch.from_numpy(to_element(y.numpy(), element)), y)
        # In place, with a buffer of one's own.
        values, buffer = y.clone(), torch.full_like(y, torch.nan)
        assert round_(values, element, buffer) is values
        assert_same(values, rounded)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_rounding_at_every_grid_point_and_midpoint_in_torch(element):
    grid = np.array(element.magnitudes)
    y = neighbours([*grid, *((grid[1:] + grid[:-1]) / 2), 2 * element.max, F32_MAX])
    expected = torch.from_numpy(to_element(y, element))
    assert_same(round_(torch.from_numpy(y.copy()), element), expected)


def test_every_element_is_rounded_by_ml_dtypes_or_numpy():
    assert {get_format(name).element for name in MICRO} == set(ELEMENTS)
    assert set(ML_DTYPES) == {e.name for e in ELEMENTS if not e.integer}


def test_every_e8m0_byte_is_that_power_of_two():
    byte = torch.arange(255, dtype=torch.int32)
    expected = torch.from_numpy(np.ldexp(np.float32(1), np.arange(255) - 127))
    assert_same(two_to(byte), expected)
    e8m0 = byte.to(torch.uint8).view(torch.float8_e8m0fnu).to(torch.float32)
    assert_same(e8m0, expected)


# ---- threads ------------------------------------------------------------------------------------


@pytest.fixture
def three_threads(monkeypatch):
    """Shares of any size, for three threads."""
    monkeypatch.setattr(compiled, "_SHARED_ELEMENTS", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


@pytest.fixture(params=["torch's threads", "plain threads"])
def shares(monkeypatch, request):
    """How many threads each call had; once by torch's OpenMP, once where there is none."""
    seen, run = [], compiled._run

    def counted(entry, job, threads):
        seen.append(threads)
        return run(entry, job, threads)

    monkeypatch.setattr(compiled, "_run", counted)
    if request.param == "plain threads":
        monkeypatch.setattr(compiled, "_openmp", lambda: None)
    elif compiled._openmp() is None:
        pytest.skip("this torch has no libgomp of its own")
    return seen


@pytest.mark.parametrize("name", MICRO)
def test_threads_share_the_rows(name, three_threads, shares):
    fmt = get_format(name)
    amax = torch.tensor(3.0) if name in NV else None
    with using("numba"):
        for rows in (2, 3, 10, 100):
            x = gaussian(rows, 96, seed=rows)
            alone = torch.cat([qdq(x[i : i + 1], fmt, amax) for i in range(rows)])
            assert set(shares) == {1}
            shares.clear()
            assert_same(qdq(x, fmt, amax), alone)
            assert shares == [3]
            shares.clear()
            if name in NV:  # each thread has its own rows' scales
                each = 0.5 + gaussian(rows, 1, seed=1).abs()
                expected = [qdq(x[i], fmt, each[i]) for i in range(rows)]
                shares.clear()
                assert_same(qdq(x, fmt, each), torch.stack(expected))
                assert shares == [3]
                shares.clear()


def test_only_large_tensors_are_shared(monkeypatch, shares):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    fmt, rows = get_format("mxfp4:rceil"), compiled._SHARED_ELEMENTS // 1024
    x = gaussian(rows + 1, 1024)
    with using("numba"):
        parts = [qdq(part, fmt) for part in x.split(rows // 2)]
        assert set(shares) == {1}
        shares.clear()
        assert_same(qdq(x, fmt), torch.cat(parts))
        qdq(x[:rows], fmt)
        qdq(x[: rows - 1], fmt)
        assert shares == [2, 2, 1]


@pytest.mark.parametrize("row", range(7))
@pytest.mark.parametrize("name", ["mxfp4:floor", "nvfp4", "nvfp4:4over6"])
def test_nan_is_found_in_every_share(name, row, three_threads, shares):
    x = gaussian(7, 64)
    x[row, -1] = torch.nan
    flag = torch.zeros((), dtype=torch.bool)
    with using("numba"):
        qdq(x, get_format(name), torch.tensor(1.0) if name in NV else None, flag)
    assert flag
    assert shares == [3]


def test_one_thread_alone_does_not_start_others(monkeypatch, three_threads, shares):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with using("numba"):
        qdq(gaussian(8, 64), get_format("mxfp4"))
    assert shares == [1]


# ---- which one runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
def test_using_ends_with_the_block_also_after_an_error(name, monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda _: True)
    _forget_installed(monkeypatch)
    usual = backend(CPU)
    assert usual == "numba"
    with using("torch"):
        assert backend(CPU) == "torch"
        with using(name):
            assert backend(CPU) == ("torch" if name == "triton" else name)
        assert backend(CPU) == "torch"
    assert backend(CPU) == usual
    with pytest.raises(ZeroDivisionError), using("torch"):
        _ = 1 / 0
    assert backend(CPU) == usual


def _forget_installed(monkeypatch):
    """What is installed, and which backend follows from it, are remembered."""
    for name in ("_installed", "_backend"):
        monkeypatch.setattr(dispatch, name, getattr(dispatch, name).__wrapped__)


def test_both_backends_of_a_cpu_are_tested():
    assert {"numba", "torch"} <= set(HERE)


def test_numba_never_runs_on_a_gpu():
    with using("numba"):
        assert backend(torch.device("cuda")) == "torch"


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(FormatError, match="unknown backend 'numbra'; did you mean numba"):
        using("numbra").__enter__()
    assert backend(CPU) == "numba"


def test_without_numba_plain_torch_runs_and_using_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None if name == "numba" else name)
    _forget_installed(monkeypatch)
    assert backend(CPU) == "torch"
    with using("torch"):
        assert backend(CPU) == "torch"
    with pytest.raises(FormatError, match="'numba' is not installed; run pip install"):
        using("numba").__enter__()


@pytest.mark.parametrize("name", [b for b in HERE if b != "triton"])
def test_using_decides_which_kernel_is_called(name, monkeypatch):
    called = []
    for module, own in ((compiled, "numba"), (dispatch.eager, "torch")):
        original = module.qdq_blocks

        def spy(*args, own=own, original=original):
            called.append(own)
            return original(*args)

        monkeypatch.setattr(module, "qdq_blocks", spy)
    with using(name):
        qdq(gaussian(2, 64), get_format("mxfp4"))
    assert called == [name]
