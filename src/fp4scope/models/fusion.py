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

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

Function = Callable[..., Any]
Entering = Callable[[nn.Module, Function, Tensor, Tensor], Tensor | None]
"""A linear, its gate's activation, the gate and what it gates, to what the linear reads; or None.

It spares writing what leaves the gate, where that is quantized on its way into the linear.
"""
_ROTARY = "apply_rotary_pos_emb"
_KERNELS = 32
"""Of one function: a norm of hidden states and of heads, in the widths and strides that there are.

Beyond eight, its default, PyTorch would say so and run the function eagerly.
"""


@contextmanager
def fused(
    model: nn.Module, gated: Sequence[nn.Module] = (), entering: Entering | None = None
) -> Iterator[None]:
    """The model with compiled norms, rotary embeddings and gates, until the `with` block ends.

    Args:
        model: The model.
        gated: Those of its modules that `is_gated`.
        entering: Who may make what their last linear reads.
    """
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch({_limit(): _KERNELS}))
        for norm in _norms(model):
            forward = MethodType(_compiled(type(norm).forward), norm)
            stack.enter_context(replaced(norm.__dict__, "forward", forward))
        for mlp in gated:
            forward = partial(_run_gated, mlp, entering)
            stack.enter_context(replaced(mlp.__dict__, "forward", forward))
        for names in namespaces(model):
            if callable(names.get(_ROTARY)):
                stack.enter_context(replaced(names, _ROTARY, _compiled(names[_ROTARY])))
        yield


def _limit() -> str:
    """What PyTorch calls the number of kernels: another name before 2.7."""
    known = ("recompile_limit", "cache_size_limit")
    return next(name for name in known if hasattr(torch._dynamo.config, name))


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


@torch.no_grad()
def is_gated(mlp: Any) -> bool:  # noqa: ANN401
    """Whether a module computes `down_proj(act_fn(gate_proj(x)) * up_proj(x))`, bit for bit.

    Its forward runs once, on numbers of many magnitudes: a clamp, a factor or another rounding
    shows in them. Functions that give such numbers stand in for its linears, so weights may lie
    anywhere, and need no values.
    """
    linears = [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
    if not all(isinstance(linear, nn.Linear) for linear in linears) or not hasattr(mlp, "act_fn"):
        return False
    weight, generator = mlp.gate_proj.weight, torch.Generator().manual_seed(0)
    device = "cpu" if weight.is_meta else weight.device
    out, inner = weight.shape[::-1]
    x, gate, up, down = (
        (torch.randn(1, 2, width, generator=generator) * torch.logspace(-4, 4, width)).to(
            device, weight.dtype
        )
        for width in (out, inner, inner, out)
    )
    as_expected: list[bool] = []

    def instead(expected: Tensor, output: Tensor) -> Function:
        def linear(entered: Tensor) -> Tensor:
            as_expected.append(torch.equal(entered, expected))
            return output.clone()

        return linear

    try:
        product = mlp.act_fn(gate) * up
        with ExitStack() as stack:
            for name, *known in (("gate", x, gate), ("up", x, up), ("down", product, down)):
                stack.enter_context(replaced(mlp._modules, f"{name}_proj", instead(*known)))
            found = mlp.forward(x.clone())
        return as_expected == [True] * 3 and torch.equal(found, down)
    except Exception:  # a forward that asks its linears for more than their output
        return False


def _run_gated(mlp: Any, entering: Entering | None, x: Tensor) -> Tensor:  # noqa: ANN401
    gate, up, activation = mlp.gate_proj(x), mlp.up_proj(x), mlp.act_fn
    made = None if entering is None else entering(mlp.down_proj, activation, gate, up)
    return mlp.down_proj(_compiled(_gate)(activation, gate, up) if made is None else made)


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
