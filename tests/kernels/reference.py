"""What the kernels are held against, and the inputs.

`by_oracle` goes block by block through the exact scalar oracle. Where that would be too slow,
`by_numpy` has the rules once more, in numpy and `ml_dtypes`, which share nothing with the kernels
either. Equality is of bits, so the sign of zero counts.
"""

from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from fp4scope.errors import FormatError
from fp4scope.formats import FORMATS, ScaleRule, get_format
from fp4scope.formats.oracle import fake_quantize_block
from fp4scope.kernels import BACKENDS, backend, fake_quantize, using

DATA = Path(__file__).parents[1] / "data"
# Formats with a power of two for a scale, and those with a tensor scale, in blocks of 32 and 16.
MX = [name for name, f in FORMATS.items() if f.scale == "E8M0" and f.block_size == 32]
NV = [name for name, f in FORMATS.items() if f.scale == "E4M3 x FP32"]
MICRO = [name for name in FORMATS if name in {*MX, *NV}]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NUMPY = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16}
ML_DTYPES = {
    "E2M1": ml_dtypes.float4_e2m1fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E4M3": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2,
}
F32_MAX = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149


def runs_here(name):
    """Whether some device of this machine has the backend."""
    try:
        with using(name):
            return any(backend(torch.device(device)) == name for device in DEVICES)
    except FormatError:  # not installed
        return False


HERE = [name for name in BACKENDS if runs_here(name)]


# ---- inputs -------------------------------------------------------------------------------------


def tensor(values, dtype=torch.float32):
    return torch.tensor(values, dtype=torch.float32).to(dtype)


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def neighbours(points):
    """Each point with the FP32 numbers just below and just above it, within FP32."""
    p = np.asarray(points, dtype=np.float32)
    with np.errstate(under="ignore"):
        near = [np.nextafter(p, np.float32(0)), p, np.nextafter(p, np.float32(F32_MAX))]
    return np.unique(np.concatenate(near))


def every_finite(dtype):
    """Every finite value of a 16-bit dtype, in rows of 32."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    return every[: len(every) // 32 * 32].view(-1, 32)


def random_bits(rows, cols, seed=0):
    """Finite FP32 values whose signs, exponents and mantissas are all random."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 0x7F800000, size=(rows, cols), dtype=np.int64).astype(np.int32)
    sign = rng.integers(0, 2, size=raw.shape).astype(np.int32) << 31
    return torch.from_numpy((raw | sign).view(np.float32))


def stored(array):
    """A stored array as a tensor: BF16 is kept as uint16."""
    x = torch.from_numpy(array)
    return x.view(torch.bfloat16) if array.dtype == np.uint16 else x


@cache
def golden_inputs():
    """Inputs by `dtype/case`; `tests/data/README.md` says what they are."""
    with np.load(DATA / "golden_inputs.npz") as file:
        return {key: stored(file[key]) for key in file.files}


def golden_finite():
    return {key: x for key, x in golden_inputs().items() if x.isfinite().all()}


# ---- references ---------------------------------------------------------------------------------


def cast(values, dtype):
    """FP32 to `dtype`: round to nearest even, saturating. By numpy, not by torch."""
    if dtype != torch.float32:
        limit = torch.finfo(dtype).max
        values = np.clip(values, -limit, limit).astype(NUMPY[dtype]).astype(np.float32)
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(dtype)


@cache
def _oracle_block(raw, name, amax):
    values = np.frombuffer(raw, dtype=np.float32).tolist()
    return fake_quantize_block(values, get_format(name), amax)


def by_oracle(x, name, amax=None):
    """What the oracle makes of `x`, block by block."""
    fmt = get_format(name)
    if not fmt.uses_tensor_amax:
        amax = None
    elif amax is None:
        amax = x.abs().amax().item()
    size = fmt.block_size
    rows = x.to(torch.float32).reshape(-1, x.shape[-1] if x.ndim else 1).numpy()
    out = [
        [
            v
            for i in range(0, len(r), size)
            for v in _oracle_block(r[i : i + size].tobytes(), name, amax)
        ]
        for r in rows
    ]
    return cast(np.array(out).reshape(x.shape), x.dtype)


def to_element(magnitudes, element):
    """FP32 magnitudes rounded to the element, by `ml_dtypes` or numpy's rint."""
    y = np.minimum(magnitudes, np.float32(element.max))
    if element.integer:
        smallest = np.float32(element.smallest)
        return np.rint(y / smallest) * smallest
    return y.astype(ML_DTYPES[element.name]).astype(np.float32)


def mx_exponent(peak, fmt):
    """The exponent of an E8M0 scale, from numpy's frexp, whose mantissa is in [0.5, 1)."""
    element = fmt.element
    if fmt.rule is ScaleRule.RCEIL:
        peak = peak / np.float32(element.max)
        mantissa, exponent = np.frexp(peak)
        e = exponent - (mantissa == 0.5)
    else:
        mantissa, exponent = np.frexp(peak)
        e = exponent - 1 - int(np.log2(element.max))
        if fmt.rule is ScaleRule.EVEN:
            e += 2 * mantissa >= 2 - 2.0 ** -(element.mantissa_bits + 1)
    return np.where(peak == 0, -127, np.clip(e, -127, 127))


def _divided(a, b):
    return np.where(b == 0, np.float32(0), a / b)


def _nv_scale(a, peak, fmt, g):
    """The block scale, with the tensor's: FP32."""
    ratio = _divided(peak, np.float32(fmt.element.max) * g)
    found, least = None, None
    for s in _e4m3_candidates(ratio, fmt):
        q = to_element(_divided(a, s * g), fmt.element)
        error = np.square(q * s - _divided(a, g))
        while (half := error.shape[-1] // 2) > 0:
            error = error[:, :half] + error[:, half:]
        better = True if found is None else error < least
        found = s * g if found is None else np.where(better, s * g, found)
        least = error if least is None else np.where(better, error, least)
    return found


def _e4m3_candidates(ratio, fmt):
    """The E4M3 scales that a rule tries, in its order."""
    six, four = (
        np.minimum(ratio * np.float32(factor), np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
        for factor in (1.0, 1.5)
    )
    if fmt.rule is ScaleRule.MSE:
        codes = six.view(np.uint8).astype(np.int32)
        for step in range(7, -4, -1):
            near = np.clip(codes + step, 0, 126).astype(np.uint8)
            yield near.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        return
    yield six.astype(np.float32)
    if fmt.rule is ScaleRule.FOUR_OVER_SIX:
        yield four.astype(np.float32)


def by_numpy(x, name, amax=None):
    """The rules in numpy and ml_dtypes, in FP32."""
    fmt = get_format(name)
    rows = x.to(torch.float32).numpy().reshape(-1, x.shape[-1])
    y = np.pad(rows, ((0, 0), (0, -rows.shape[1] % fmt.block_size)))
    shape, y = y.shape, y.reshape(-1, fmt.block_size)
    a = np.abs(y)
    peak = a.max(-1, keepdims=True)
    with np.errstate(all="ignore"):
        if fmt.uses_tensor_amax:
            g = np.float32(a.max() if amax is None else amax) / np.float32(fmt.tensor_divisor)
            scale = _nv_scale(a, peak, fmt, g)
        else:
            scale = np.ldexp(np.float32(1), mx_exponent(peak, fmt))
        out = np.minimum(to_element(_divided(a, scale), fmt.element) * scale, np.float32(F32_MAX))
    out = np.copysign(out, y)
    if fmt.element.integer:
        out = out + np.float32(0)  # two's complement has no negative zero
    return cast(out.reshape(shape)[:, : rows.shape[1]].reshape(x.shape), x.dtype)


# ---- comparing ----------------------------------------------------------------------------------


def bits(x):
    """The bits of `x` as integers: equal only if values and signs of zeros are."""
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def assert_same(actual, expected, x=None):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), (
        actual.dtype, actual.shape, expected.dtype, expected.shape
    )  # fmt: skip
    wrong = bits(actual) != bits(expected)
    shown = [] if x is None else [v.hex() for v in x[wrong].tolist()[:3]]
    got, want = actual[wrong].tolist()[:3], expected[wrong].tolist()[:3]
    assert not wrong.any(), f"{int(wrong.sum())} differ: x {shown}, got {got}, want {want}"


def check(x, name, amax=None, reference=by_oracle):
    """`fake_quantize(x)` equals the reference and leaves `x` alone."""
    before = x.clone()
    actual = fake_quantize(x, name, amax=amax)
    assert_same(actual, reference(x, name, amax), x)
    assert_same(x, before)
    return actual
