"""How much runs at once, so that a sweep stays inside its memory.

A state of one window takes tokens * hidden numbers, and more where blocks hand each other more. A
sweep of layers ends with one for each variant. What does not fit is cut in this order: fewer
windows in a chunk, then variants in groups, each a pass of its own over the weights, then states in
host memory. The size of a batch depends on the model, and on the memory only where that is short,
so that a study gives the same numbers on a busy machine and an idle one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch

from fp4scope.design import Run
from fp4scope.errors import StudyError
from fp4scope.kernels import backend
from fp4scope.models import LoadedModel, config_size, config_value
from fp4scope.operands import FEWEST_ROWS
from fp4scope.sweep.passes import Pass, executions, passes, work
from fp4scope.sweep.shape import TILE_ROWS, Shape

# Passes over the weights that are cheaper than moving the states to the host and back.
_MOST_GROUPS_BEFORE_SPILL = 8
_MARGIN = 1 << 29
_TOKENS_TO_HIDE = {"yes": 1 << 14, "disk": 1 << 18}
"""Of a dense model's states in a pass: operations a second of a large card over bytes a second that
reach it, with some to spare (docs/performance.md)."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a kind of device likes.

    Attributes:
        block_tokens: In a block's batch, where the device is busy: what a CPU's caches like, and on
            a GPU more work than Python takes time to launch.
        tile_rows: Rows of logits at a time: what a CPU's cache likes, and what keeps a GPU busier
            than its driver.
        head_bytes: Of logits in the head's batch.
        chunk_tokens: Of all runs in a job. So large a job wastes little on quantizing the weights
            and capturing the inputs.
        reserve: Bytes for workspaces of libraries, and the allocator's own losses.
    """

    block_tokens: int
    tile_rows: int
    head_bytes: int
    chunk_tokens: int
    reserve: int = 3 << 26


SIZES = {
    "cpu": Sizes(block_tokens=1024, tile_rows=TILE_ROWS, head_bytes=1 << 27, chunk_tokens=1 << 14),
    "cuda": Sizes(block_tokens=1 << 16, tile_rows=1024, head_bytes=1 << 32, chunk_tokens=1 << 23),
}


def free_memory(device: torch.device) -> int:
    """What a sweep may take on a device if the user names nothing: what is free, less a margin."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        import psutil

        free = psutil.virtual_memory().available
    return max(0, free - max(_MARGIN, free // 10))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "can't allocate memory" in text
    )


class Memory:
    """What a sweep of some runs takes, by shape, in bytes beside the model itself.

    Args:
        loaded: The model.
        runs: What is measured.
        seq_len: Tokens in each window.
        captured_bytes: What the model hands its blocks, for one window.
        budget: Bytes that it may take; by default what is free, less a margin.
        kind: Of device: `cpu` or `cuda`; by default the model's.
        sizes: What such a device likes; by default that of `SIZES`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        runs: Sequence[Run],
        seq_len: int,
        captured_bytes: int,
        budget: int | None = None,
        *,
        kind: str | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self._loaded = loaded
        self.runs = runs
        self._seq_len = seq_len
        self._captured = captured_bytes
        self.budget = free_memory(loaded.device) if budget is None else budget
        self._by_groups: dict[int, list[Pass]] = {}
        device = kind or loaded.device.type
        self._kind = device if device in SIZES else "cpu"
        self._sizes = sizes or SIZES[self._kind]

    def of(self, runs: Sequence[Run]) -> "Memory":
        """The same for other runs."""
        kind, sizes = self._kind, self._sizes
        length, captured = self._seq_len, self._captured
        return type(self)(self._loaded, runs, length, captured, self.budget, kind=kind, sizes=sizes)

    def passes(self, groups: int) -> list[Pass]:
        """The runs in so many groups; made once for each number of them."""
        if groups not in self._by_groups:
            self._by_groups[groups] = passes(self.runs, groups, self._loaded.layout.sites)
        return self._by_groups[groups]

    def executions(self, shape: Shape) -> int:
        """Blocks to run on each window."""
        return executions(self.passes(shape.groups))

    def work(self, shape: Shape) -> float:
        """The same with the head, in blocks."""
        return work(self.passes(shape.groups), self._loaded)

    def needed(self, shape: Shape) -> int:
        """On the device, at the peak."""
        tokens, sizes = shape.windows * self._seq_len, self._loaded.bytes_per_token
        trees = [p.tree for p in self.passes(shape.groups)]
        if shape.spill:
            states = 2 * max(sizes)
        else:
            at_once = max(1, shape.block // shape.windows)
            states = max(t.peak_states(at_once, sizes) for t in trees)
            # A byte says how a perturbation moves a number.
            states += max(len(t.roots) - 1 for t in trees) * sizes[0] / self._loaded.dtype.itemsize
        states = int(tokens * states)
        captured = self._captured * shape.windows
        return states + captured + self._workspace(shape) + self._sizes.reserve

    def _workspace(self, shape: Shape) -> int:
        """What a batch takes inside a block or in the head, whichever is more."""
        size, tokens, sites = self._loaded.dtype.itemsize, self._seq_len, self._loaded.layout.sites
        images = max(p.image_numbers for p in self.passes(shape.groups))
        # The image of one expert has room for all, and so has what stands in the weight's place; so
        # it is with parts, and where they differ the product runs once for each.
        divided = [
            [s for s in b if s.expert is not None or s.part is not None] for b in sites.blocks
        ]
        images += 2 * max(sum(s.parameters for s in block) for block in divided)
        images *= size

        logits = min(tokens, shape.rows + FEWEST_ROWS) * self._loaded.vocab_size
        fused = self._kind == "cuda" and not self._unfused
        head = logits * (size if fused else size + 4) + shape.head * logits * size
        if self._unfused:
            head += 3 * 4 * shape.head * logits
        kept = len(self.runs) * tokens * 9  # NLL, KL and top-1 of every row
        return images + max(self._in_a_block(shape.block), head + kept)

    @property
    def _unfused(self) -> bool:
        """Whether quantizing on a GPU goes through whole tensors."""
        return self._kind == "cuda" and backend(self._loaded.device) != "triton"

    def _in_a_block(self, windows: int) -> int:
        """What a batch of so many windows takes inside a block."""
        config, size, tokens = self._loaded.config, self._loaded.dtype.itemsize, self._seq_len
        products, copies = self._loaded.products.values(), self._loaded.copies
        inside = self._loaded.block_products
        widest = max(max(p.rows, p.cols) * min(p.experts, copies) for p in inside)
        batch = windows * tokens
        block = int(batch * (5 * widest * size + 8 * max(self._loaded.bytes_per_token)))
        if self._unfused:
            block += 4 * 4 * max(batch * widest, max(p.parameter.numel() for p in products))
        if config_value(config, "_attn_implementation") == "eager":
            # A model that names no heads has no attention.
            heads = config_size(config, "num_attention_heads", 0)
            images = 0 if all(site.is_linear for site in self._loaded.layout.sites) else 2
            block += (3 + images) * 4 * windows * heads * tokens**2
        return block

    def shape(self, windows: int) -> Shape:
        """The shape to use for so many windows, or fewer at a time.

        Raises:
            StudyError: Nothing fits.
        """
        # A batch may take half or a quarter; smaller ones cost little until they are very small.
        for share in (2, 4):
            shape = self._fitted(windows, self.budget // share)
            if self.fits(shape):
                break
        self.require(shape)
        return shape

    def require(self, shape: Shape) -> None:
        """Refuse the smallest shape if it does not fit.

        Raises:
            StudyError: It does not.
        """
        if not self.fits(shape):
            raise StudyError(
                f"memory is {_gb(self.budget)} beside the model, but a sweep of one window of "
                f"{self._seq_len} tokens at a time takes {_gb(self.needed(shape))}; give "
                "--memory more, or use a smaller --seq-len"
            )

    def fits(self, shape: Shape) -> bool:
        """Whether the budget is enough."""
        return self.needed(shape) <= self.budget

    def _fitted(self, windows: int, batch: int) -> Shape:
        """Cut until it fits, or cannot be cut any more; a batch takes so many bytes at most."""
        shape = self._preferred(windows)
        while self._workspace(shape) > batch and shape.block * shape.head > 1:
            shape = replace(shape, block=-(-shape.block // 2), head=-(-shape.head // 2))
        while self._workspace(shape) > batch and shape.rows > TILE_ROWS:
            shape = replace(shape, rows=shape.rows // 2)
        while not self.fits(shape) and shape.windows > 1:
            shape = replace(shape, windows=shape.windows // 2)
        cuda = self._kind == "cuda"
        most = _MOST_GROUPS_BEFORE_SPILL if cuda else len(self.runs)
        while not self.fits(shape) and shape.groups < most:
            shape = replace(shape, groups=min(2 * shape.groups, most))
        if not self.fits(shape) and cuda:
            shape = replace(shape, groups=1, spill=True)
        return shape

    def fewer_groups(self, shape: Shape) -> Shape:
        """The same with as few passes over the weights as fit, for when some were dropped."""
        while shape.groups > 1:
            candidate = replace(shape, groups=-(-shape.groups // 2))
            if not self.fits(candidate):
                break
            shape = candidate
        return shape

    def smaller(self, shape: Shape) -> Shape | None:
        """About half as much at once; None where nothing is left to halve."""
        if shape.windows > 1:
            return replace(shape, windows=shape.windows // 2)
        if shape.groups < len(self.runs):
            return replace(shape, groups=min(2 * shape.groups, len(self.runs)))
        if shape.block > 1 or shape.head > 1:
            return replace(shape, block=max(1, shape.block // 2), head=max(1, shape.head // 2))
        if shape.rows > TILE_ROWS:
            return replace(shape, rows=shape.rows // 2)
        if self._kind == "cuda" and not shape.spill:
            return replace(shape, spill=True)
        return None

    def _to_hide_copies(self) -> int:
        """Windows of a pass that computes longer than blocks take to come to the device."""
        loaded = self._loaded
        if loaded.offloaded is None:
            return 1
        held = sum(p.rows * p.cols * p.experts for p in loaded.block_products)
        tokens = _TOKENS_TO_HIDE[loaded.offloaded.kind] * held / loaded.active
        states = executions(self.passes(1)) / loaded.layout.blocks
        return ceil(tokens / (states * self._seq_len))

    def _preferred(self, windows: int) -> Shape:
        sizes = self._sizes
        block = max(1, sizes.block_tokens // self._seq_len)
        rows = sizes.tile_rows
        logits = min(self._seq_len, rows) * self._loaded.vocab_size * self._loaded.dtype.itemsize
        head = max(1, sizes.head_bytes // logits)
        chunk = -(-sizes.chunk_tokens // (len(self.runs) * self._seq_len))
        together = max(1, min(windows, max(block, self._to_hide_copies()), chunk))
        return Shape(windows=together, groups=1, block=block, head=head, rows=rows)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
