"""What enters linears: max and quantiles of |x| over every element, in bounded memory.

The upper 16 bits of an FP32 number without its sign (8 of exponent, 7 of significand) are a
bin on a logarithmic scale, 1/128 to 1/256 of the value wide: 32,768 counters hold the whole
distribution. A quantile is read off as the middle of its bin, at most 0.4% from an element
that has it; for BF16, whose numbers *are* these 16 bits, it is exact.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fp4scope.operands.adapters import Input
from fp4scope.operands.products import operand_at, watched

_BINS = 1 << 15
_FINITE_BINS = 0x7F80
"""Bins from here on hold Inf and NaN."""


@dataclass
class InputStatistics:
    """Counts of |x| by bin. `step` is half a bin in units of the last place of FP32.

    Of a product that holds experts, `experts` has each one's amax and rows (tokens), as a linear
    alone has them for itself. Rows of zeros are none of theirs: some families send every token to
    every expert, as zeros where it was not chosen.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.int64))
    max: float = 0.0
    step: int = 1 << 15
    experts: tuple[tuple[float, int], ...] = ()

    @property
    def elements(self) -> int:
        """How many finite elements were seen."""
        return int(self.counts[:_FINITE_BINS].sum())

    @property
    def nonfinite(self) -> int:
        return int(self.counts[_FINITE_BINS:].sum())

    def __add__(self, other: "InputStatistics") -> "InputStatistics":
        """The statistics of both sets of elements together."""
        return InputStatistics(
            self.counts + other.counts,
            max(self.max, other.max),
            min(self.step, other.step),
            self.experts + other.experts,
        )

    def quantile(self, q: float) -> float:
        """The smallest seen |x| that at least a share `q` of the elements do not exceed.

        Finite elements only; NaN if there was none. Relative error at most 0.4% for normal
        FP32 numbers.
        """
        below = self.counts[:_FINITE_BINS].cumsum(0)
        total = int(below[-1])
        if total == 0:
            return float("nan")
        rank = torch.tensor(max(1, -int(-q * total // 1)))
        index = int(torch.searchsorted(below, rank))
        if index == 0:
            return 0.0
        bits = torch.tensor((index << 16) + self.step, dtype=torch.int32)
        return min(float(bits.view(torch.float32)), self.max)

    @property
    def ratio(self) -> float | None:
        """Max / P99.9: how far the largest outlier stands out. None if P99.9 is zero."""
        p999 = self.quantile(0.999)
        return self.max / p999 if p999 > 0 else None


class _Collector:
    """Counters on the model's device; a tensor that several linears share is binned once."""

    def __init__(self, device: torch.device, experts: int) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64, device=device)
        self.max = torch.zeros((), dtype=torch.float32, device=device)
        self._rows = 0
        self._amaxes = torch.zeros(experts, dtype=torch.float32, device=device)
        self._by_expert = torch.zeros(experts, dtype=torch.int64, device=device)

    def add(self, counts: Tensor, peak: Tensor) -> None:
        self.counts += counts
        self.max = torch.maximum(self.max, peak)

    def add_experts(self, entering: Input) -> None:
        x = entering.x.detach()
        self._rows += x.shape[:-1].numel()
        if entering.ends is not None:
            expert = entering.by_row(torch.arange(len(self._by_expert), device=x.device))
            amaxes = x.abs().amax(1).float()
            chosen = (amaxes != 0).long()
            self._amaxes.scatter_reduce_(0, expert, amaxes, "amax")
            self._by_expert.scatter_add_(0, expert, chosen)
            self.counts[0] -= (1 - chosen).sum() * x.shape[1]

    @property
    def experts(self) -> tuple[tuple[float, int], ...]:
        """Each one's amax and rows."""
        if len(self._amaxes) == 1:
            return ((float(self.max), self._rows),)
        return tuple(zip(self._amaxes.tolist(), self._by_expert.tolist(), strict=True))


@torch.no_grad()
def observe_inputs(
    model: nn.Module, linears: Iterable[str], forwards: Iterable[None]
) -> dict[str, InputStatistics]:
    """Input statistics of the named linears over all of `forwards`.

    Args:
        model: The model. Hooks are there only while this runs.
        linears: Full module names, and those of what attention multiplies.
        forwards: An iterable whose every step runs the model once.

    Returns:
        Statistics by name. A linear that no forward reached has none of its elements.
    """
    device = next(model.parameters()).device
    watch = {name: operand_at(model, name) for name in linears}
    collectors = {name: _Collector(device, product.experts) for name, product in watch.items()}
    last: list[tuple[Tensor, int, Tensor, Tensor]] = []

    def collect(name: str, entering: Input) -> None:
        x = entering.x
        version = -1 if x.is_inference() else x._version
        if version < 0 or not (last and last[0][0] is x and last[0][1] == version):
            last[:] = [(x, version, *_bin(x))]
        collectors[name].add(*last[0][2:])
        collectors[name].add_experts(entering)

    with watched(watch, collect):
        for _ in forwards:
            pass
    exact = next(model.parameters()).dtype == torch.bfloat16
    return {
        name: InputStatistics(c.counts.cpu(), float(c.max), 0 if exact else 1 << 15, c.experts)
        for name, c in collectors.items()
    }


def never_run(model: nn.Module, linears: Iterable[str], forward: Callable[[], object]) -> set[str]:
    """Those of the named linears that nothing calls in a forward.

    A model may read a linear's weight without calling it, or not use it at all.
    """
    silent = set(linears)
    with watched(
        {name: operand_at(model, name) for name in sorted(silent)},
        lambda name, _: silent.discard(name),
    ):
        forward()
    return silent


def _bin(x: Tensor) -> tuple[Tensor, Tensor]:
    bits = x.detach().float().contiguous().view(torch.int32).flatten() & 0x7FFFFFFF
    # As torch.bincount, which would wait for the GPU to look at the largest and smallest.
    counts = torch.zeros(_BINS, dtype=torch.int64, device=x.device)
    counts.index_add_(0, bits >> 16, counts.new_ones(()).expand(bits.shape))
    largest = torch.where(bits < 0x7F800000, bits, 0).amax() if bits.numel() else bits.new_zeros(())
    return counts, largest.view(torch.float32)
