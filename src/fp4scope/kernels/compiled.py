"""Quantize-dequantize on a CPU, compiled by numba: one pass, each block read once from memory.

The arithmetic is that of `eager`, operation for operation, in loops that LLVM turns into vector
instructions. What keeps them so: contiguous 1-d arrays, unsigned indices (a signed one may be
negative and is checked), and a cast after each integer operation (numba widens to 64 bits). No
fastmath: every operation rounds as IEEE says.

Large tensors are shared among plain threads, since the kernels hold no lock: a second OpenMP beside
torch's would make both wait for each other.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from fp4scope.formats import BlockFormat, ScaleRule
from fp4scope.formats.spec import E4M3, MX_BLOCK, NV_BLOCK, ElementFormat

_SHARED_ELEMENTS = 1 << 19
"""Tensors from this size on are worth a hand-over to other threads."""

_I, _F, _U = np.int32, np.float32, np.uintp
_MAGNITUDE = _I(0x7FFFFFFF)
_SIGN = _I(-0x80000000)
_INF = _I(0x7F800000)
_HALF = _I(1 << 22)
_ONE = _I(1 << 23)
_MX = _U(MX_BLOCK)
_NV = _U(NV_BLOCK)
_RCEIL, _TRUNCATED = _I(0), _I(1)


def qdq_blocks(
    x: Float[Tensor, "rows blocks size"],
    fmt: BlockFormat,
    g: Float[Tensor, "rows 1 1"] | None,
    out: Float[Tensor, "rows blocks size"],
    limit: float,
    nonfinite: Bool[Tensor, ""] | None = None,
) -> None:
    """As `eager.qdq_blocks`, bit for bit; on the CPU."""
    flat_in, flat_out = x.reshape(-1).numpy(), out.view(-1).numpy()
    kernel, arguments = _kernel(fmt, limit)
    if g is not None:
        arguments = (g.reshape(-1).numpy(), *arguments)
    rows, blocks = x.shape[:2]

    def share(part: slice) -> Any:
        return kernel(flat_in, flat_out, _U(part.start), _U(part.stop), _U(blocks), *arguments)

    threads = min(rows, torch.get_num_threads()) if x.numel() >= _SHARED_ELEMENTS else 1
    if threads == 1:
        top = share(slice(0, rows))
    else:
        top = max(_pool(threads).map(share, _even_parts(rows, threads)))
    if nonfinite is not None and top >= _INF:
        nonfinite.fill_(True)


def _even_parts(count: int, parts: int) -> list[slice]:
    return [slice(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fp4scope-qdq")


@cache
def _kernel(fmt: BlockFormat, limit: float) -> tuple[Any, tuple[Any, ...]]:
    """The kernel of a format, and the arguments that make it so."""
    element = fmt.element
    zero_sign = _I(0) if element.integer else _SIGN
    shared = (*_rounding(element), _bits(limit), zero_sign)
    if fmt.rule is ScaleRule.FOUR_OVER_SIX:
        return _four_over_six, (_F(element.max), *_rounding(E4M3), *shared)
    if fmt.rule is ScaleRule.TENSOR:
        return _two_level, (_F(element.max), *_rounding(E4M3), *shared)
    if fmt.rule is ScaleRule.RCEIL:
        return _power_of_two, (_RCEIL, _F(element.max), _I(0), _I(0), *shared)
    carry = _ONE >> (element.mantissa_bits + 1) if fmt.rule is ScaleRule.EVEN else 0
    return _power_of_two, (_TRUNCATED, _F(0), _I(carry), _I(element.max_exponent), *shared)


def _rounding(element: ElementFormat) -> tuple[Any, Any, Any]:
    """For `_round`: bits of the largest value, of the smallest normal, and the shift."""
    smallest, shift = 2.0**element.min_exponent, (23 - element.mantissa_bits) << 23
    return _bits(element.max), _bits(smallest), _I(shift)


def _bits(value: float) -> Any:
    return _F(value).view(_I)


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
def _divisor(scale):
    return scale if scale != _F(0) else _F(np.inf)


@_inlined
@no_type_check
def _write(x, out, start, size, scale, largest, smallest, shift, limit, zero_sign):
    """Quantize and dequantize a block. `zero_sign` is 0 for elements without negative zero."""
    divisor = _divisor(scale)
    for j in range(size):
        bits = _as_int(x[start + j])
        y = _as_int(_F(_as_float(_I(bits & _MAGNITUDE)) / divisor))
        q = _as_int(_F(_round(y, largest, smallest, shift) * scale))
        negative = _I(bits & _SIGN) if _I(q | zero_sign) != _I(0) else _I(0)
        out[start + j] = _as_float(_I(_least(q, limit) | negative))


@_compiled
@no_type_check
def _power_of_two(
    x, out, first, last, blocks, rule, element_max, carry, emax, largest, smallest, shift, limit,
    zero_sign,
):  # fmt: skip
    """MX formats, rows `first` to `last` of so many blocks. Returns the largest amax, as bits."""
    top = _I(0)
    for row in range(first, last):
        for block in range(blocks):
            start = _U(_U(row * blocks + block) * _MX)
            amax = _block_amax(x, start, _MX)
            top = _most(top, amax)
            if rule == _RCEIL:
                ratio = _as_int(_F(_as_float(amax) / element_max))
                byte = _I(0) if ratio <= _HALF else _I(_I(ratio + _I(_ONE - _I(1))) >> _I(23))
            else:
                byte = _most(_I(_I(_I(amax + carry) >> _I(23)) - emax), _I(0))
            scale = _as_float(_I(byte << _I(23))) if byte > _I(0) else _as_float(_HALF)
            _write(x, out, start, _MX, scale, largest, smallest, shift, limit, zero_sign)
    return top


@_compiled
@no_type_check
def _two_level(
    x, out, first, last, blocks, scales, element_max, scale_largest, scale_smallest,
    scale_shift, largest, smallest, shift, limit, zero_sign,
):  # fmt: skip
    """NVFP4 and NVINT4."""
    top = _I(0)
    for row in range(first, last):
        g = scales[row]
        for block in range(blocks):
            start = _U(_U(row * blocks + block) * _NV)
            amax = _block_amax(x, start, _NV)
            top = _most(top, amax)
            ratio = _as_int(_F(_as_float(amax) / _divisor(_F(element_max * g))))
            s = _round(ratio, scale_largest, scale_smallest, scale_shift)
            _write(x, out, start, _NV, _F(s * g), largest, smallest, shift, limit, zero_sign)
    return top


@_compiled
@no_type_check
def _four_over_six(
    x, out, first, last, blocks, scales, element_max, scale_largest, scale_smallest,
    scale_shift, largest, smallest, shift, limit, zero_sign,
):  # fmt: skip
    """NVFP4 with the better of two scales."""
    top = _I(0)
    errors = np.empty(NV_BLOCK, _F)
    for row in range(first, last):
        g = scales[row]
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
                this = _F(s * g)
                divisor = _divisor(this)
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
                if candidate == 0 or errors[0] < best:
                    best, d = errors[0], this
            _write(x, out, start, _NV, d, largest, smallest, shift, limit, zero_sign)
    return top
