"""`qdq`: shapes, dtypes and tensor scales, the same for every backend.

Every backend gives the same bits. Which one runs: on a CPU the compiled kernels if numba is there
(`pip install 'fp4scope[fast]'`), on CUDA Triton's, else plain torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fp4scope.errors import FormatError, nearest
from fp4scope.formats import BlockFormat, ScaleRule, Span
from fp4scope.kernels import eager, tiles, weights

BACKENDS = ("numba", "triton", "torch")
_DEVICE = {"numba": "cpu", "triton": "cuda"}
# On a CPU, so that a piece and what is made of it stay in the cache.
_PIECE_ELEMENTS = 1 << 19

_forced: str | None = None


def backend(device: torch.device) -> str:
    """Which backend quantizes there: `numba`, `triton` or `torch`."""
    return _backend(device.type, _forced)


@cache
def _backend(kind: str, forced: str | None) -> str:
    for name in BACKENDS if forced is None else (forced,):
        if _DEVICE.get(name, kind) == kind and _installed(name):
            return name
    return "torch"


@contextmanager
def using(name: str) -> Iterator[None]:
    """Only this backend, where it can run, until the block ends; for tests and benchmarks.

    Raises:
        FormatError: There is no such backend, or it is not installed.
    """
    global _forced
    if name not in BACKENDS:
        raise FormatError(f"unknown backend {name!r}; {nearest(name, BACKENDS)}")
    if not _installed(name):
        raise FormatError(f"the backend {name!r} is not installed; run pip install {name}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@cache
def _installed(name: str) -> bool:
    return find_spec(name) is not None


def qdq(
    x: Float[Tensor, "*shape"],
    fmt: BlockFormat,
    amax: Float[Tensor, "*lead"] | None = None,
    nonfinite: Bool[Tensor, ""] | None = None,
    out: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Quantize the blocks of the last axis to `fmt` and dequantize them again.

    Args:
        x: FP32, BF16 or FP16, on any device; a last axis that is no multiple of the block
            is computed as if padded with zeros.
        fmt: The format.
        amax: FP32 amax that fixes the tensor scale (NVFP4, `fp8:tensor`): one number, or a shape
            that broadcasts against `x` with a last axis of 1, one number for each such part.
            By default the amax of the whole of `x`. Formats without a tensor scale take none.
        nonfinite: Set to true if `x` holds NaN or Inf. Nothing waits for it; read it when
            convenient. The values of such a block are unspecified.
        out: Where to write: contiguous, of the shape, dtype and device of `x`; may be `x`.
            By default a new tensor.

    Returns:
        A contiguous tensor of the shape and dtype of `x`. Arithmetic is FP32; the one
        cast back saturates at the largest finite value of the dtype.
    """
    x = x.detach().resolve_neg()  # kernels read the memory, where a negative view has no sign
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return out
    if fmt.is_for_weights:
        return weights.qdq(x, fmt, nonfinite, out)
    if fmt.span is Span.TILE:
        cut = tiles.cut(x, fmt.block_size)
        qdq(cut, fmt.for_tiles, None, nonfinite, cut)
        return out.copy_(tiles.joined(cut, x.shape, fmt.block_size))
    cols = x.shape[-1] if x.ndim else 1
    rows_in, rows_out = x.reshape(-1, cols), out.view(-1, cols)
    name = backend(x.device)
    if name == "triton":
        amaxes = _amaxes(x, fmt, amax) if fmt.is_given_scale else None
        _on_cuda(rows_in, fmt, amaxes, rows_out, nonfinite)
        return out
    g = tensor_scales(x, fmt, amax) if fmt.is_given_scale else None
    blocks = _blocks_function(name)
    limit = torch.finfo(x.dtype).max
    direct = x.dtype == torch.float32 and cols % fmt.block_size == 0 and rows_in.is_contiguous()
    if direct and (name == "numba" or x.is_cuda):
        in_blocks = in_blocks_of(rows_in, fmt)
        blocks(in_blocks, fmt, g, rows_out.view(in_blocks.shape), limit, nonfinite)
        return out
    for rows in _pieces(rows_in, whole=x.is_cuda):
        y = rows_in[rows] if direct else padded(rows_in[rows], fmt)
        target = rows_out[rows] if direct else torch.empty_like(y)
        blocks(
            in_blocks_of(y, fmt),
            fmt,
            g if g is None or len(g) == 1 else g[rows],
            in_blocks_of(target, fmt),
            limit,
            nonfinite,
        )
        if not direct:
            rows_out[rows] = target[:, :cols]
    return out


def in_blocks_of(
    rows: Float[Tensor, "rows cols"], fmt: BlockFormat
) -> Float[Tensor, "rows blocks size"]:
    """Rows as the blocks that share a scale, or whole where that is a row or the tensor."""
    size = fmt.block_size if fmt.span is Span.BLOCK else rows.shape[1] or 1
    return rows.view(len(rows), rows.shape[1] // size, size)


def tensor_scales(
    x: Float[Tensor, "*shape"], fmt: BlockFormat, amax: Tensor | None
) -> Float[Tensor, "parts 1 1"]:
    """The FP32 tensor scale of the whole of `x`, or of every row."""
    amaxes = _amaxes(x, fmt, amax)
    # A tensor, not a number: CUDA multiplies by the reciprocal of a number.
    return (amaxes / torch.full_like(amaxes, fmt.tensor_divisor)).view(-1, 1, 1)


def _amaxes(
    x: Float[Tensor, "*shape"], fmt: BlockFormat, amax: Tensor | None
) -> Float[Tensor, " parts"]:
    """FP32: one for the whole tensor, or one for every row."""
    if fmt.rule is ScaleRule.ONE:
        return torch.full((1,), fmt.tensor_divisor, dtype=torch.float32, device=x.device)
    amax = x.abs().amax() if amax is None else amax
    amax = amax.to(device=x.device, dtype=torch.float32)
    if amax.numel() == 1:
        return amax.reshape(1)
    return amax.expand(*x.shape[:-1], 1).reshape(-1)


def _on_cuda(
    rows: Float[Tensor, "rows cols"],
    fmt: BlockFormat,
    amax: Float[Tensor, " parts"] | None,
    out: Float[Tensor, "rows cols"],
    nonfinite: Bool[Tensor, ""] | None,
) -> None:
    size = fmt.block_size
    if rows.shape[1] % size == 0:
        _whole_on_cuda(rows.contiguous(), fmt, amax, out, nonfinite)
        return
    whole = torch.nn.functional.pad(rows, (0, -rows.shape[1] % size)).contiguous()
    _whole_on_cuda(whole, fmt, amax, whole, nonfinite)
    out.copy_(whole[:, : rows.shape[1]])


def _whole_on_cuda(
    rows: Float[Tensor, "rows cols"],
    fmt: BlockFormat,
    amax: Float[Tensor, " parts"] | None,
    out: Float[Tensor, "rows cols"],
    nonfinite: Bool[Tensor, ""] | None,
) -> None:
    """Rows of whole blocks, by the kernel that has the format."""
    from fp4scope.kernels import fused, fused_hif4, fused_spans

    if has_small_blocks(fmt):
        fused.qdq(rows, fmt, amax, out, nonfinite)
    elif fmt.is_scaled_by_amax:
        size = in_blocks_of(rows, fmt).shape[2]
        fused_spans.qdq(rows, size, fmt, amax, out, nonfinite)
    else:
        fused_hif4.qdq(rows, out, nonfinite)


def has_small_blocks(fmt: BlockFormat) -> bool:
    """Whether a scale is that of 16 or 32 numbers and no more: the formats of `fused`."""
    others = fmt.is_scaled_by_amax or fmt.rule is ScaleRule.HIF4 or fmt.is_for_weights
    return not others


def padded(rows: Float[Tensor, "rows cols"], fmt: BlockFormat) -> Float[Tensor, "rows padded"]:
    """In FP32, contiguous, with zeros up to a whole number of blocks."""
    y = torch.nn.functional.pad(rows.to(torch.float32), (0, -rows.shape[1] % fmt.block_size))
    return y.contiguous()


def _blocks_function(name: str) -> Callable[..., None]:
    if name == "numba":
        from fp4scope.kernels import compiled

        return compiled.qdq_blocks
    return eager.qdq_blocks


def _pieces(rows: Float[Tensor, "rows cols"], whole: bool) -> Iterator[slice]:
    """Rows that are worked on together: all, or about as many as the cache holds."""
    count = 1 if whole else -(-rows.numel() // _PIECE_ELEMENTS)
    step = -(-len(rows) // count)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
