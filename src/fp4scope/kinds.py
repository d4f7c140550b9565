"""What a projection belongs to: attention or another mixer of tokens, an MLP, or experts.

A model's modules say it where there is a model (`models.projections`). Results of version 0.1 have
paths alone; the words of a path then have to do.
"""

import re
from collections.abc import Iterable

ATTENTION = "attention"
LINEAR_ATTENTION = "linear attention"
STATE_SPACE = "state space"
CONVOLUTION = "convolution"
RECURRENCE = "recurrence"
MLP = "MLP"
EXPERTS = "routed experts"
SHARED_EXPERT = "shared expert"
FEED_FORWARD = frozenset({MLP, EXPERTS, SHARED_EXPERT})
"""Kinds that work on every token alone."""

# The first kind of which a word is there; attention that is linear is linear attention.
_WORDS = {
    None: {"norm", "layernorm", "rmsnorm"},
    LINEAR_ATTENTION: {"delta", "deltanet", "lightning", "retention", "kda", "rwkv"},
    STATE_SPACE: {"mamba", "ssm"},
    CONVOLUTION: {"conv", "shortconv"},
    RECURRENCE: {"recurrent", "rglru", "lstm", "mlstm", "slstm"},
    ATTENTION: {"attn", "attention"},
    MLP: {"mlp", "ffn", "ff", "feedforward", "moe", "expert", "experts"},
}
_LEAVES = {
    ATTENTION: {
        "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value",
        "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",
    },
    MLP: {
        "gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "fc1", "fc2",
        "dense_h_to_4h", "dense_4h_to_h",
    },
}  # fmt: skip


def kind_of_path(path: str) -> str | None:
    """The kind of a linear, as its path in a block or its name says; None where it does not.

    The module that holds a linear says it before the linear's own name does: gated attention has a
    `gate_proj` too. A norm may have linears, and is of no kind.

    Example:
        >>> [kind_of_path(path) for path in ("mlp.down_proj", "attn.c_proj", "dense")]
        ['MLP', 'attention', None]
    """
    *holders, last = path.lower().split(".")
    known = kind_of_words((part, *words_of(part)) for part in holders)
    if known is MLP and any("expert" in part for part in holders):
        return SHARED_EXPERT if any("share" in part for part in holders) else EXPERTS
    if known is not None or any(_is_norm(part) for part in holders):
        return known
    found = kind_of_words([words_of(last)])
    return found or next((kind for kind, names in _LEAVES.items() if last in names), None)


def kind_of_words(modules: Iterable[Iterable[str]]) -> str | None:
    """What the words of modules say, of the outermost that says anything."""
    for words in map(set, modules):
        if "linear" in words and words & _WORDS[ATTENTION]:
            return LINEAR_ATTENTION
        for kind, known in _WORDS.items():
            if words & known:
                return kind
    return None


def words_of(name: str) -> set[str]:
    """The words of an attribute's or a class's name, without numbers behind them.

    Example:
        >>> sorted(words_of("SparseMoEBlock") | words_of("mamba2_mixer"))
        ['block', 'mamba', 'mixer', 'moe', 'sparse']
    """
    words = {word.rstrip("0123456789") for word in snake_case(name).split("_")}
    joined = {"feedforward"} if {"feed", "forward"} <= words else set()
    return words | joined


def snake_case(name: str) -> str:
    """A class's name as attributes are written.

    Example:
        >>> snake_case("MLAAttention"), snake_case("SparseMoEBlock")
        ('mla_attention', 'sparse_moe_block')
    """
    name = name.replace("MoE", "Moe")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _is_norm(part: str) -> bool:
    return bool(words_of(part) & _WORDS[None])
