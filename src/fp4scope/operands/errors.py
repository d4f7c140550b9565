"""The error of a quantized operand, taken apart: exact, from the numbers themselves.

Every element is one of three: clipped (beyond the largest that its block's scale can hold, by more
than half of the last step), flushed (not zero, but its image is), or rounded. Squared errors of the
three sum to that of the operand. Beside them stands what the same elements in the same blocks are
off by where scales are not rounded (`exact`): what rounding the scales costs, which may be a gain.

Channels are the columns of an operand, over the tokens of a window or the rows of a weight. One is
an outlier where its root mean square is more than six times that of the median channel.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fp4scope.formats import BlockFormat, Span
from fp4scope.formats.spec import ElementFormat
from fp4scope.kernels import tiles
from fp4scope.kernels.dispatch import in_blocks_of, padded, tensor_scales
from fp4scope.kernels.eager import quantize_blocks
from fp4scope.operands.treated import exactly_scaled

_OUTLIER = 36.0
"""Of a channel's mean square, over that of the median channel."""
_TOP = 0.001
_SUMS = (
    "elements", "energy", "error", "clipping", "flushing", "exact", "clipped", "flushed",
    "fourth", "top", "blocks", "block_ratios",
)  # fmt: skip


@dataclass
class OperandError:
    """Sums over all elements of an operand that were seen, in one format.

    Attributes:
        sums: By name. `elements`, `clipped`, `flushed` and `blocks` count. `energy` and `fourth`
            are sums of second and fourth powers, `top` the energy of each tensor's largest 0.1%.
            `error` is the squared error, `clipping` and `flushing` its parts, `exact` that with
            scales that are not rounded. `block_ratios` sums amax / median over blocks.
        scales: Smallest and largest block scale, those of zeros left out.
        outliers: Of every tensor that was seen, its outlier channels.
    """

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    scales: tuple[float, float] = (float("inf"), 0.0)
    outliers: list[frozenset[int]] = field(default_factory=list)

    def add(self, x: Float[Tensor, "*shape"], fmt: BlockFormat, amax: Tensor | None) -> None:
        """Take a tensor in.

        Args:
            x: An operand; its last axis is the one that is summed over. Finite.
            fmt: What it is quantized to.
            amax: Of its tensor scale; None for its own.
        """
        if not x.numel():
            return
        whole = x.detach().to(torch.float32)
        rows, own = _rows(whole, fmt)
        # A matrix cut into squares has one row each, and none of these formats a tensor scale.
        g = tensor_scales(whole, fmt, amax) if fmt.is_given_scale else None
        found, (low, high) = _sums(in_blocks_of(rows, own), own, g)
        found |= _shape_of(whole)
        for name, value in found.items():
            self.sums[name] += value
        self.scales = min(self.scales[0], low), max(self.scales[1], high)
        self.outliers.append(_outliers(whole.reshape(-1, whole.shape[-1])))

    def share(self, name: str, of: str) -> float | None:
        """One sum in another; None where that is zero."""
        return self.sums[name] / self.sums[of] if self.sums[of] else None

    @property
    def kurtosis(self) -> float | None:
        """Of elements about zero: 3 of normal ones."""
        square = self.sums["energy"] ** 2
        return self.sums["fourth"] * self.sums["elements"] / square if square else None

    @property
    def always(self) -> list[int]:
        """Channels that are outliers in every tensor that was seen."""
        return sorted(frozenset.intersection(*self.outliers)) if self.outliers else []

    @property
    def stable(self) -> float | None:
        """Of the channels that are outliers in some tensor, the share that are in all."""
        ever = frozenset().union(*self.outliers)
        return len(self.always) / len(ever) if ever else None


def _rows(x: Tensor, fmt: BlockFormat) -> tuple[Float[Tensor, "rows cols"], BlockFormat]:
    """Rows of whole blocks."""
    if fmt.span is Span.TILE:
        return tiles.cut(x, fmt.block_size), fmt.for_tiles
    return padded(x.reshape(-1, x.shape[-1]), fmt), fmt


def _sums(
    blocks: Float[Tensor, "rows blocks size"], fmt: BlockFormat, g: Tensor | None
) -> tuple[dict[str, float], tuple[float, float]]:
    """Sums of what happens in blocks, and the smallest and largest scale."""
    magnitudes = blocks.abs()
    quantized = quantize_blocks(blocks, fmt, g)
    image = quantized.values * quantized.scale
    square = (image - magnitudes).double().square()
    clipped = magnitudes > _reach(fmt.element) * quantized.scale
    flushed = (image == 0) & (magnitudes > 0)
    found = {"error": square.sum(), "clipped": clipped.sum(), "flushed": flushed.sum()}
    found |= {"clipping": square[clipped].sum(), "flushing": square[flushed].sum()}
    exact = exactly_scaled(fmt)
    if exact is fmt:
        found["exact"] = found["error"]
    else:
        own = quantize_blocks(blocks, exact, None)
        found["exact"] = (own.values * own.scale - magnitudes).double().square().sum()
    median = magnitudes.median(-1).values
    some = median > 0
    found["blocks"] = some.sum()
    found["block_ratios"] = (magnitudes.amax(-1)[some] / median[some]).double().sum()
    used = quantized.scale.expand(*blocks.shape[:-1], -1)[magnitudes.amax(-1) > 0]
    ends = (float(used.min()), float(used.max())) if used.numel() else (float("inf"), 0.0)
    return {name: float(value) for name, value in found.items()}, ends


def _reach(element: ElementFormat) -> float:
    """From where on a number would round to one beyond the largest."""
    return element.max + 2.0 ** (element.max_exponent - element.mantissa_bits - 1)


def _shape_of(x: Tensor) -> dict[str, float]:
    """How the elements of a tensor are distributed."""
    square = x.double().square().flatten()
    largest = square.topk(max(1, round(_TOP * square.numel()))).values
    return {
        "elements": float(square.numel()),
        "energy": float(square.sum()),
        "fourth": float(square.square().sum()),
        "top": float(largest.sum()),
    }


def _outliers(rows: Float[Tensor, "rows cols"]) -> frozenset[int]:
    energy = rows.double().square().mean(0)
    return frozenset(torch.nonzero(energy > _OUTLIER * energy.median())[:, 0].tolist())


def relative_error(
    moved: Float[Tensor, "*rows cols"], output: Float[Tensor, "*rows cols"]
) -> float | None:
    """Energy of an output's error, of the output's own: the mean over rows that are not zero."""
    own, off = (x.double().square().sum(-1) for x in (output, moved))
    some = own > 0
    return float((off[some] / own[some]).mean()) if bool(some.any()) else None
