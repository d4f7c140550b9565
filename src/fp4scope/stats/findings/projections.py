"""Where a model has each projection, and whether that is in an MLP or in attention.

A projection need not exist in every block: hybrids alternate mixers, and some mixture-of-experts
models begin with dense blocks. The sites of the results say which blocks have it.
"""

from collections import defaultdict

from fp4scope.ledger import Results

_ATTENTION_WORDS = {"attn", "attention"}
_MLP_WORDS = {"mlp", "ffn", "ff", "feedforward", "moe", "expert", "experts"}
_MIXER_WORDS = {"mamba", "ssm", "conv", "recurrent", "rglru", "lstm", "mlstm", "slstm"}
_ATTENTION = {
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value", "q_a_proj",
    "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",
}  # fmt: skip
_MLP = {
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "fc1", "fc2", "dense_h_to_4h",
    "dense_4h_to_h",
}  # fmt: skip


def blocks_with(results: Results) -> dict[str, frozenset[int]]:
    """The blocks that have each projection."""
    found: dict[str, set[int]] = defaultdict(set)
    for site in results.sites:
        found[site.projection].add(site.block)
    return {projection: frozenset(blocks) for projection, blocks in found.items()}


def kind_of(results: Results, projection: str) -> str | None:
    """A projection's kind, from its path inside a block."""
    site = next((site for site in results.sites if site.projection == projection), None)
    return projection_kind(projection if site is None else site.path)


def projection_kind(path: str) -> str | None:
    """`MLP` or `attention`, as a linear's path or name says; None where it does not.

    The module that holds a linear says it before the linear's own name does: gated attention has a
    `gate_proj` too. A state-space mixer is neither.

    Example:
        >>> [projection_kind(path) for path in ("mlp.down_proj", "attn.c_proj", "dense")]
        ['MLP', 'attention', None]
    """
    *holders, last = path.lower().split(".")
    for part in (*holders, last):
        words = {word.rstrip("0123456789") for word in part.split("_")}
        if words & _ATTENTION_WORDS:
            return "attention"
        if words & _MLP_WORDS or "feed_forward" in part:
            return "MLP"
        if words & _MIXER_WORDS:
            return None
    return "attention" if last in _ATTENTION else "MLP" if last in _MLP else None
