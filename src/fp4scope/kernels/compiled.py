"""Quantize-dequantize on a CPU, compiled by numba: one pass, each block read once from memory.

The arithmetic is that of `eager`, operation for operation, in loops that LLVM turns into vector
instructions. What keeps them so: contiguous 1-d arrays, unsigned indices (a signed one may be
negative and is checked), and a cast after each integer operation (numba widens to 64 bits). No
fastmath: every operation rounds as IEEE says.

Large tensors are shared among torch's own threads, by the OpenMP runtime that torch brought along:
a second pool of threads would wait for cores that torch's keep busy, spinning. Where torch has
another runtime, plain threads do it. Threads take parts by a ticket, so that one that starts late
takes fewer.
"""

import ctypes
from array import array
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float
from llvmlite import ir
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from torch import Tensor

from fp4scope.formats import BlockFormat, ScaleRule
from fp4scope.formats.spec import E4M3, HIF4_BLOCK, MSE_ABOVE, MSE_BELOW, MX_BLOCK, NV_BLOCK
from fp4scope.kernels import fp32

_SHARED_ELEMENTS = 1 << 15
"""Tensors from this size on are worth waking other threads, as in torch."""
# A job: addresses of x, out and the tensor scales; rows, blocks, their size, parts; whether each
# row has its own tensor scale; the next part; whether any part met NaN or Inf; parameters of the
# kernel.
_X, _OUT, _SCALES, _ROWS, _BLOCKS, _SIZE, _COUNT, _EACH, _NEXT, _NONFINITE, _PARAMETERS = range(11)
_JOB = _PARAMETERS + 10

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_I, _F, _U = np.int32, np.float32, np.uintp
_MAGNITUDE = _I(fp32.MAGNITUDE)
_SIGN = _I(-0x80000000)
_INF = _I(fp32.INF)
_HALF = _I(1 << 22)
_MX = _U(MX_BLOCK)
_NV = _U(NV_BLOCK)
_HIF4 = _U(HIF4_BLOCK)
_ABOVE, _TRIED, _LARGEST_E4M3 = _I(MSE_ABOVE), MSE_ABOVE + 1 + MSE_BELOW, _I(126)
_SEGMENT = 64
# How a span gets its scale: given, from its amax, or from that a power of two.
_GIVEN, _AMAX, _POWER_OF_TWO = range(3)


def qdq_blocks(
    x: Float[Tensor, "rows blocks size"],
    fmt: BlockFormat,
    g: Float[Tensor, "parts 1 1"] | None,
    out: Float[Tensor, "rows blocks size"],
    limit: float,
    nonfinite: Bool[Tensor, ""] | None = None,
) -> None:
    """As `eager.qdq_blocks`, bit for bit; on the CPU."""
    rows, blocks, size = x.shape
    threads = torch.get_num_threads() if x.numel() >= _SHARED_ELEMENTS else 1
    parts = min(rows, 4 * threads) if threads > 1 else 1
    kernel, parameters = _kernel(fmt, limit)
    scales = None if g is None else g.reshape(-1).contiguous()
    addresses = (x.data_ptr(), out.data_ptr(), 0 if scales is None else scales.data_ptr())
    each = 0 if g is None else int(len(g) > 1)
    job = array("q", (*addresses, rows, blocks, size, parts, each, 0, 0, *parameters))
    _run(kernel, job, threads)
    if nonfinite is not None and job[_NONFINITE]:
        nonfinite.fill_(True)


def _run(kernel: Any, job: array, threads: int) -> None:
    address, _ = job.buffer_info()
    parallel = _openmp()
    if threads == 1:
        kernel(address)
    elif parallel is not None:
        parallel(kernel, address, threads, 0)
    else:
        list(_pool(threads).map(kernel, [address] * threads))


@cache
def _openmp() -> Any:
    """GOMP_parallel(function, data, threads, flags) of torch's own OpenMP runtime, if it has it."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        parallel = ctypes.CDLL(str(path)).GOMP_parallel
        parallel.argtypes = [_FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fp4scope-qdq")


@cache
def _kernel(fmt: BlockFormat, limit: float) -> tuple[Any, tuple[int, ...]]:
    """A format's kernel, and the parameters that make it so, floats as their bits."""
    element = fmt.element
    element_max = fp32.bits(element.max)
    zero_sign = 0 if element.integer else int(_SIGN)
    parameters: tuple[int, ...]
    shared = (*fp32.rounding(element), fp32.bits(limit), zero_sign)
    if fmt.rule is ScaleRule.HIF4:
        entry = _hif4_entry
        parameters = (fp32.bits(limit),)
    elif fmt.is_scaled_by_amax:
        entry = _spans_entry
        powers = fmt.rule not in (ScaleRule.AMAX, ScaleRule.ONE)
        how = _POWER_OF_TWO if powers else _GIVEN if fmt.is_given_scale else _AMAX
        scale_byte = fp32.scale_byte(fmt) if powers else (0, 0, 0)
        parameters = (how, element_max, *scale_byte, *shared)
    elif fmt.uses_tensor_amax:
        searched = {ScaleRule.FOUR_OVER_SIX: _four_over_six_entry, ScaleRule.MSE: _mse_entry}
        entry = searched.get(fmt.rule, _two_level_entry)
        parameters = (element_max, *fp32.rounding(E4M3), *shared)
    else:
        entry = _power_of_two_entry
        parameters = (*fp32.scale_byte(fmt), *shared)
    return _FUNCTION(entry.address), parameters  # pyright: ignore


# ---- inside the kernels ----

# No types are checked in what follows: numba compiles it.
_compiled = njit(error_model="numpy", nogil=True, cache=True)
_inlined = njit(error_model="numpy", nogil=True, inline="always")


@intrinsic
@no_type_check
def _as_int(context, x):
    """The bits of an FP32 number."""
    return types.int32(types.float32), lambda c, b, s, a: b.bitcast(a[0], ir.IntType(32))


@intrinsic
@no_type_check
def _as_float(context, x):
    """The FP32 number with these bits."""
    return types.float32(types.int32), lambda c, b, s, a: b.bitcast(a[0], ir.FloatType())


@intrinsic
@no_type_check
def _floats(context, address):
    """A pointer to FP32 numbers."""
    pointer = types.CPointer(types.float32)
    return pointer(types.int64), lambda c, b, s, a: b.inttoptr(a[0], c.get_value_type(pointer))


@intrinsic
@no_type_check
def _ticket(context, job):
    """The number of the next part; no two threads get the same."""

    def code(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [ir.Constant(ir.IntType(64), _NEXT)])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), code


@_inlined
@no_type_check
def _least(a, b):
    return a if a < b else b


@_inlined
@no_type_check
def _most(a, b):
    return a if a > b else b


@_inlined
@no_type_check
def _round(y, largest, smallest, shift):
    """Magnitude to the nearest element; `y` and the others as bits, the result as a number."""
    y = _least(y, largest)
    magic = _as_float(_I(_most(_I(y & _INF), smallest) + shift))
    return _F(_F(_as_float(y) + magic) - magic)


@_inlined
@no_type_check
def _block_amax(x, start, size):
    top = _I(0)
    for j in range(size):
        top = _most(top, _I(_as_int(x[start + j]) & _MAGNITUDE))
    return top


@_inlined
@no_type_check
def _two_to(byte):
    """2^(byte - 127); FP32 holds byte 0 as a subnormal."""
    return _as_float(_most(_I(byte << _I(23)), _HALF))


@_inlined
@no_type_check
def _divisor(scale):
    return scale if scale != _F(0) else _F(np.inf)


@_inlined
@no_type_check
def _write(x, out, start, size, divide, factor, scale, largest, smallest, shift, limit, zero_sign):
    """Quantize and dequantize a block: times `factor`, or divided by it, rounded, times `scale`.

    `zero_sign` is 0 for elements without negative zero.
    """
    for j in range(size):
        bits = _as_int(x[start + j])
        y = _as_float(_I(bits & _MAGNITUDE))
        y = _F(y / factor) if divide else _F(y * factor)
        q = _as_int(_F(_round(_as_int(y), largest, smallest, shift) * scale))
        negative = _I(bits & _SIGN) if _I(q | zero_sign) != _I(0) else _I(0)
        out[start + j] = _as_float(_I(_least(q, limit) | negative))


# A segment of a row at a time, in three loops: amaxes, scales, values. One block after the other
# would wait for each step of the one before.


@_compiled
@no_type_check
def _power_of_two(
    x, out, first, last, blocks, zero, carry, emax, largest, smallest, shift, limit, zero_sign
):  # fmt: skip
    """MX formats, rows `first` to `last` of so many blocks. Returns the largest amax, as bits."""
    top = _I(0)
    peaks, scales, inverses = np.empty(_SEGMENT, _I), np.empty(_SEGMENT, _F), np.empty(_SEGMENT, _F)
    for row in range(first, last):
        for segment in range(_U(0), blocks, _U(_SEGMENT)):
            count = _least(_U(_SEGMENT), _U(blocks - segment))
            start = _U(_U(row * blocks + segment) * _MX)
            for b in range(count):
                peaks[b] = _block_amax(x, _U(start + _U(b * _MX)), _MX)
            for b in range(count):
                amax = peaks[b]
                top = _most(top, amax)
                byte = _I(_I(_I(amax + carry) >> _I(23)) - emax)
                byte = byte if amax > zero else _I(0)
                scales[b] = _two_to(byte)
                inverses[b] = _two_to(_I(_I(254) - byte))
            for b in range(count):
                _write(
                    x, out, _U(start + _U(b * _MX)), _MX, False, inverses[b], scales[b],
                    largest, smallest, shift, limit, zero_sign,
                )  # fmt: skip
    return top


@_compiled
@no_type_check
def _two_level(
    x, out, first, last, blocks, tensor_scales, each, element_max, scale_largest, scale_smallest,
    scale_shift, largest, smallest, shift, limit, zero_sign,
):  # fmt: skip
    """NVFP4 and NVINT4."""
    top = _I(0)
    peaks, scales, divisors = np.empty(_SEGMENT, _I), np.empty(_SEGMENT, _F), np.empty(_SEGMENT, _F)
    for row in range(first, last):
        g = tensor_scales[_U(row * each)]
        whole = _divisor(_F(element_max * g))
        for segment in range(_U(0), blocks, _U(_SEGMENT)):
            count = _least(_U(_SEGMENT), _U(blocks - segment))
            start = _U(_U(row * blocks + segment) * _NV)
            for b in range(count):
                peaks[b] = _block_amax(x, _U(start + _U(b * _NV)), _NV)
            for b in range(count):
                top = _most(top, peaks[b])
                ratio = _as_int(_F(_as_float(peaks[b]) / whole))
                s = _round(ratio, scale_largest, scale_smallest, scale_shift)
                scales[b] = _F(s * g)
                divisors[b] = _divisor(scales[b])
            for b in range(count):
                _write(
                    x, out, _U(start + _U(b * _NV)), _NV, True, divisors[b], scales[b],
                    largest, smallest, shift, limit, zero_sign,
                )  # fmt: skip
    return top


@_inlined
@no_type_check
def _e4m3_code(s):
    """The code of an E4M3 number that is not negative."""
    normal = _I(_I(_as_int(s) >> _I(20)) - _I(960))
    return normal if s >= _F(2.0**-6) else _I(_F(s * _F(512)))


@_inlined
@no_type_check
def _e4m3_number(code):
    return _as_float(_I(_I(code + _I(960)) << _I(20))) if code >= _I(8) else _F(code / _F(512))


@_inlined
@no_type_check
def _scaled_error(x, start, errors, s, g, whole, largest, smallest, shift):
    """Squared error of a block under an E4M3 scale, in units of the tensor scale."""
    divisor = _divisor(_F(s * g))
    for j in range(_NV):
        magnitude = _as_float(_I(_as_int(x[start + j]) & _MAGNITUDE))
        q = _round(_as_int(_F(magnitude / divisor)), largest, smallest, shift)
        error = _F(_F(q * s) - _F(magnitude / whole))
        errors[j] = _F(error * error)
    half = _NV // _U(2)
    while half > _U(0):
        for j in range(half):
            errors[j] = _F(errors[j] + errors[j + half])
        half = half // _U(2)
    return errors[0]


@_compiled
@no_type_check
def _mse(
    x, out, first, last, blocks, tensor_scales, each, element_max, scale_largest, scale_smallest,
    scale_shift, largest, smallest, shift, limit, zero_sign,
):  # fmt: skip
    """NVFP4 with the best of several scales around that of the amax."""
    top = _I(0)
    errors = np.empty(NV_BLOCK, _F)
    for row in range(first, last):
        g = tensor_scales[_U(row * each)]
        whole = _divisor(g)
        for block in range(blocks):
            start = _U(_U(row * blocks + block) * _NV)
            amax = _block_amax(x, start, _NV)
            top = _most(top, amax)
            ratio = _as_int(_F(_as_float(amax) / _divisor(_F(element_max * g))))
            own = _e4m3_code(_round(ratio, scale_largest, scale_smallest, scale_shift))
            least, d = _F(0), _F(0)
            for candidate in range(_TRIED):
                code = _most(_least(_I(own + _ABOVE - candidate), _LARGEST_E4M3), _I(0))
                s = _e4m3_number(code)
                error = _scaled_error(x, start, errors, s, g, whole, largest, smallest, shift)
                if candidate == 0 or error < least:
                    least, d = error, _F(s * g)
            _write(
                x, out, start, _NV, True, _divisor(d), d,
                largest, smallest, shift, limit, zero_sign,
            )  # fmt: skip
    return top


@_compiled
@no_type_check
def _four_over_six(
    x, out, first, last, blocks, tensor_scales, each, element_max, scale_largest, scale_smallest,
    scale_shift, largest, smallest, shift, limit, zero_sign,
):  # fmt: skip
    """NVFP4 with the better of two scales."""
    top = _I(0)
    errors = np.empty(NV_BLOCK, _F)
    for row in range(first, last):
        g = tensor_scales[_U(row * each)]
        whole = _divisor(g)
        for block in range(blocks):
            start = _U(_U(row * blocks + block) * _NV)
            amax = _block_amax(x, start, _NV)
            top = _most(top, amax)
            ratio = _F(_as_float(amax) / _divisor(_F(element_max * g)))
            best, d = _F(0), _F(0)
            for candidate in range(2):
                factor = _F(1.0) if candidate == 0 else _F(1.5)
                s = _round(_as_int(_F(ratio * factor)), scale_largest, scale_smallest, scale_shift)
                error = _scaled_error(x, start, errors, s, g, whole, largest, smallest, shift)
                if candidate == 0 or error < best:
                    best, d = error, _F(s * g)
            _write(
                x, out, start, _NV, True, _divisor(d), d,
                largest, smallest, shift, limit, zero_sign,
            )  # fmt: skip
    return top


@_compiled
@no_type_check
def _spans(
    x, out, first, last, blocks, size, tensor_scales, each, how, element_max, zero, carry, emax,
    largest, smallest, shift, limit, zero_sign,
):  # fmt: skip
    """FP8: rows, squares laid out as rows, and blocks of any size."""
    top = _I(0)
    for row in range(first, last):
        for block in range(blocks):
            start = _U(_U(row * blocks + block) * size)
            amax = _block_amax(x, start, size)
            top = _most(top, amax)
            if how == _I(_GIVEN):
                scale = tensor_scales[_U(row * each)]
            elif how == _I(_AMAX):
                scale = _F(_as_float(amax) / element_max)
            else:
                byte = _I(_I(_I(amax + carry) >> _I(23)) - emax)
                scale = _two_to(byte if amax > zero else _I(0))
            _write(
                x, out, start, size, True, _divisor(scale), scale,
                largest, smallest, shift, limit, zero_sign,
            )  # fmt: skip
    return top


@_inlined
@no_type_check
def _bf16(x):
    """A magnitude to the nearest BF16 number, ties to even."""
    bits = _as_int(x)
    return _as_float(_I(_I(bits + _I(0x7FFF) + _I(_I(bits >> _I(16)) & _I(1))) & _I(-0x10000)))


@_compiled
@no_type_check
def _hif4(x, out, first, last, blocks, limit):
    """HiF4, in the order of operations of `eager`."""
    top = _I(0)
    seventh = _bf16(_F(1 / 7))
    for block in range(_U(first * blocks), _U(last * blocks)):
        start = _U(block * _HIF4)
        amax = _block_amax(x, start, _HIF4)
        top = _most(top, amax)
        s = _bf16(_F(_as_float(amax) * seventh))
        bits = _as_int(_least(_most(s, _F(2.0**-48)), _F(49152.0)))
        bits = _I(bits + _I(0xFFFFF) + _I(_I(bits >> _I(21)) & _I(1)))
        s = _as_float(_I(bits & _I(-0x200000)))
        r = _bf16(_F(_F(1) / s))
        for group in range(_U(16)):
            four = _U(start + group * _U(4))
            eight = _block_amax(x, _U(start + (group // _U(2)) * _U(8)), _U(8))
            m8 = _F(0.5) if _F(_as_float(eight) * r) >= _F(4) else _F(1)
            own = _F(_as_float(_block_amax(x, four, _U(4))) * r)
            inverse = _F(m8 * (_F(0.5) if _F(own * m8) >= _F(2) else _F(1)))
            scale = _F(s / inverse)
            for j in range(_U(4)):
                bits = _as_int(x[four + j])
                y = _F(_F(_as_float(_I(bits & _MAGNITUDE)) * inverse) * r)
                q = _F(np.floor(_F(_F(y * _F(4)) + _F(0.5))) * _F(0.25))
                found = _as_int(_F(_least(q, _F(1.75)) * scale))
                out[four + j] = _as_float(_I(_least(found, limit) | _I(bits & _SIGN)))
    return top


# ---- where threads enter ----

_entry = cfunc("void(CPointer(int64))", cache=True, error_model="numpy")


@_inlined
@no_type_check
def _tensor(job, which, size):
    """The whole tensor at an address of the job, in blocks of so many."""
    return carray(_floats(job[which]), job[_ROWS] * job[_BLOCKS] * size)


@_inlined
@no_type_check
def _edge(job, part):
    """The first row of a part."""
    return _U(part * job[_ROWS] // job[_COUNT])


@_inlined
@no_type_check
def _int(job, place):
    return _I(job[_PARAMETERS + place])


@_entry
@no_type_check
def _power_of_two_entry(pointer):
    job = carray(pointer, (_JOB,))
    x, out = _tensor(job, _X, MX_BLOCK), _tensor(job, _OUT, MX_BLOCK)
    part = _ticket(pointer)
    while part < job[_COUNT]:
        top = _power_of_two(
            x, out, _edge(job, part), _edge(job, part + 1), _U(job[_BLOCKS]),
            _int(job, 0), _int(job, 1), _int(job, 2), _int(job, 3), _int(job, 4), _int(job, 5),
            _int(job, 6), _int(job, 7),
        )  # fmt: skip
        if top >= _INF:
            job[_NONFINITE] = 1
        part = _ticket(pointer)


@_entry
@no_type_check
def _two_level_entry(pointer):
    job = carray(pointer, (_JOB,))
    x, out = _tensor(job, _X, NV_BLOCK), _tensor(job, _OUT, NV_BLOCK)
    scales = carray(_floats(job[_SCALES]), 1 + job[_EACH] * (job[_ROWS] - 1))
    part = _ticket(pointer)
    while part < job[_COUNT]:
        top = _two_level(
            x, out, _edge(job, part), _edge(job, part + 1), _U(job[_BLOCKS]), scales,
            _U(job[_EACH]), _as_float(_int(job, 0)), _int(job, 1), _int(job, 2), _int(job, 3),
            _int(job, 4), _int(job, 5), _int(job, 6), _int(job, 7), _int(job, 8),
        )  # fmt: skip
        if top >= _INF:
            job[_NONFINITE] = 1
        part = _ticket(pointer)


@_entry
@no_type_check
def _four_over_six_entry(pointer):
    job = carray(pointer, (_JOB,))
    x, out = _tensor(job, _X, NV_BLOCK), _tensor(job, _OUT, NV_BLOCK)
    scales = carray(_floats(job[_SCALES]), 1 + job[_EACH] * (job[_ROWS] - 1))
    part = _ticket(pointer)
    while part < job[_COUNT]:
        top = _four_over_six(
            x, out, _edge(job, part), _edge(job, part + 1), _U(job[_BLOCKS]), scales,
            _U(job[_EACH]), _as_float(_int(job, 0)), _int(job, 1), _int(job, 2), _int(job, 3),
            _int(job, 4), _int(job, 5), _int(job, 6), _int(job, 7), _int(job, 8),
        )  # fmt: skip
        if top >= _INF:
            job[_NONFINITE] = 1
        part = _ticket(pointer)


@_entry
@no_type_check
def _mse_entry(pointer):
    job = carray(pointer, (_JOB,))
    x, out = _tensor(job, _X, NV_BLOCK), _tensor(job, _OUT, NV_BLOCK)
    scales = carray(_floats(job[_SCALES]), 1 + job[_EACH] * (job[_ROWS] - 1))
    part = _ticket(pointer)
    while part < job[_COUNT]:
        top = _mse(
            x, out, _edge(job, part), _edge(job, part + 1), _U(job[_BLOCKS]), scales,
            _U(job[_EACH]), _as_float(_int(job, 0)), _int(job, 1), _int(job, 2), _int(job, 3),
            _int(job, 4), _int(job, 5), _int(job, 6), _int(job, 7), _int(job, 8),
        )  # fmt: skip
        if top >= _INF:
            job[_NONFINITE] = 1
        part = _ticket(pointer)


@_entry
@no_type_check
def _spans_entry(pointer):
    job = carray(pointer, (_JOB,))
    x, out = _tensor(job, _X, job[_SIZE]), _tensor(job, _OUT, job[_SIZE])
    scales = carray(_floats(job[_SCALES]), 1 + job[_EACH] * (job[_ROWS] - 1))
    part = _ticket(pointer)
    while part < job[_COUNT]:
        top = _spans(
            x, out, _edge(job, part), _edge(job, part + 1), _U(job[_BLOCKS]), _U(job[_SIZE]),
            scales, _U(job[_EACH]), _int(job, 0), _as_float(_int(job, 1)), _int(job, 2),
            _int(job, 3), _int(job, 4), _int(job, 5), _int(job, 6), _int(job, 7), _int(job, 8),
            _int(job, 9),
        )  # fmt: skip
        if top >= _INF:
            job[_NONFINITE] = 1
        part = _ticket(pointer)


@_entry
@no_type_check
def _hif4_entry(pointer):
    job = carray(pointer, (_JOB,))
    x, out = _tensor(job, _X, HIF4_BLOCK), _tensor(job, _OUT, HIF4_BLOCK)
    part = _ticket(pointer)
    while part < job[_COUNT]:
        first, last = _edge(job, part), _edge(job, part + 1)
        top = _hif4(x, out, first, last, _U(job[_BLOCKS]), _int(job, 0))
        if top >= _INF:
            job[_NONFINITE] = 1
        part = _ticket(pointer)
