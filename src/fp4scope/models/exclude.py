"""Which linears stay in full precision in the all-quantized model: patterns, and their defaults."""

from collections.abc import Sequence
from dataclasses import dataclass

from fp4scope.recipes import matches

NOTHING = "none"
"""The pattern that takes the defaults away."""

_MODELOPT = "NVIDIA ModelOpt, quantizers disabled by default"
_COMPRESSOR = "llm-compressor, FP8 and NVFP4 examples of Qwen3-Next and Qwen3.5"
_ENGINES = "vLLM and SGLang, models built with quant_config=None there"
_LIKE = "as the in_proj_a of Qwen3.5 in " + _COMPRESSOR


@dataclass(frozen=True)
class Default:
    """A pattern that every study excludes unless told otherwise."""

    pattern: str
    reason: str
    source: str


DEFAULTS = (
    Default("shared_expert_gate", "gate of the shared expert", _MODELOPT),
    Default("in_proj_[ab]", "decay and step of linear attention", _COMPRESSOR),
    Default("in_proj_ba", "decay and step of linear attention", _COMPRESSOR),
    Default("linear_attn.[ab]_proj", "decay and step of linear attention", _LIKE),
    Default("self_attn.b_proj", "decay and step of linear attention", _LIKE),
    Default("f_[ab]_proj", "decay of linear attention", _LIKE),
    Default("dt_proj", "step of a state space, often read without its module", _ENGINES),
    Default("weights_proj", "weights of an attention's indexer", _ENGINES),
    Default("per_layer_input_gate", "gate of per-layer inputs", _ENGINES),
    Default("altup.*", "mixing of parallel states", _ENGINES),
    Default("*gate_preact", "gates of an xLSTM", _LIKE),
)
"""What engines' recipes leave alone. Routers are not here: they are told by structure."""


@dataclass(frozen=True)
class Excluded:
    """Linears of one projection that are not quantized, why, and their share of the blocks."""

    projection: str
    linears: tuple[str, ...]
    reason: str
    share: float


def reason_for(name: str, projection: str, patterns: Sequence[str]) -> str | None:
    """Why these patterns, or the defaults, exclude a linear; None if they do not."""
    for pattern in patterns:
        if pattern != NOTHING and matches(pattern, name, projection):
            return f"by {pattern}"
    if NOTHING not in patterns:
        for default in DEFAULTS:
            if matches(default.pattern, name):
                return default.reason
    return None


def listed(excluded: Sequence[Excluded]) -> str:
    """One line of what is excluded: projections with their counts and reasons."""
    return ", ".join(f"{e.projection} ({len(e.linears)}, {e.reason})" for e in excluded)
