"""Experts that lie in one tensor: their products, and the code that runs them meanwhile.

`transformers` holds the experts of a block as parameters (experts, outputs, inputs), or with the
last two axes the other way around, and multiplies by them inside one module: no hook sees what
enters the second product. So while someone looks, or a weight is replaced, the module runs the code
here in place of its own. It is that of `transformers`' `grouped_mm`, with watchers around both
products: rows are sorted by expert, and each expert multiplies its own. Without watchers it gives
the same numbers, and the self-check of every sweep holds it to the model's own forward.

On a CPU a product of few rows rounds differently, so an expert with few rows gets rows of zeros:
what a token gives does not depend on what shares its batch.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from fp4scope.operands.adapters import After, Before, Input, Product

FEWEST_ROWS = 16
"""A matrix product of fewer rows rounds differently in CPU libraries."""
_OF_CHOSEN = ("hidden_states", "top_k_index", "top_k_weights")
_ALIGNED = 16
"""Bytes: what a row's length is a multiple of where CUDA multiplies all experts in one kernel."""


def of_module(module: nn.Module) -> Iterator[tuple[str, Product]]:
    """The products of all experts of a module, by the names of their weights in it.

    A module that is one such product has it under the name "".
    """
    code = _code_for(module)
    if code is not None:
        for leaf in code.leaves(module):
            yield ("" if leaf == "weight" else leaf), _Stack(module, leaf, code)


def experts_in(model: nn.Module) -> "list[tuple[nn.Module, type[_Code]]]":
    """The modules with products of all experts, and what runs in the place of each."""
    found = ((module, _code_for(module)) for module in model.modules())
    return [(module, code) for module, code in found if code is not None]


class Choice(NamedTuple):
    """Where a router sends tokens.

    Attributes:
        index: The experts of each token.
        weights: What their outputs are multiplied by, in the same order.
        experts: How many there are.
        logs: Log-probabilities of all experts, where the router is known to be a softmax.
    """

    index: Int[Tensor, "tokens chosen"]
    weights: Shaped[Tensor, "tokens chosen"]
    experts: int
    logs: Float[Tensor, "tokens experts"] | None = None


@contextmanager
def routed(
    found: "Iterable[tuple[nn.Module, type[_Code]]]",
    listen: Callable[[nn.Module, Choice], Choice | None] = lambda module, choice: None,
) -> Iterator[None]:
    """These experts (`experts_in`) run by the code here, until the `with` block ends.

    On a CPU what they give for a token then does not depend on the rest of its batch.

    Args:
        found: The modules, and what runs in the place of each.
        listen: Called with the choice of every router in front of them. Tokens go where it says,
            or where they went if it says nothing. Only for experts that are told where tokens go:
            those of Llama 4 and JetMoE are not.
    """
    with ExitStack() as stack:
        for module, code in found:
            running = _running(module, code)
            stack.callback(running.hold())
            running.listeners.append(listen)
            stack.callback(running.listeners.remove, listen)
        yield


def grouped(
    x: Shaped[Tensor, "rows cols"],
    weight: Shaped[Tensor, "experts outputs cols"],
    ends: Int[Tensor, " experts"],
) -> Shaped[Tensor, "rows outputs"]:
    """Each row of x, sorted by expert, times the weight of its expert.

    Args:
        x: The rows of the first expert, then those of the second, and so on.
        weight: Of every expert.
        ends: Where the rows of each expert end, int32.
    """
    if _in_one_kernel(x, weight):
        return functional.grouped_mm(x, weight.mT, offs=ends)
    parts: list[Tensor] = []
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            parts.append(_times(x[start:end], weight[expert]))
        start = end
    return torch.cat(parts) if parts else x.new_empty(0, weight.shape[1])


def _in_one_kernel(x: Tensor, weight: Tensor) -> bool:
    aligned = all(size * x.element_size() % _ALIGNED == 0 for size in weight.shape[1:])
    known = x.is_cuda and x.dtype == torch.bfloat16 and hasattr(functional, "grouped_mm")
    return known and aligned and torch.cuda.get_device_capability(x.device) >= (8, 0)


def _times(x: Tensor, weight: Tensor) -> Tensor:
    few = 0 if x.is_cuda else max(0, FEWEST_ROWS - len(x))
    return (functional.pad(x, (0, 0, 0, few)) @ weight.T)[: len(x)]


class _Stack(Product):
    """One product of all experts of a module."""

    def __init__(self, module: Any, key: str, code: "type[_Code]") -> None:  # noqa: ANN401
        super().__init__(module, key)
        self._runs, self._transposed = code, code.transposed(module)
        self.experts = len(self.parameter)

    @property
    def bias(self) -> Tensor | None:
        return getattr(self._module, f"{self._key}_bias", None)

    @property
    def is_standard(self) -> bool:
        return True  # it is the code here that runs

    def shaped(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().mT if self._transposed else parameter.detach()

    def as_parameter(self, weight: Tensor) -> nn.Parameter:
        return super().as_parameter(weight.mT.contiguous() if self._transposed else weight)

    def watch(self, name: str, before: Before | None, after: After | None) -> Callable[[], None]:
        running = _running(self._module, self._runs)
        watcher = (name, before, after)
        undo = ExitStack()
        undo.callback(running.hold())
        running.watchers[self._key].append(watcher)
        undo.callback(running.watchers[self._key].remove, watcher)
        return undo.close

    def run(self, entering: Input) -> Tensor:
        assert entering.ends is not None
        every = torch.arange(self.experts, device=entering.x.device)
        experts = entering.by_row(every)
        return _running(self._module, self._runs).product(
            self._key, entering.x, entering.ends, experts
        )

    def times(
        self, entering: Input, weight: Shaped[Tensor, "experts rows cols"]
    ) -> Shaped[Tensor, "batch rows"]:
        assert entering.ends is not None
        return grouped(entering.x, weight, entering.ends)


class _Code(ABC):
    """What runs in place of a module's own forward, with watchers by the names of the weights.

    One for a module, as long as someone holds it.
    """

    told = False
    """Whether the experts are told where tokens go."""

    def __init__(self, module: Any) -> None:  # noqa: ANN401
        self.module = module
        self.watchers: dict[str, list[tuple[str, Before | None, After | None]]] = {
            leaf: [] for leaf in self.leaves(module)
        }
        self.listeners: list[Callable[[nn.Module, Choice], Choice | None]] = []
        self._holders = 0
        self._own: dict[str, Any] = {}

    @classmethod
    def leaves(cls, module: nn.Module) -> Sequence[str]:
        """Names of the weights of all experts, in the order in which they are used."""
        held = {key for key, weight in module.named_parameters(recurse=False) if weight.ndim == 3}
        first = [key for key in ("gate_up_proj", "up_proj") if key in held]
        return [*first[:1], "down_proj"] if first and "down_proj" in held else []

    @staticmethod
    def transposed(module: nn.Module) -> bool:
        """Whether the axis that is summed over comes first in an expert's weight."""
        return bool(getattr(module, "is_transposed", False))

    def hold(self) -> Callable[[], None]:
        """Run in the module's place, until all that held it have called what is returned."""
        attributes = vars(self.module)
        if not self._holders:
            self._own = {key: attributes[key] for key in ("forward",) if key in attributes}
            attributes["forward"] = self
        self._holders += 1

        def release() -> None:
            self._holders -= 1
            if not self._holders:
                del attributes["forward"]
                attributes.update(self._own)

        return release

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        named = zip(_arguments(type(self.module)), args, strict=False)
        given = {**dict(named), **kwargs}
        return self.run(*(given[key] for key in _arguments(type(self.module))))

    @abstractmethod
    def run(self, *args: Any) -> Tensor:  # noqa: ANN401
        """The module's forward."""

    def multiply(self, leaf: str, x: Tensor, ends: Tensor, experts: Tensor | None = None) -> Tensor:
        """One of the products, and a bias of the expert of each row."""
        watchers = self.watchers[leaf]
        seen: list[Input] = []
        for name, before, _ in watchers:
            seen.append(Input(x, ends))
            found = None if before is None else before(name, seen[-1])
            x = x if found is None else found
        out = self.product(leaf, x, ends, experts)
        for (name, _, after), entered in zip(watchers, seen, strict=True):
            found = None if after is None else after(name, entered, out)
            out = out if found is None else found
        return out

    def product(self, leaf: str, x: Tensor, ends: Tensor, experts: Tensor | None = None) -> Tensor:
        """The same where nobody watches."""
        weight = getattr(self.module, leaf).to(x.dtype)  # a part may be kept in another dtype
        out = grouped(x, weight.mT if self.transposed(self.module) else weight, ends)
        bias = getattr(self.module, f"{leaf}_bias", None)
        return out if bias is None else out + bias[experts].to(out.dtype)

    def between(self, x: Tensor) -> Tensor:
        """What enters the last product, from what the first one gives."""
        if self.leaves(self.module)[0] == "up_proj":
            return self.module.act_fn(x)
        if hasattr(self.module, "_apply_gate"):
            return self.module._apply_gate(x)
        gate, up = x.chunk(2, dim=-1)
        return self.module.act_fn(gate) * up


class _Chosen(_Code):
    """Every token goes to the experts that were chosen for it: behind `transformers`' interface."""

    told = True

    def run(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        module = self.module
        first, last = self.leaves(module)
        if top_k_weights.shape != top_k_index.shape:  # of all experts, in older versions
            top_k_weights = top_k_weights.gather(1, top_k_index)
        choice = Choice(top_k_index, top_k_weights, getattr(module, first).shape[0])
        for listen in self.listeners:
            choice = listen(module, choice) or choice
        top_k_index, top_k_weights = choice.index, choice.weights
        tokens, chosen = top_k_index.shape
        experts, order = top_k_index.flatten().sort(stable=True)
        every = torch.arange(getattr(module, last).shape[0], device=experts.device)
        # Not bincount, which waits for the GPU.
        ends = torch.searchsorted(experts, every, right=True, out_int32=True)
        x = self.computed(hidden_states[order // chosen], ends, experts)
        if getattr(module, "has_post_expert_norm", False):
            x = module.post_expert_norm(x)
        x = x * top_k_weights.flatten()[order, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        # A sum in a fixed order: index_add_ has none on a GPU.
        return x[back].view(tokens, chosen, -1).sum(dim=1).to(hidden_states.dtype)

    def computed(self, x: Tensor, ends: Tensor, experts: Tensor) -> Tensor:
        """Rows sorted by expert to what their experts give."""
        first, last = self.leaves(self.module)
        x = self.multiply(first, x, ends, experts)
        return self.multiply(last, self.between(x), ends, experts)


class _Spared(_Chosen):
    """Experts behind those with a second weight give back what they get: LongCat."""

    def computed(self, x: Tensor, ends: Tensor, experts: Tensor) -> Tensor:
        first, last = self.leaves(self.module)
        rows, spared = int(ends[-1]), len(getattr(self.module, first)) - len(ends)
        all_ends = torch.cat([ends, ends[-1:].expand(spared)])
        out = self.between(self.multiply(first, x[:rows], all_ends))
        return torch.cat([self.multiply(last, out, ends), x[rows:]])

    @classmethod
    def leaves(cls, module: nn.Module) -> Sequence[str]:
        leaves = super().leaves(module)
        few = leaves and len(getattr(module, leaves[0])) > len(getattr(module, leaves[1]))
        return leaves if few else []


class _Everyone(_Code):
    """Every expert sees every token, as zeros where it was not chosen: Llama 4."""

    @staticmethod
    def transposed(module: nn.Module) -> bool:
        return True

    def run(self, hidden_states: Tensor) -> Tensor:
        first, last = self.leaves(self.module)
        count = getattr(self.module, last).shape[0]
        each = len(hidden_states) // count
        ends = each * torch.arange(1, count + 1, dtype=torch.int32, device=hidden_states.device)
        x = self.multiply(first, hidden_states, ends)
        return self.multiply(last, self.between(x), ends)


class _Sorted(_Code):
    """A module that is one product, and is told how many rows each expert has: JetMoE."""

    @classmethod
    def leaves(cls, module: nn.Module) -> Sequence[str]:
        weight = getattr(module, "weight", None)
        return ["weight"] if isinstance(weight, nn.Parameter) and weight.ndim == 3 else []

    def run(self, inputs: Tensor, expert_size: Sequence[int]) -> Tensor:
        sizes = torch.as_tensor(expert_size, device=inputs.device)
        return self.multiply("weight", inputs, sizes.cumsum(0).to(torch.int32))


def _code_for(module: nn.Module) -> type[_Code] | None:
    """By what the module's own forward takes."""
    arguments = _arguments(type(module))
    code = None
    # Without a gate to call, the code between the products might be anything.
    if len(arguments) == 3 and hasattr(module, "_apply_gate"):
        code = _Chosen
    elif arguments == _OF_CHOSEN and hasattr(module, "act_fn"):
        code = _Spared
    elif arguments == ("hidden_states",):
        code = _Everyone
    elif arguments == ("inputs", "expert_size"):
        code = _Sorted
    return code if code is not None and code.leaves(module) else None


@cache
def _arguments(kind: type[nn.Module]) -> tuple[str, ...]:
    """What a module's forward takes beside itself."""
    try:
        return tuple(inspect.signature(kind.forward).parameters)[1:]
    except (TypeError, ValueError):  # no Python function
        return ()


def _running(module: nn.Module, code: type[_Code]) -> _Code:
    """What stands in the place of a module's forward, or is to."""
    current = vars(module).get("forward")
    return current if isinstance(current, _Code) else code(module)
