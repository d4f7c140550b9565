"""What a sweep takes that runs the whole model for every recipe, where no wavefront can.

Some models run their blocks several times, or do something between them that no block shows.
Each recipe is then a forward of its own for each window: nothing is shared between recipes but the
quantized weights of one to the next, and nothing waits in memory but those and some logits.
"""

from collections.abc import Sequence

from fp4scope.design import Run
from fp4scope.models import LoadedModel
from fp4scope.recipes import Recipe
from fp4scope.sweep.check import SelfCheck
from fp4scope.sweep.memory import Memory
from fp4scope.sweep.naive import forwards
from fp4scope.sweep.shape import Shape
from fp4scope.sweep.wavefront import head_in_blocks


def memory_for(
    check: SelfCheck,
    loaded: LoadedModel,
    runs: Sequence[Run],
    seq_len: int,
    budget: int | None = None,
) -> Memory:
    """Of a sweep by the wavefront, or by the model's own forward where the check says so.

    Args:
        check: What the self-check found.
        loaded: The model.
        runs: What is measured.
        seq_len: Tokens in each window.
        budget: Bytes that it may take; by default what is free, less a margin.
    """
    kind = Memory if check.reason is None else WholeMemory
    return kind(loaded, runs, seq_len, check.captured_bytes, budget)


class WholeMemory(Memory):
    """Of a sweep by the model's own forward: there is but one shape."""

    def shape(self, windows: int) -> Shape:
        self.require(shape := self._preferred(windows))
        return shape

    def executions(self, shape: Shape) -> int:
        return forwards(self.runs) * self._loaded.layout.blocks

    def work(self, shape: Shape) -> float:
        return forwards(self.runs) * (self._loaded.layout.blocks + head_in_blocks(self._loaded))

    def needed(self, shape: Shape) -> int:
        size = self._loaded.dtype.itemsize
        images = max((self._quantized(run.recipe) for run in self.runs), default=0)
        logits = self._seq_len * self._loaded.vocab_size
        # The model's own, the reference's and its probabilities, and what comparing them takes.
        head = logits * (2 * size + 4 + 8)
        return images * size + self._in_a_block(1) + head + self._sizes.reserve

    def fewer_groups(self, shape: Shape) -> Shape:
        return shape

    def smaller(self, shape: Shape) -> Shape | None:
        return None

    def _preferred(self, windows: int) -> Shape:
        return Shape(windows=1, groups=1, block=1, head=1, whole=True)

    def _quantized(self, recipe: Recipe) -> int:
        """Numbers in the weights that a recipe quantizes, or more."""
        sites = self._loaded.layout.sites
        if recipe.base is not None and recipe.base.weight is not None:
            return sum(site.parameters for site in sites)
        return sum(sites.by_name[name].parameters for name in recipe.edited)
