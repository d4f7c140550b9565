"""Where a model has each projection, and what kind of module that is in.

A projection need not exist in every block: hybrids alternate mixers, and some mixture-of-experts
models begin with dense blocks. The sites of the results say which blocks have it.
"""

from collections import defaultdict

from fp4scope.kinds import kind_of_path
from fp4scope.ledger import Results


def blocks_with(results: Results) -> dict[str, frozenset[int]]:
    """The blocks that have each projection; what is behind them all is in none."""
    found: dict[str, set[int]] = defaultdict(set)
    for block, members in enumerate(results.sites.blocks):
        for site in members:
            found[site.projection].add(block)
    return {projection: frozenset(blocks) for projection, blocks in found.items()}


def kind_of(results: Results, projection: str) -> str | None:
    """A projection's kind: from the model's structure, or in older results from its path."""
    if projection in (known := results.model.get("kinds") or {}):
        return known[projection]
    site = next((site for site in results.sites if site.projection == projection), None)
    return kind_of_path(projection if site is None else site.path)


def layer_type(results: Results, block: int | None) -> str | None:
    """What tells a block from others, such as `sliding_attention`; None where nothing is said."""
    types = results.model.get("layer_types") or []
    return types[block] if block is not None and block < len(types) else None
