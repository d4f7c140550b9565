"""How much runs at once, so that a sweep stays inside its memory.

A hidden state of one window takes tokens * hidden numbers, and a sweep of cells ends with
one for each variant. What does not fit is cut in this order: fewer windows in a chunk, then
variants in groups, each a pass of its own over the weights, then states in host memory. The size
of a batch depends on the model, and on the memory only where that is short, so that a study
gives the same numbers on a busy machine and an idle one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fp4scope.design import NOTHING, Run
from fp4scope.errors import StudyError
from fp4scope.kernels import backend
from fp4scope.models import LoadedModel, config_size, config_value
from fp4scope.recipes import Recipe, Sites
from fp4scope.sweep.tree import Tree, build_tree, peak_image_numbers
from fp4scope.sweep.wavefront import FEWEST_ROWS, Batches

# Where a device is busy: what a CPU's caches like, and on a GPU more work than Python takes time to
# launch.
_BLOCK_TOKENS = {"cpu": 1024, "cuda": 1 << 16}
# Rows of logits at a time: what a CPU's cache likes, and what keeps a GPU busier than its driver.
TILE_ROWS = {"cpu": 128, "cuda": 1024}
_HEAD_BYTES = {"cpu": 1 << 27, "cuda": 1 << 32}
# A chunk this large wastes little on quantizing the weights and capturing the inputs.
_CHUNK_TOKENS = {"cpu": 1 << 14, "cuda": 1 << 23}
# Passes over the weights that are cheaper than moving the states to the host and back.
_MOST_GROUPS_BEFORE_SPILL = 8
_MARGIN = 1 << 29
_RESERVE = 3 << 26
"""Workspaces of libraries, the allocator's own losses."""


@dataclass(frozen=True)
class Shape:
    """What runs together.

    `windows` in a chunk; variants in so many `groups`, each a pass over the weights; `block`
    windows of any variants in a block's batch; `head` states in the head's, `rows` tokens of each;
    with `spill` states wait on the host.
    """

    windows: int
    groups: int
    block: int
    head: int
    rows: int = TILE_ROWS["cpu"]
    spill: bool = False

    @property
    def batches(self) -> Batches:
        return Batches(self.block, self.head, self.rows, self.spill)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pass:
    """Runs that go over the weights together. The first `carried` are only compared with.

    `image_numbers` is how many numbers its quantized weights have at the peak.
    """

    runs: tuple[Run, ...]
    carried: int
    tree: Tree
    image_numbers: int


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


def passes(runs: Sequence[Run], groups: int, loaded: LoadedModel) -> list[Pass]:
    """Runs cut into groups of about the same number, neighbours together.

    Units of one block are neighbours, so that what they share is computed in few groups. Every
    group has the full-precision model and whatever else its runs are compared with.
    """
    sites = loaded.layout.sites
    ordered = sorted(runs, key=lambda run: _place(run.recipe, sites))
    needed = {run.against for run in runs}
    fixed = [run for run in runs if not run.replica and run.recipe in needed]
    held = set(fixed)
    others = [run for run in ordered if run not in held]
    size = -(-len(others) // groups)
    found: list[Pass] = []
    for start in range(0, max(1, len(others)), max(1, size)):
        chosen = others[start : start + size]
        wanted = {NOTHING} | {run.against for run in chosen}
        carried = [run for run in fixed if run.recipe in wanted] if found else fixed
        members = (*carried, *chosen)
        tree = build_tree(members, sites)
        images = peak_image_numbers(tree, sites)
        found.append(Pass(members, len(carried) if found else 0, tree, images))
    return found


def _place(recipe: Recipe, sites: Sites) -> tuple[Any, ...]:
    """Its settings, its base, and the first block where it is not its base's."""
    settings = sorted((s.format, s.precision) for s in recipe.settings)
    first = min((sites.by_name[name].block for name in recipe.edited), default=-1)
    return settings, recipe.base is not None, first


class Memory:
    """What a sweep of some runs takes, by shape. Sizes in bytes, beside the model itself."""

    def __init__(
        self,
        loaded: LoadedModel,
        runs: Sequence[Run],
        seq_len: int,
        captured_bytes: int,
    ) -> None:
        self._loaded = loaded
        self._runs = runs
        self._seq_len = seq_len
        self._captured = captured_bytes
        self._by_groups: dict[int, list[Pass]] = {}
        self._kind = loaded.device.type if loaded.device.type in _BLOCK_TOKENS else "cpu"

    def passes(self, groups: int) -> list[Pass]:
        """The runs in so many groups; made once for each number of them."""
        if groups not in self._by_groups:
            self._by_groups[groups] = passes(self._runs, groups, self._loaded)
        return self._by_groups[groups]

    def needed(self, shape: Shape) -> int:
        """On the device, at the peak."""
        size = self._loaded.dtype.itemsize
        state = shape.windows * self._seq_len * self._loaded.hidden_size * size
        trees = [p.tree for p in self.passes(shape.groups)]
        peak = max(t.peak_states(max(1, shape.block // shape.windows)) for t in trees)
        states = 2 * state if shape.spill else peak * state
        if not shape.spill:  # a byte says how a perturbation moves a number
            states += max(len(t.roots) - 1 for t in trees) * state // size
        captured = self._captured * shape.windows
        return states + captured + self._workspace(shape) + _RESERVE

    def _workspace(self, shape: Shape) -> int:
        """What a batch takes inside a block or in the head, whichever is more."""
        config, size, tokens = self._loaded.config, self._loaded.dtype.itemsize, self._seq_len
        sites = self._loaded.layout.sites
        widest = max(max(site.rows, site.cols) for site in sites)
        images = max(p.image_numbers for p in self.passes(shape.groups)) * size

        batch = shape.block * tokens
        block = batch * (5 * widest + 8 * self._loaded.hidden_size) * size
        unfused = self._kind == "cuda" and backend(self._loaded.device) != "triton"
        if unfused:  # quantizing goes through whole tensors
            block += 4 * 4 * max(batch * widest, max(site.parameters for site in sites))
        if config_value(config, "_attn_implementation") == "eager":
            # A model that names no heads has no attention.
            heads = config_size(config, "num_attention_heads", 0)
            block += 3 * 4 * shape.block * heads * tokens**2

        logits = min(tokens, shape.rows + FEWEST_ROWS) * self._loaded.vocab_size
        fused = self._kind == "cuda" and not unfused
        head = logits * (size if fused else size + 4) + shape.head * logits * size
        if unfused:
            head += 3 * 4 * shape.head * logits
        kept = len(self._runs) * tokens * 9  # NLL, KL and top-1 of every row
        return images + max(block, head + kept)

    def shape(self, windows: int, budget: int) -> Shape:
        """The shape to use for so many windows, or fewer at a time.

        Raises:
            StudyError: Nothing fits.
        """
        # A batch may take half or a quarter; smaller ones cost little until they are very small.
        for share in (2, 4):
            shape = self._fitted(windows, budget, budget // share)
            if self.needed(shape) <= budget:
                return shape
        raise StudyError(
            f"memory is {_gb(budget)} beside the model, but a sweep of one window of "
            f"{self._seq_len} tokens at a time takes {_gb(self.needed(shape))}; give "
            "--memory more, or use a smaller --seq-len"
        )

    def _fitted(self, windows: int, budget: int, batch: int) -> Shape:
        """Cut until it fits, or cannot be cut any more; a batch takes so many bytes at most."""
        shape = self._preferred(windows)
        while self._workspace(shape) > batch and shape.block * shape.head > 1:
            shape = replace(shape, block=-(-shape.block // 2), head=-(-shape.head // 2))
        while self._workspace(shape) > batch and shape.rows > TILE_ROWS["cpu"]:
            shape = replace(shape, rows=shape.rows // 2)
        while self.needed(shape) > budget and shape.windows > 1:
            shape = replace(shape, windows=shape.windows // 2)
        cuda = self._kind == "cuda"
        most = _MOST_GROUPS_BEFORE_SPILL if cuda else len(self._runs)
        while self.needed(shape) > budget and shape.groups < most:
            shape = replace(shape, groups=min(2 * shape.groups, most))
        if self.needed(shape) > budget and cuda:
            shape = replace(shape, groups=1, spill=True)
        return shape

    def fewer_groups(self, shape: Shape, budget: int) -> Shape:
        """The same with as few passes over the weights as fit, for when some were dropped."""
        while shape.groups > 1:
            candidate = replace(shape, groups=-(-shape.groups // 2))
            if self.needed(candidate) > budget:
                break
            shape = candidate
        return shape

    def smaller(self, shape: Shape) -> Shape | None:
        """About half as much at once; None where nothing is left to halve."""
        if shape.windows > 1:
            return replace(shape, windows=shape.windows // 2)
        if shape.groups < len(self._runs):
            return replace(shape, groups=min(2 * shape.groups, len(self._runs)))
        if shape.block > 1 or shape.head > 1:
            return replace(shape, block=max(1, shape.block // 2), head=max(1, shape.head // 2))
        if shape.rows > TILE_ROWS["cpu"]:
            return replace(shape, rows=shape.rows // 2)
        if self._kind == "cuda" and not shape.spill:
            return replace(shape, spill=True)
        return None

    def _preferred(self, windows: int) -> Shape:
        block = max(1, _BLOCK_TOKENS[self._kind] // self._seq_len)
        rows = TILE_ROWS[self._kind]
        logits = min(self._seq_len, rows) * self._loaded.vocab_size * self._loaded.dtype.itemsize
        head = max(1, _HEAD_BYTES[self._kind] // logits)
        chunk = -(-_CHUNK_TOKENS[self._kind] // (len(self._runs) * self._seq_len))
        together = max(1, min(windows, block, chunk))
        return Shape(windows=together, groups=1, block=block, head=head, rows=rows)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
