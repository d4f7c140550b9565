"""The self-check: is the unquantized wavefront the model's own forward, and can either be believed?

Before each sweep two windows go both ways, and another batch takes turns with them block by block,
as in a sweep. Whatever a family hands its blocks, does after them or passes from one to the
next, what the wavefront gets wrong shows here, before a number is believed. So do a forward that
is not the same twice and predictions that change with tokens that come later.

What it can miss: differences below rounding, which is large in BF16 and FP16, and larger where a
router sends tokens elsewhere by rounding alone (then it is measured); a fault that comes
once in many forwards, which `still_the_same` looks for while a sweep goes on, but not in every
forward; a look at later tokens that neither the last token nor the last third of the window shows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fp4scope.errors import Fp4ScopeError, ModelError
from fp4scope.models import ROUTER, LoadedModel, State
from fp4scope.operands import watched
from fp4scope.sweep.memory import is_out_of_memory
from fp4scope.sweep.perturb import perturbation, perturbed
from fp4scope.sweep.shape import TILE_ROWS

_LAST_ROWS = 64
_WITNESSED = 8
_MOST_REROUTED = 0.5
"""Of the logits: no more is explained by rounding, whatever a router does."""


@dataclass(frozen=True)
class SelfCheck:
    """What the check found.

    `difference` is the root mean square between the logits of both ways, relative to that of the
    logits, and `allowed` what rounding in another order explains. `batches`: whether several
    states can share a batch. `flattens`: whether some linear sees a batch as one long window.
    `captured_bytes` is what the block inputs take. `reason`: why the model cannot be run block by
    block, so that every recipe takes forwards of the whole model; None where it can.
    """

    difference: float
    allowed: float
    batches: bool
    flattens: bool
    captured_bytes: int
    reason: str | None = None


@torch.no_grad()
def self_check(loaded: LoadedModel, ids: Int[Tensor, "windows tokens"]) -> SelfCheck:
    """Run two windows through the model's own forward and through its blocks one by one.

    Where the two differ by more than rounding, or only the first goes, recipes can still be
    measured one at a time: the check then says the `reason`.

    Args:
        loaded: The model.
        ids: The study's windows. Where there is one, the other is the same backwards.

    Raises:
        ModelError: The own forward differs from itself, predictions change with later tokens, or
            the model fails.
    """
    both = ids[:2]
    if len(ids) == 1 or ids[0].equal(ids[1]):
        both = torch.stack([ids[0], ids[0].flip(0)])
    with _naming(loaded):
        own = torch.stack([loaded.logits(row, last=_LAST_ROWS) for row in both])
        _require_repeatable(loaded, both[0], own[0])
        try:
            check = _both_ways(loaded, both, own)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            check = SelfCheck(0.0, allowed_difference(loaded.dtype), False, False, 0, _said(error))
        if bool(own.isnan().any()):
            # A model that overflows by itself is for the measurement to name, block and linear.
            return check
        if check.reason is not None:
            _require_own_experts(loaded, both[0], own[0])
        _require_causal(loaded, both[0], check)
    return check


def allowed_difference(dtype: torch.dtype) -> float:
    """What rounding in another order explains, relative to the logits."""
    # Sums of products are FP32 and long whatever the dtype; what they end in has its rounding.
    return 16 * torch.finfo(dtype).eps + 256 * torch.finfo(torch.float32).eps


@torch.no_grad()
def still_the_same(
    loaded: LoadedModel, ids: Int[Tensor, "windows tokens"], window: int, check: SelfCheck
) -> None:
    """Compare one window both ways while a sweep goes on: two more forwards.

    Raises:
        ModelError: They differ by more than rounding, though they did not before.
    """
    row = ids[window]
    own = loaded.logits(row, last=_LAST_ROWS)[None]
    if check.reason is None:
        logits, _, _ = _block_by_block(loaded, row[None], together=False, in_turns=False)
    else:
        logits = loaded.logits(row, last=_LAST_ROWS)[None]
    difference = _relative(logits, own)
    if difference > check.allowed and not bool(own.isnan().any()):
        raise ModelError(
            f"on window {window} the model differs from its own forward by {difference:.3g} of its "
            f"logits, where the rounding of {loaded.dtype_name} explains {check.allowed:.3g}, and "
            "before it did not: its forwards are not always the same (dropout, random numbers, a "
            "counter), so what was measured may hold the same error; make it deterministic and "
            "use a new folder"
        )


@torch.no_grad()
def witness(loaded: LoadedModel, ids: Int[Tensor, "windows tokens"]) -> Float[Tensor, "rows vocab"]:
    """Logits of the last rows of the first window, FP32: other workers must give these too."""
    return loaded.logits(ids[0], last=_WITNESSED).float().cpu()


def apart(one: Tensor, two: Tensor) -> float:
    """Root mean square of what two have different, relative to that of `two`; same NaN are equal.

    Infinite where their shapes differ.
    """
    if one.shape != two.shape:
        return float("inf")
    both = one.isnan() & two.isnan()
    return _relative(one.masked_fill(both, 0.0), two.masked_fill(both, 0.0))


@contextmanager
def _naming(loaded: LoadedModel) -> Iterator[None]:
    """Whatever a model raises becomes one sentence that names it."""
    try:
        yield
    except Fp4ScopeError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{loaded.name} ({type(loaded.model).__name__}) fails when it is run on the text, so "
            f"it cannot be measured: {_said(error)}"
        ) from error


def _said(error: Exception) -> str:
    """An error in one line, one of ours without its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, Fp4ScopeError) else f"{type(error).__name__}: {text[:200]}"


def _require_repeatable(loaded: LoadedModel, row: Int[Tensor, " tokens"], own: Tensor) -> None:
    difference = _relative(loaded.logits(row, last=_LAST_ROWS), own)
    if difference > allowed_difference(loaded.dtype):
        raise ModelError(
            f"{loaded.name} is not deterministic: two forwards of the same window differ by "
            f"{difference:.3g} of its logits; switch off what differs (dropout, random numbers, a "
            "counter or cache that stays between forwards)"
        )


def _require_own_experts(loaded: LoadedModel, row: Int[Tensor, " tokens"], own: Tensor) -> None:
    """Refuse experts that run otherwise while they are watched: no other comparison shows it.

    Where the model is run block by block this is part of what is compared.
    """
    with watched(loaded.products, lambda name, entering: None):
        difference = _relative(loaded.logits(row, last=_LAST_ROWS), own)
    routed = any(e.reason == ROUTER for e in loaded.layout.excluded)
    if difference > (_MOST_REROUTED if routed else allowed_difference(loaded.dtype)):
        raise ModelError(
            f"the experts of {loaded.name} ({type(loaded.model).__name__}) compute something else "
            f"than two products and a gate: run so, logits differ by {difference:.3g} of "
            "themselves, so this family cannot be measured: please report it"
        )


def _require_causal(loaded: LoadedModel, row: Int[Tensor, " tokens"], check: SelfCheck) -> None:
    """Refuse a model whose predictions depend on later tokens: it would see its own targets.

    The last token is changed, then the last third of the window, and what is predicted before the
    change is compared row by row. An odd place, since blocks of attention end at even ones.
    """
    allowed = allowed_difference(loaded.dtype)
    rows_of = _rows if check.reason is None else _rows_at_once
    for start in {len(row) - 1, (2 * len(row) // 3) | 1}:
        if not 0 < start < len(row):
            continue
        other = row.clone()
        other[start:] = _others(row, loaded.vocab_size)[start:]
        for one, two in rows_of(loaded, other, row, start):
            if bool((_by_row(one, two) > allowed).any()):
                raise ModelError(
                    f"{loaded.name} is not causal: its predictions change with tokens that "
                    "come later; fp4scope needs a causal language model"
                )


def _rows(
    loaded: LoadedModel, one: Tensor, two: Tensor, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of the first rows of two windows, tile by tile."""
    states = [loaded.stack.final_states(row) for row in (one, two)]
    with loaded.stack.tail() as tail:
        for first in range(0, count, TILE_ROWS):
            rows = slice(first, min(first + TILE_ROWS, count))
            yield tail(states[0][None, rows])[0], tail(states[1][None, rows])[0]


def _rows_at_once(
    loaded: LoadedModel, one: Tensor, two: Tensor, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    yield loaded.logits(one)[:count], loaded.logits(two)[:count]


def _others(row: Int[Tensor, " tokens"], vocab: int) -> Int[Tensor, " tokens"]:
    """For each token another one of the window; of a window with one kind of token, the next id."""
    kinds, places = row.unique(return_inverse=True)
    if len(kinds) == 1:
        return (row + 1) % vocab
    return kinds[(places + 1) % len(kinds)]


def _both_ways(loaded: LoadedModel, ids: Int[Tensor, "windows tokens"], own: Tensor) -> SelfCheck:
    loaded.stack.capture(ids[:1])  # the first of all runs the blocks, those that follow do not
    allowed = difference = float("nan")
    for together in (True, False):
        allowed = allowed_difference(loaded.dtype)
        try:
            logits, flattens, captured = _block_by_block(loaded, ids, together=together)
            difference = _relative(logits, own)
        except (RuntimeError, IndexError, ValueError) as error:
            if together and not is_out_of_memory(error):
                continue
            raise
        if difference > allowed and any(e.reason == ROUTER for e in loaded.layout.excluded):
            allowed = max(allowed, _rerouted(loaded, ids, logits, together=together))
        if difference <= allowed or bool(own.isnan().any()):
            return SelfCheck(difference, allowed, together, flattens, captured)
    alone, _, _ = _block_by_block(loaded, ids[:1], together=False, in_turns=False)
    if _relative(alone, own[:1]) <= allowed:
        raise ModelError(
            f"the blocks of {loaded.name} ({type(loaded.model).__name__}) pass something on in a "
            "way that cannot be seen, so that variants cannot take turns in a block"
        )
    raise ModelError(
        f"run block by block, {loaded.name} differs from its own forward by {difference:.3g} of "
        f"its logits, where the rounding of {loaded.dtype_name} explains {allowed:.3g}"
    )


def _rerouted(
    loaded: LoadedModel, ids: Int[Tensor, "windows tokens"], logits: Tensor, *, together: bool
) -> float:
    """What rounding explains where a token may go to other experts by rounding alone.

    Twice what one unit in the last place, at the entrance of every block, does to the logits.
    """
    moved, _, _ = _block_by_block(loaded, ids, together=together, moved=True)
    return min(2 * _relative(moved, logits), _MOST_REROUTED)


def _block_by_block(
    loaded: LoadedModel,
    ids: Int[Tensor, "windows tokens"],
    *,
    together: bool,
    in_turns: bool = True,
    moved: bool = False,
) -> tuple[Tensor, bool, int]:
    """Logits of the last rows; whether a linear saw a flat input; bytes of one capture.

    Args:
        loaded: The model.
        ids: The windows.
        together: In one batch.
        in_turns: Each block also runs on another batch before the next one runs, as in a sweep.
        moved: What enters each block is moved by one unit in the last place.
    """
    stack = loaded.stack
    flat: list[bool] = []
    logits: list[Tensor] = []
    captured = 0
    with watched(loaded.products, lambda _, entering: flat.append(entering.x.ndim < 3)):
        for part in (ids,) if together else ids.split(1):
            inputs = stack.capture(part)
            captured = max(captured, inputs.size_bytes)
            # A batch that is no multiple of the windows shows an axis taken for the batch.
            windows = [*range(len(part))] + ([0] if together else [])
            state = State(inputs.embedded[windows])
            other = State(state.hidden[:1].flip(1))
            with stack.fused():
                for block in range(len(stack)):
                    stack.bring(block)
                    if moved:
                        hidden = perturbed(state.hidden, _move(state.hidden, block))
                        state = State(hidden, state.carried)
                    left = stack.run(block, state, inputs, windows)
                    state = stack.passed_on(block, state, left)
                    if in_turns:
                        left = stack.run(block, other, inputs, windows[:1])
                        other = stack.passed_on(block, other, left)
                last = state.hidden[: len(part), -_LAST_ROWS:]
                with stack.tail() as tail:
                    tail(torch.zeros_like(last))  # what it keeps for the next must not matter
                    logits.append(tail(last))
    return torch.cat(logits), any(flat), captured


def _move(hidden: Tensor, block: int) -> Tensor:
    shape, device = hidden.shape[1:], hidden.device
    steps = perturbation(shape, seed=0, replica=1, window=0, block=block, device=device)
    return steps[None].expand_as(hidden)


def _by_row(one: Tensor, two: Tensor) -> Float[Tensor, "*rows"]:
    """Root mean square of what differs in each row of logits, relative to that of `two`.

    FP64, since squares of large logits overflow. What is infinite in both is no difference, and
    what is zero in both is none.
    """
    x, y = one.double(), two.double()
    difference = torch.where(x == y, 0.0, x - y).square().mean(-1)
    size = torch.where(y.isfinite(), y, 0.0).square().mean(-1)
    return torch.where(difference == 0, 0.0, (difference / size).sqrt())


def _relative(one: Tensor, two: Tensor) -> float:
    return float(_by_row(one.flatten(), two.flatten()))
