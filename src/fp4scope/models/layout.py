"""Where the blocks and components of a causal language model are, from its structure alone.

The blocks are the items of the `nn.ModuleList` that holds the most linear weights. A
component is a linear's path inside its block, cut to the shortest ending that is unambiguous
(`q_proj`; for GPT-2 `attn.c_proj` and `mlp.c_proj`); the numbers of experts become `*`, so
that all experts' `gate_proj` of a block are one cell. No list of model names is needed.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeGuard

from torch import nn
from transformers.pytorch_utils import Conv1D

from fp4scope.errors import ModelError, UnitError, nearest


class Cell(NamedTuple):
    """One component in one block."""

    block: int
    component: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Blocks, and the linears of every cell by their full module names.

    `coverage` is the share of the blocks' parameters that are weights of these linears;
    `missed` names the others, largest first, with their share. `routers` are linears that
    choose experts: they are never quantized.
    """

    blocks_path: str
    blocks: int
    cells: dict[Cell, tuple[str, ...]]
    coverage: float
    missed: tuple[tuple[str, float], ...]
    routers: tuple[str, ...]

    @property
    def components(self) -> tuple[str, ...]:
        """Component names in the order in which a block holds them."""
        return tuple(dict.fromkeys(cell.component for cell in self.cells))

    @property
    def paths(self) -> dict[str, str]:
        """Each component's path inside its block, uncut: that of its first linear."""
        found: dict[str, str] = {}
        for (block, component), names in self.cells.items():
            prefix = f"{self.blocks_path}.{block}."
            found.setdefault(component, names[0].removeprefix(prefix))
        return found

    def blocks_with(self, component: str) -> list[int]:
        """The blocks that have a component; hybrids do not have each in all."""
        return sorted(cell.block for cell in self.cells if cell.component == component)

    @property
    def linears(self) -> tuple[str, ...]:
        return tuple(name for names in self.cells.values() for name in names)

    @property
    def cell_of(self) -> dict[str, Cell]:
        return {name: cell for cell, names in self.cells.items() for name in names}

    def match(self, pattern: str) -> tuple[str, ...]:
        """Full names of the linears that a shell pattern matches.

        Args:
            pattern: Matched against full names (`*.3.mlp.*`) and component names (`down_proj`).

        Raises:
            UnitError: None is: a silent miss would read as "insensitive".
        """
        cell_of = self.cell_of
        names = tuple(
            name
            for name in self.linears
            if fnmatchcase(name, pattern) or fnmatchcase(cell_of[name].component, pattern)
        )
        if not names:
            raise UnitError(
                f"pattern {pattern!r} matches none of the {len(self.linears)} linears; their names "
                f"look like {self.linears[0]}; for components, {nearest(pattern, self.components)}"
            )
        return names


def is_linear(module: nn.Module | None) -> TypeGuard[nn.Linear | Conv1D]:
    """`nn.Linear`, or GPT-2's `Conv1D`, which is one with its weight transposed."""
    return isinstance(module, nn.Linear | Conv1D) and hasattr(module, "weight")


def find_layout(model: nn.Module) -> Layout:
    """The blocks and cells of `model`.

    Raises:
        ModelError: There is no stack of blocks, or its weights are quantized already.
    """
    path, stack = _block_stack(model)
    routers: list[str] = []
    found: list[tuple[int, str, str]] = []
    owner: dict[int, int] = {}
    for index, block in enumerate(stack):
        for name, module in block.named_modules():
            if not is_linear(module):
                continue
            full = f"{path}.{index}.{name}"
            # A scaled FP8 weight is floating point too, but without its scale it says nothing.
            if not module.weight.is_floating_point() or module.weight.dtype.itemsize < 2:
                raise ModelError(
                    f"{full} already holds {module.weight.dtype} weights; give the model in full "
                    "precision, before quantization"
                )
            if id(module) in owner and owner[id(module)] != index:
                raise ModelError(
                    f"{full} is the same module as one in block {owner[id(module)]}; blocks that "
                    "share weights cannot be told apart"
                )
            owner[id(module)] = index
            if _is_router(name, module, model):
                routers.append(full)
            else:
                found.append((index, _without_numbers(block, name), full))

    short = _shortest_endings({inner for _, inner, _ in found})
    cells: dict[Cell, list[str]] = defaultdict(list)
    for index, inner, full in found:
        cells[Cell(index, short[inner])].append(full)

    coverage, missed = _coverage(stack, {full.removeprefix(f"{path}.") for _, _, full in found})
    return Layout(
        blocks_path=path,
        blocks=len(stack),
        cells={cell: tuple(names) for cell, names in cells.items()},
        coverage=coverage,
        missed=missed,
        routers=tuple(routers),
    )


def _block_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    best, weight = None, 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            size = sum(m.weight.numel() for m in module.modules() if is_linear(m))
            if size > weight:
                best, weight = (name, module), size
    if best is None:
        raise ModelError(
            f"{type(model).__name__} has no nn.ModuleList with linears in it, so no stack of blocks"
            " was found; fp4scope needs a causal language model made of transformer blocks"
        )
    return best


def _without_numbers(block: nn.Module, name: str) -> str:
    """A path with the numbers of a ModuleList's items, such as experts, as `*`."""
    parts = name.split(".")
    return ".".join(
        "*"
        if part.isdigit() and isinstance(block.get_submodule(".".join(parts[:i])), nn.ModuleList)
        else part
        for i, part in enumerate(parts)
    )


def _is_router(name: str, module: nn.Linear | Conv1D, model: nn.Module) -> bool:
    # `mlp.gate`, `shared_expert_gate`, but also `router.layer` and `gate.wg`.
    if not any(part.endswith(("gate", "router")) for part in name.split(".")):
        return False
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    experts = {
        getattr(config, key, None)
        for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    }
    outputs = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
    return outputs == 1 or outputs in experts - {None}


def _shortest_endings(paths: set[str]) -> dict[str, str]:
    """Each dotted path's shortest ending that no other path has and that starts with a name."""
    names = {}
    for path in paths:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            ending = ".".join(parts[-length:])
            rivals = [p for p in paths if p == ending or p.endswith(f".{ending}")]
            if len(rivals) == 1 and parts[-length].isidentifier():
                names[path] = ending
                break
        else:
            names[path] = path
    return names


def _coverage(
    stack: nn.ModuleList, linears: set[str]
) -> tuple[float, tuple[tuple[str, float], ...]]:
    total, covered = 0, 0
    missed: dict[str, int] = defaultdict(int)
    for name, parameter in stack.named_parameters():
        total += parameter.numel()
        owner, _, leaf = name.rpartition(".")
        if owner in linears and leaf == "weight":
            covered += parameter.numel()
        else:
            missed[re.sub(r"^\d+\.", "", re.sub(r"\.\d+\.", ".*.", name))] += parameter.numel()
    largest = sorted(missed.items(), key=lambda item: -item[1])
    return covered / total, tuple((name, size / total) for name, size in largest)
