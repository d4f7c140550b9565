"""Norms, rotary embeddings and gated activations of a model as one kernel each, on a GPU.

In eager PyTorch an RMSNorm is six kernels and a rotary embedding ten, each of which reads and
writes a whole hidden state: together as much time as the matrix products of a small model.
`torch.compile` makes one kernel of each, with every rounding where eager code has it
(`emulate_precision_casts`); only the sum inside a norm may take another order. A size is a constant
of the kernel until it changes, and only a size that does becomes a variable: kernels for any size
compute so many indices that a rotary embedding takes eight times as long. Linears, attention and
the rest stay as they are, so injection and hooks see the same modules. The self-check of a
sweep runs the blocks this way and compares them with the model's own forward.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

Function = Callable[..., Any]
_ROTARY = "apply_rotary_pos_emb"
# An MLP with this in its own source is one whose gate can be taken for itself.
_GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """The model with compiled norms, rotary embeddings and gates, until the `with` block ends."""
    with ExitStack() as stack:
        for norm in _norms(model):
            forward = MethodType(_compiled(type(norm).forward), norm)
            stack.enter_context(replaced(norm.__dict__, "forward", forward))
        for mlp in _gated(model):
            stack.enter_context(replaced(mlp.__dict__, "forward", partial(_run_gated, mlp)))
        for names in namespaces(model):
            if callable(names.get(_ROTARY)):
                stack.enter_context(replaced(names, _ROTARY, _compiled(names[_ROTARY])))
        yield


def namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """Of the Python modules that the model's classes are in: where its code looks names up."""
    modules = {sys.modules.get(type(module).__module__) for module in model.modules()}
    return [vars(module) for module in modules if isinstance(module, ModuleType)]


@contextmanager
def replaced(names: dict[str, Any], name: str, value: Any) -> Iterator[None]:  # noqa: ANN401
    """Another value for a name, until the `with` block ends."""
    there, before = name in names, names.get(name)
    names[name] = value
    try:
        yield
    finally:
        if there:
            names[name] = before
        else:
            del names[name]


def _norms(model: nn.Module) -> Iterator[nn.Module]:
    """Norms in plain PyTorch; torch's own have their kernels already."""
    for module in model.modules():
        own = type(module).__module__.startswith("torch.")
        leaf = next(module.children(), None) is None
        if leaf and not own and type(module).__name__.endswith("Norm"):
            yield module


def _gated(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if hasattr(module, "act_fn") and _is_gated(type(module)):
            yield module


@cache
def _is_gated(kind: type[nn.Module]) -> bool:
    try:
        return _GATED in inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False


def _run_gated(mlp: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    return mlp.down_proj(_compiled(_gate)(mlp.act_fn, mlp.gate_proj(x), mlp.up_proj(x)))


def _gate(activation: Function, gate: Tensor, up: Tensor) -> Tensor:
    return activation(gate) * up


@cache
def _compiled(function: Function) -> Function:
    compiled = torch.compile(function, options={"emulate_precision_casts": True})
    failed = False

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        nonlocal failed
        if not failed:
            try:
                return compiled(*args, **kwargs)
            except TorchDynamoException:
                failed = True  # no compiler here, or one with a bug
        return function(*args, **kwargs)

    return run
