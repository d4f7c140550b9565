"""How much of a sweep runs at once."""

from dataclasses import asdict, dataclass
from typing import Any

TILE_ROWS = 128
"""Rows of logits at a time that a CPU's cache likes; no device gets fewer."""


@dataclass(frozen=True)
class Shape:
    """What runs together.

    Attributes:
        windows: In a job.
        groups: In which runs are cut, each a pass over the weights.
        block: Windows of any runs in a block's batch.
        head: States in the head's batch.
        rows: Tokens of each state in the head's batch.
        spill: States wait in host memory.
        whole: Every recipe goes through the model's own forward, by itself.
    """

    windows: int
    groups: int
    block: int
    head: int
    rows: int = TILE_ROWS
    spill: bool = False
    whole: bool = False

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "whole" or value}

    def __str__(self) -> str:
        if self.whole:
            return "one recipe and window at a time, by the model's own forward"
        parts = [f"{self.windows} windows a chunk", f"batches of {self.block}"]
        if self.groups > 1:
            parts.append(f"{self.groups} groups of recipes")
        return ", ".join(parts) + (", states on the host" if self.spill else "")
