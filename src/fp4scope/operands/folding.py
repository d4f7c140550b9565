"""Smoothing folded into norms: the same function by other weights, whose inputs have less outliers.

A norm's gains are divided by factors, one for each channel, and the columns of all linears that
read it are multiplied by them. Factors are powers of two, so nothing is rounded: the function is
the same, bit for bit, and any engine serves the new weights. Outliers of a channel that all tokens
have move into weights, which have scales of their own in every row.

Which linears read a norm is seen in a forward: they get the very tensor that it returns. What else
reads it is not seen, so that the function is compared after each kind of norm, and taken back if it
has changed.

Source: Xiao et al., SmoothQuant (arXiv 2211.10438), equation 4 with alpha 0.5.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fp4scope.operands.fitted import factors


@dataclass(frozen=True)
class Fold:
    """A norm and what reads it, by full module names.

    Attributes:
        norm: A module with one gain for each channel.
        readers: Linears.
    """

    norm: str
    readers: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The norm's place in a block, such as `input_layernorm`."""
        return self.norm.rpartition(".")[2]


@torch.no_grad()
def folds_of(
    model: nn.Module, linears: Collection[str], forward: Callable[[], object]
) -> list[Fold]:
    """Norms that some of these linears read, each with all that read it.

    Args:
        model: The model. Hooks are there only while this runs.
        linears: Full names of linears that are quantized.
        forward: Runs the model once.
    """
    made: dict[int, tuple[str, Tensor]] = {}  # tensors are kept, so that no other has their id
    read: dict[str, list[str]] = {}

    def returned(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor):
                made[id(output)] = name, output

        return hook

    def entered(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...]) -> None:
            if args and (found := made.get(id(args[0]))) is not None:
                read.setdefault(found[0], []).append(name)

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(entered(name)).remove)
            elif _is_norm(module):
                stack.callback(module.register_forward_hook(returned(name)).remove)
        forward()
    wanted = set(linears)
    return [
        Fold(norm, tuple(dict.fromkeys(readers)))
        for norm, readers in read.items()
        if wanted.intersection(readers)
    ]


@torch.no_grad()
def largest_by_channel(
    model: nn.Module, norms: Collection[str], forwards: Iterable[None]
) -> dict[str, Float[Tensor, " channels"]]:
    """The largest magnitude of each channel that norms return, over all of `forwards`.

    Args:
        model: The model. Hooks are there only while this runs.
        norms: Their names.
        forwards: An iterable whose every step runs the model once.
    """
    found: dict[str, Tensor] = {}

    def collecting(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            own = output.detach().flatten(0, -2).abs().amax(0).float()
            found[name] = torch.maximum(found[name], own) if name in found else own

        return hook

    with ExitStack() as stack:
        for name in norms:
            hook = model.get_submodule(name).register_forward_hook(collecting(name))
            stack.callback(hook.remove)
        for _ in forwards:
            pass
    return found


@torch.no_grad()
def fold_all(
    model: nn.Module,
    folds: Collection[Fold],
    largest: Mapping[str, Float[Tensor, " channels"]],
    logits: Callable[[], Tensor],
) -> dict[Fold, Float[Tensor, " channels"]]:
    """Fold smoothing into norms, kind by kind; a kind that changes the function is taken back.

    Args:
        model: Its weights are changed in place.
        folds: As `folds_of` finds them.
        largest: As `largest_by_channel` finds them.
        logits: What the model answers on a few tokens.

    Returns:
        The factors of what was folded.
    """
    before, done = logits(), {}
    for kind in dict.fromkeys(fold.kind for fold in folds):
        own = {
            fold: _factors(model, fold, largest[fold.norm]) for fold in folds if fold.kind == kind
        }
        for fold, factor in own.items():
            _apply(model, fold, factor)
        if torch.equal(logits(), before):
            done |= own
            continue
        for fold, factor in own.items():
            _apply(model, fold, 1 / factor)
    return done


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1 and not any(module.children())


def _factors(model: nn.Module, fold: Fold, largest: Tensor) -> Tensor:
    weights = [model.get_parameter(f"{name}.weight") for name in fold.readers]
    columns = torch.stack([weight.abs().amax(0).float() for weight in weights]).amax(0)
    return factors(largest, columns)


def _apply(model: nn.Module, fold: Fold, factor: Tensor) -> None:
    norm = model.get_submodule(fold.norm)
    for own in (norm.weight, getattr(norm, "bias", None)):
        if isinstance(own, Tensor):
            own.div_(factor.to(own))
    for name in fold.readers:
        weight = model.get_parameter(f"{name}.weight")
        weight.mul_(factor.to(weight))
