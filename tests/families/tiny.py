"""Tiny configurations of any family, from its default one, by what fields are called.

A default configuration is walked, those inside it too, and each size that it has is made small.
What a configuration derives from others is left to it. Where lists say what each layer is, one of
every kind stays, in their order. `OWN` has what a family needs beside that.
"""

import re
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as _CAUSAL

Fields = dict[str, Any]
VOCAB = 128
_TOKEN = 100
"""Special tokens are these and those behind them: texts have none."""
_MOST_LAYERS = 6

# By the whole name of a field, the first that fits; a size is never made larger.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(.*_)?vocab_size(_per_layer_input)?|.*num_embeddings|codebook_size|vocab_offset", VOCAB),
    (r"q_lora_rank|(.*_)?lora_rank|.*_rank|adapter_rank", 32),
    (r"(num_)?(experts_per_tok(en)?|moe_topk|top_k_experts|moe_top_?k|moe_k)|index_topk_freq", 2),
    (r"num_expert_groups?|n_groups?|topk_group", 2),
    (r"(n|num|moe_num)_shared_experts?|moe_num_shared_experts", 1),
    (r"(n|num|moe_num)_((local|routed|dynamic|total)_)?experts|zero_expert_num|moe_num_experts", 4),
    (r".*(head_dim|head_size|headdim)|kv_channels|d_head|d_kv|dim_head|.*_d_head|rotary_dim", 16),
    (r"(.*_)?(hidden_sizes?|d_model|n_embd|embedding_size|embed_dim|embedding_dim|hidden_dim)"
     r"|dim_model|dim|.*_width|emb_dim|lru_width|adapter_(in_dim|out_dim|input_size)", 64),
    (r"(.*_)?moe_(.*_)?intermediate_size|moe_ffn_hidden_size|expert_ffn_hidden_size", 32),
    (r"(.*_)?(intermediate_size(_mlp)?|ffn_hidden_size|ffn_dim|d_ff|n_inner|dim_ff|mlp_dim|d_inner"
     r"|feed_forward_size|inner_dim|share_expert_dim)", 96),
    (r"base_channels|latent_channels|num_filters", 32),
    (r".*(state_size|d_state|ssm_state_size)", 16),
    (r"(mamba_)?(chunk_size|sliding_window(_size)?|attention_chunk_size|window_size)", 8),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|context_length|max_length", 64),
)  # fmt: skip
_LAYERS = re.compile(
    r"(num|n|encoder|decoder)?_?(hidden|encoder|decoder|main|vision|audio)?_?layers?|depth|depths"
    r"|resampler_depth|.*_num_hidden_layers|num_.*_layers"
)
_HEADS = re.compile(r"(.*_)?(attention_)?heads?|.*n_heads?|.*num_heads")
_KV_HEADS = re.compile(r".*(key_value|kv)_?(n_)?heads|multi_query_group_num|num_query_groups")
_DENSE_FIRST = re.compile(r"first_k_dense_replace|num_dense_layers|moe_layer_start_index")
_IDS = re.compile(r".*token_(id|index)|.*_(pad|bos|eos)_id|(un|ma)k_index")
_HEADS_THERE = 4
_DERIVED = ("id2label", "label2id", "qk_head_dim", "per_layer_config")

_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_MROPE = {"text_config.rope_parameters": _ROPE | {"mrope_section": [4, 2, 2]}}
_MOE = {"num_experts_per_tok": 2, "n_routed_experts": 4}
_WIDER = {
    "head_dim": 32,
    "kv_lora_rank": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
_SHARED_KV = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "intermediate_size": [96] * 4,
    "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    "num_kv_shared_layers": 2,
}
_INDEXED = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}

_JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1}

OWN: dict[str, Fields] = {
    "apertus1p5": {
        "audio_config.codebook_dim": 64,
        "audio_config.codebook_size": 16,
        "vision_config.codebook_size": 16,
        "image_token_offset": 96,
        "audio_token_offset": 112,
    },
    "blt": {
        "encoder_config.hidden_size_global": 64,
        "decoder_config.hidden_size_global": 64,
        "encoder_hash_byte_group_vocab": 128,
    },
    "chameleon": {"vocabulary_map": {"<image>": 100, "IMGIMGA": 101}},
    "cohere_compass": {"text_config.rope_parameters": {"full_attention": _ROPE}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {
        "attn_config.rope_theta": 1e4,
        "attn_config.kv_n_heads": 2,
        "attn_config.clip_qkv": 8.0,
    },
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
    },
    "deepseek_v2": _MOE,
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 32,
    },
    "dots1": _MOE | {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note": {"text_config.per_layer_config": {2: _WIDER}},
    "dots3_note_text": {"per_layer_config": {2: _WIDER}},
    "ernie4_5_vl_moe": {"text_config.rope_parameters": _ROPE | {"mrope_section": [3, 3, 2]}},
    "fun_asr_nano": {"adaptor_config.intermediate_size": 16},
    "gemma3n_text": _SHARED_KV,
    "gemma4_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "glm46v": _MROPE,
    "glm4v": _MROPE,
    "glm4v_moe": {"text_config.rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]}},
    "glm_ocr": _MROPE,
    "glmga": _MROPE,
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "4/8"},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "hunyuan_vl": {
        "text_config.head_dim": 16,
        "text_config.rope_parameters": _ROPE | {"mrope_section": [2, 2, 2, 2]},
    },
    "jamba": _JAMBA | {"mamba_dt_rank": 16},
    "kyutai_speech_to_text": {"codec_config.upsample_groups": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "mistral4": {"head_dim": 32},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "muse_spark": {"audio_config.num_hidden_layers": 4},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h_omni": {
        "vision_config.video_temporal_patch_size": 2,
        "text_config.n_groups": 2,
    },
    "nemo_speechlm": {"text_config.n_groups": 2},
    "paddleocr_vl": _MROPE,
    "phi4_multimodal": {"audio_config.num_blocks": 2},
    "qwen2_5_omni": {f"thinker_config.{key}": value for key, value in _MROPE.items()},
    "qwen2_5_omni_thinker": _MROPE,
    "qwen2_5_vl": _MROPE,
    "qwen2_vl": _MROPE,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen4_exp": {f"text_config.{key}": value for key, value in _INDEXED.items()},
    "qwen4_exp_text": _INDEXED,
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 48]},
    "step3p7": {"text_config.sliding_window": 8},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"default_language": "en_XX"},
    "vibevoice_asr": {
        "acoustic_tokenizer_encoder_config.depths": [1, 1],
        "acoustic_tokenizer_encoder_config.downsampling_ratios": [2],
        "semantic_tokenizer_encoder_config.depths": [1, 1],
        "semantic_tokenizer_encoder_config.downsampling_ratios": [2],
    },
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_dt_rank": 16,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_headdim": 16,
        "n_mamba_heads": 8,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
}
"""What a family needs beside that, by its type; `text_config.x` for a field inside."""
OWN_LAYERS: dict[str, Fields] = {
    "gemma3n_text": _SHARED_KV | {"intermediate_size": [16384] * 4},
    "jamba": _JAMBA,
    "recurrent_gemma": {"num_hidden_layers": 3},
}
"""What it needs where only its layers are few."""


def tiny(family: str) -> PreTrainedConfig:
    """A tiny configuration of a type that `transformers` knows."""
    alone = {"is_encoder_decoder": False} if family in _CAUSAL else {}
    return _small(CONFIG_MAPPING[family](), alone | OWN.get(family, {}), _size)


def narrow(family: str) -> PreTrainedConfig:
    """The default configuration with as few layers as the tiny one has."""
    return _small(CONFIG_MAPPING[family](), OWN_LAYERS.get(family, {}), _layers)


def _small(config: PreTrainedConfig, own: Fields, size: Any) -> PreTrainedConfig:
    """A configuration of the same kind, every number of it as `size` has it."""
    fields = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    usual = vars(type(config)())  # one inside another may differ from its own kind's default
    kept = _kept_layers(fields)
    changes: Fields = {}
    for key, value in fields.items():
        if key in _DERIVED:
            continue
        if isinstance(value, PreTrainedConfig):
            inside = {
                k.removeprefix(f"{key}."): v for k, v in own.items() if k.startswith(f"{key}.")
            }
            changes[key] = _small(value, inside, size)
        else:
            small = _changed(key, value, fields, kept, size)
            if small != value or usual.get(key) != value:
                changes[key] = small
    changes |= {key: value for key, value in own.items() if "." not in key}
    return type(config)(**changes)


def _changed(key: str, value: Any, fields: Fields, kept: Any, size: Any) -> Any:
    if key in ("is_decoder", "causal"):  # the causal form of a family that has others
        return True
    if isinstance(value, list | tuple):
        if _IDS.fullmatch(key):
            return _TOKEN + 2
        if kept and len(value) == kept[0]:
            value = [value[i] for i in kept[1]]
        one = key.removesuffix("_per_layer")
        return [size(one, v, fields, None) if _is_size(v) else v for v in value]
    if isinstance(value, dict) and "rope" in key and size is _size:
        return _rope(value)
    return size(key, value, fields, kept) if _is_size(value) else value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _layers(key: str, value: int, fields: Fields, kept: Any) -> int:
    if _DENSE_FIRST.fullmatch(key):
        return 1
    if not _LAYERS.fullmatch(key):
        return value
    return len(kept[1]) if kept and value == kept[0] else min(value, 2)


def _size(key: str, value: int, fields: Fields, kept: Any) -> int:
    if _IDS.fullmatch(key):
        return _TOKEN + sum(map(ord, key)) % (VOCAB - _TOKEN) if value >= VOCAB else value
    if _KV_HEADS.fullmatch(key):
        heads = [v for k, v in fields.items() if _HEADS.fullmatch(k) and not _KV_HEADS.fullmatch(k)]
        as_many = value >= next(filter(_is_size, heads), value)
        return min(value, _HEADS_THERE if as_many else 2)
    if _LAYERS.fullmatch(key) or _DENSE_FIRST.fullmatch(key):
        return _layers(key, value, fields, kept)
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, key):
            return min(value, size)
    if _HEADS.fullmatch(key):  # a state space is twice as wide
        return min(value, _HEADS_THERE * (1 + key.startswith("mamba")))
    return value


def _kept_layers(fields: Fields) -> tuple[int, list[int]] | None:
    """How many layers there are, and one of each kind, by all lists that name one for each."""
    counts = {v for k, v in fields.items() if _LAYERS.fullmatch(k) and _is_size(v)}
    named = [v for v in fields.values() if isinstance(v, list) and v and isinstance(v[0], str)]
    lists = [v for v in named if len(v) in counts]
    if not lists:
        return None
    count = len(lists[0])
    kinds: dict[Any, int] = {}
    for i, kind in enumerate(zip(*(v for v in lists if len(v) == count), strict=True)):
        kinds.setdefault(kind, i)
    chosen = sorted(kinds.values())[:_MOST_LAYERS]
    if len(chosen) == 1 and count > 1:
        chosen.append(next(i for i in range(count) if i not in chosen))
    return count, sorted(chosen)


def _rope(value: Fields) -> Fields:
    small = {}
    for key, item in value.items():
        if isinstance(item, dict):
            item = _rope(item)
        elif key == "mrope_section":
            item = [4, 2, 2]
        elif key in ("short_factor", "long_factor"):
            item = item[:8]
        small[key] = item
    return small
