"""Run a model block by block: what its own forward hands each block, one block, its own tail.

A block takes more than a hidden state: masks, rotary embeddings, positions, which differ by
layer type and by family. None of it is derived here. `capture` lets the model run its own
forward on each window, its blocks stepping aside, and keeps what every block was called with; `run`
calls a block the same way on a batch of other states. What an earlier block left for it beside the
hidden state (`links`) is part of the state. What the model does after its blocks
(final norm, head, soft caps, scales) is its own forward too, the blocks aside again: `tail`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from fp4scope.errors import ModelError
from fp4scope.models.calls import (
    HIDDEN,
    BlockInputs,
    first_of,
    for_batch,
    hidden_of,
    merged_calls,
    state_of,
    without_hidden,
)
from fp4scope.models.config import config_value, text_config
from fp4scope.models.fusion import Entering, fused, is_gated, namespaces, replaced
from fp4scope.models.layout import Layout
from fp4scope.models.links import CALL, OUTPUT, Carried, Links, Shared, Tracer, at, mapped, placed
from fp4scope.models.offload import Offloaded
from fp4scope.models.states import State

Tail = Callable[[Tensor], Tensor]


def _changed(tensor: Tensor, before: Tensor, version: int | None) -> bool:
    """Whether it was written into, also past what counts versions, or with the same numbers."""
    counted = version is not None and tensor._version != version
    return counted or not torch.equal(tensor, before)


class BlockStack:
    """The blocks of a model, to be run one at a time.

    Args:
        model: The model.
        layout: Of the model.
        offloaded: What brings its blocks to the device, if they wait on the host.
    """

    def __init__(
        self, model: PreTrainedModel, layout: Layout, offloaded: Offloaded | None = None
    ) -> None:
        self._model = model
        self._offloaded = offloaded
        stack = model.get_submodule(layout.blocks_path)
        assert isinstance(stack, nn.ModuleList)
        self._blocks = list(stack)
        # What each block returns beside the state, None if that is all: how many items of a tuple.
        # Unknown until the blocks have run once.
        self._beside: list[int | None] = []
        self._links: Links | None = None
        self._overwrites = False

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def links(self) -> Links:
        """What blocks hand each other; known once there was a `capture`."""
        assert self._links is not None, "capture something first"
        return self._links

    @property
    def overwrites(self) -> bool:
        """Whether a block writes into the hidden state that it gets; known as `links` are."""
        return self._overwrites

    @property
    def bytes_per_token(self) -> Sequence[float] | None:
        """Of a state as it enters each block, and behind the last; None before a `capture`."""
        return None if self._links is None else self._links.bytes_per_token

    @torch.no_grad()
    def capture(self, ids: Int[Tensor, "windows tokens"]) -> BlockInputs:
        """Run the model's own forward on each window and keep what its blocks are called with.

        The first time of all the blocks run, which shows what they return and what they hand each
        other; from then on they step aside, since what a model hands its blocks beside the states
        does not depend on these.

        Raises:
            ModelError: A block does not run exactly once a forward, or takes or gives no hidden
                state.
        """
        embedded, calls = zip(*(self._capture_one(row) for row in ids), strict=True)
        return BlockInputs(torch.cat(embedded), merged_calls(calls, {}))

    def _capture_one(self, row: Int[Tensor, " tokens"]) -> tuple[Tensor, tuple[Any, ...]]:
        calls: list[tuple[int, Any]] = []
        embedded: list[Tensor] = []
        beside: list[int | None] = []
        entered: list[tuple[Tensor, Tensor, int | None]] = []
        tracer = None if self._beside else Tracer(len(row))

        def before(index: int, _: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
            hidden, axes = hidden_of(args, kwargs, len(row))
            if not calls:
                embedded.append(axes.first(hidden, 1).clone())
            calls.append((index, without_hidden(args, kwargs)))
            if tracer is not None:
                tracer.enter(hidden, calls[-1][1])
                version = None if hidden.is_inference() else hidden._version
                entered.append((hidden, hidden.clone(), version))

        def after(_: nn.Module, __: Any, output: Any) -> None:  # noqa: ANN401
            state_of(output)
            beside.append(len(output) - 1 if isinstance(output, tuple | list) else None)
            if tracer is not None:
                tracer.leave(output)
                self._overwrites |= _changed(*entered.pop())

        with ExitStack() as stack:
            for index, block in enumerate(self._blocks):
                first = {"prepend": True, "with_kwargs": True}
                hook = block.register_forward_pre_hook(partial(before, index), **first)
                stack.callback(hook.remove)
                stack.callback(block.register_forward_hook(after).remove)
            stack.enter_context(only_last_rows(self._model, 1))
            stack.enter_context(tracer or self._aside(lambda _, hidden: hidden))
            device = next(self._model.parameters()).device
            self._model(row[None].to(device), use_cache=False)
        if [index for index, _ in calls] != list(range(len(self._blocks))):
            raise ModelError(
                f"{type(self._model).__name__} does not run its {len(self._blocks)} blocks once "
                "each and in order, so it cannot be measured block by block"
            )
        if tracer is not None:
            self._links = tracer.links()
        self._beside = beside
        found = zip(calls, self.links.places, strict=True)
        return embedded[0], tuple(placed(call, places) for (_, call), places in found)

    @torch.no_grad()
    def final_states(self, ids: Int[Tensor, " tokens"]) -> Shaped[Tensor, "tokens ..."]:
        """What leaves the last block in the model's own forward: what `tail` makes logits of."""
        found: list[Tensor] = []

        def after(_: nn.Module, __: Any, output: Any) -> None:  # noqa: ANN401
            found.append(self.links.stream.first(state_of(output), 1)[0])

        hook = self._blocks[-1].register_forward_hook(after)
        try:
            device = next(self._model.parameters()).device
            with only_last_rows(self._model, 1):
                self._model(ids[None].to(device), use_cache=False)
        finally:
            hook.remove()
        return found[0]

    def bring(self, block: int) -> None:
        """Have a block's weights on the device."""
        if self._offloaded is not None:
            self._offloaded.bring(block)

    def fused(self, entering: Entering | None = None) -> AbstractContextManager[None]:
        """On a GPU, `run` and `tail` with fewer kernels (`fusion`), until the `with` block ends.

        Args:
            entering: Who quantizes what leaves a gate.
        """
        on_gpu = next(self._model.parameters()).is_cuda
        return fused(self._model, self._gated, entering) if on_gpu else nullcontext()

    @cached_property
    def _gated(self) -> list[nn.Module]:
        return [module for module in self._model.modules() if is_gated(module)]

    @contextmanager
    def _aside(self, output: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        """Blocks that do nothing but to return `output` of their number and what enters them."""

        def aside(index: int, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            x = output(index, first_of(args, kwargs))
            beside = self._beside[index]
            return x if beside is None else (x, *[None] * beside)

        own = [block.__dict__.get("forward") for block in self._blocks]
        try:
            for index, block in enumerate(self._blocks):
                block.forward = partial(aside, index)
            with self._offloaded.paused() if self._offloaded is not None else nullcontext():
                yield
        finally:
            for block, forward in zip(self._blocks, own, strict=True):
                if forward is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.forward = forward

    @torch.no_grad()
    def run(
        self,
        block: int,
        state: State,
        inputs: BlockInputs,
        windows: Sequence[int],
    ) -> State:
        """The block's own forward on a batch.

        Args:
            block: Which one.
            state: What enters it. Of what is carried, it needs what the block reads.
            inputs: From `capture`.
            windows: For each entry of the batch, which of the captured windows it belongs to.

        Returns:
            What leaves it: the hidden state, and what the block itself leaves for later ones.
        """
        links, count = self.links, len(windows)

        def filled(leaf: Any) -> Any:  # noqa: ANN401
            if isinstance(leaf, Carried):
                return links.axes[leaf.slot].back(state.carried[leaf.slot])
            return leaf.fresh(filled) if isinstance(leaf, Shared) else for_batch(leaf, windows)

        args, kwargs = mapped(filled, inputs.calls[block])
        hidden = links.stream.back(state.hidden)
        if HIDDEN in kwargs:
            kwargs[HIDDEN] = hidden
        else:
            args = (hidden, *args[1:])
        output = self._blocks[block](*args, **kwargs)
        left = {OUTPUT: output, CALL: (args, kwargs)}
        return State(
            links.stream.first(state_of(output), count),
            {s: links.axes[s].first(at(p, left), count) for s, p in links.writes[block].items()},
        )

    def passed_on(self, block: int, before: State, left: State) -> State:
        """What goes from a block to the next: what it leaves, and what later blocks still read.

        Args:
            block: Which one.
            before: What entered it, with all that it carries.
            left: From `run`.
        """
        carried = {s: (left if s in left.carried else before).carried[s] for s in self.alive(block)}
        return State(left.hidden, carried)

    def reads(self, block: int) -> Sequence[int]:
        """What a block reads of what is carried."""
        return self.links.reads[block]

    def alive(self, block: int) -> Collection[int]:
        """What is carried from a block to the next."""
        return self.links.alive[block]

    @contextmanager
    def tail(self) -> Iterator[Tail]:
        """A function from final hidden states (batch, rows, ...) to logits.

        It is the model's own forward with blocks that pass on what they get, but the last,
        which gives the states instead. Rows are taken for themselves: a final norm and a head do
        not look at other tokens.
        """
        states: list[Tensor] = []
        # Not the padding: models warn of it.
        any_token = int(config_value(text_config(self._model.config), "pad_token_id") == 0)

        def output(index: int, hidden: Tensor) -> Tensor:
            if not states:
                raise RuntimeError(
                    "blocks step aside inside `tail()`; leave that `with` to run the model or them"
                )
            return states[0] if index == len(self._blocks) - 1 else hidden

        @torch.no_grad()
        def logits(hidden: Shaped[Tensor, "batch rows *hidden"]) -> Tensor:
            ids = torch.full(hidden.shape[:2], any_token, device=hidden.device)
            states.append(self.links.stream.back(hidden))
            try:
                return self._model(ids, use_cache=False).logits
            finally:
                states.clear()

        with self._aside(output), _masks_made_once(self._model, within=states):
            yield logits


@contextmanager
def _masks_made_once(model: nn.Module, within: Sequence[Tensor]) -> Iterator[None]:
    """Attention masks are kept and given again to forwards of the same shapes.

    For forwards whose blocks do not look at them: making one asks the GPU whether the text is
    packed, and that waits for all that it has to do. Only while `within` holds something: other
    models make theirs in the same Python module.
    """

    def once(make: Callable[..., Any]) -> Callable[..., Any]:
        made: dict[tuple[Any, ...], Any] = {}

        def mask(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if not within:
                return make(*args, **kwargs)
            shapes: list[Any] = []
            mapped(lambda leaf: shapes.append(_shape(leaf)), (args, kwargs))
            key = tuple(shapes)
            if key not in made:
                made[key] = make(*args, **kwargs)
            return made[key]

        return mask

    with ExitStack() as stack:
        for names in namespaces(model):
            for name, make in list(names.items()):
                if name.startswith("create_") and name.endswith("_mask") and callable(make):
                    stack.enter_context(replaced(names, name, once(make)))
        yield


def _shape(leaf: Any) -> Any:  # noqa: ANN401
    """All of an argument that decides a mask which no block reads."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype
    return leaf if isinstance(leaf, int | float | str) else None


@contextmanager
def only_last_rows(model: PreTrainedModel, count: int) -> Iterator[None]:
    """The head sees the last `count` tokens of a forward only, until the `with` block ends.

    It spares the logits that nobody looks at. `logits_to_keep` would not do: some models cut their
    later blocks to these tokens as well. A head that cannot be told from the rest sees all.
    """

    def cut(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (args[0][..., -count:, :], *args[1:]) if args else None

    try:
        head = model.get_output_embeddings()
    except Exception:  # as a model's own code may
        head = None
    hook = head.register_forward_pre_hook(cut) if isinstance(head, nn.Module) else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
