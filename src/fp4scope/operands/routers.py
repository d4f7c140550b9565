"""What routers choose, and the distribution that they choose from where it is a softmax.

Experts are told where tokens go: which of them, and with what weights (`Choice`). The scores behind
a choice stay inside the router, and families return them in different places: as logits or as
probabilities, by a module of the router's own or a linear. So they are looked for by their values:
whatever a module of the model gives that has a number for each expert, and whose softmax gives
the chosen weights up to a factor. Sigmoid scores give no such weights, and are no distribution.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fp4scope.operands.experts import Choice, experts_in, routed

LOWEST = -87.0
"""Of a logarithm of a probability: that of the smallest normal FP32 number."""


class Scores(NamedTuple):
    """Where a router's softmax is found.

    Attributes:
        module: What gives its scores.
        place: Where they are in what it returns; None if they are all of it.
        logits: Whether they are logits, and not probabilities.
    """

    module: nn.Module
    place: int | None
    logits: bool

    def in_(self, output: Any) -> Float[Tensor, "tokens experts"]:  # noqa: ANN401
        """Log-probabilities of the experts, from what the module returned."""
        scores = output if self.place is None else output[self.place]
        return log_probabilities(scores.reshape(-1, scores.shape[-1]), logits=self.logits)


def log_probabilities(scores: Tensor, *, logits: bool) -> Float[Tensor, "tokens experts"]:
    """Of logits or probabilities, in FP32; none below `LOWEST`."""
    scores = scores.float()
    return (scores.log_softmax(-1) if logits else scores.log()).clamp_min(LOWEST)


def told(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The experts in a module that are told where tokens go, by their names there."""
    known = {id(experts) for experts, code in experts_in(module) if code.told}
    return [(name, inner) for name, inner in module.named_modules() if id(inner) in known]


@torch.no_grad()
def find_scores(model: nn.Module, forward: Callable[[], object]) -> dict[nn.Module, Scores]:
    """Where the softmax behind the choices of routers is, by the experts that they choose.

    Args:
        model: The model.
        forward: Runs it once, on some tens of tokens.
    """
    given: list[tuple[Scores, Tensor]] = []
    found: dict[nn.Module, Scores] = {}

    def gave(module: nn.Module, _: Any, output: Any) -> None:  # noqa: ANN401
        several = isinstance(output, tuple | list)
        for place, leaf in enumerate(output if several else [output]):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1:
                own = Scores(module, place if several else None, logits=True)
                given.append((own, leaf.reshape(-1, leaf.shape[-1])))

    def listen(experts: nn.Module, choice: Choice) -> None:
        shape = len(choice.index), choice.experts
        for scores, leaf in reversed(given):
            for logits in (True, False) if leaf.shape == shape else ():
                if _explains(log_probabilities(leaf, logits=logits), leaf, choice):
                    found.setdefault(experts, scores._replace(logits=logits))
        given.clear()

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(gave).remove)
        stack.enter_context(routed(experts_in(model), listen))
        forward()
    return found


def _explains(logs: Tensor, scores: Tensor, choice: Choice) -> bool:
    """Whether these probabilities give the weights of a choice, and a sigmoid gives worse ones."""
    weights = choice.weights.float()
    off = _off(logs.exp().gather(1, choice.index), weights)
    sigmoid = _off(scores.float().sigmoid().gather(1, choice.index), weights)
    coarsest = max(torch.finfo(x.dtype).eps for x in (scores, choice.weights))
    return bool(off <= 4 * coarsest) and bool(off < sigmoid)


def _off(one: Tensor, other: Tensor) -> Tensor:
    """How far two differ on average, each up to a factor: a token's, or that of all one's.

    A token with one expert has no share to compare, so all tokens have one factor then.
    """
    axis = 1 if one.shape[1] > 1 else 0
    x, y = (z / z.mean(axis, keepdim=True) for z in (one, other))
    return (x - y).abs().mean()


@contextmanager
def choices(
    model: nn.Module,
    scores: Mapping[nn.Module, Scores],
    listen: Callable[[nn.Module, Choice], Choice | None],
) -> Iterator[None]:
    """`listen` is told of every choice, with the distribution behind it where it is known.

    Args:
        model: The model.
        scores: By experts, from `find_scores`.
        listen: As `routed` has it.
    """
    last: dict[nn.Module, Tensor] = {}

    def complete(experts: nn.Module, choice: Choice) -> Choice | None:
        return listen(experts, choice._replace(logs=last.pop(experts, None)))

    with ExitStack() as stack:
        for experts, own in scores.items():

            def gave(_: nn.Module, __: Any, output: Any, of=experts, own=own) -> None:  # noqa: ANN001, ANN401
                last[of] = own.in_(output)

            stack.callback(own.module.register_forward_hook(gave).remove)
        stack.enter_context(routed(experts_in(model), complete))
        yield
