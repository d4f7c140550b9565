"""Tiny random models of every family, a tokenizer of 96 words, and a check that nothing changed."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
import transformers.modeling_utils  # see below
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from asking import observed, take
from fp4scope.ledger import Ledger, Results

VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(92))]
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_COMMON = _SPECIAL | {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# Between them: full and sliding attention, grouped queries, every kind of bias, tied and untied
# heads, nn.Linear and Conv1D, and widths that end in half a block of 32.
_DENSE = {
    "qwen2": (Qwen2Config, {"hidden_size": 96}),
    "qwen2-sliding": (
        Qwen2Config,
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "qwen3": (Qwen3Config, {"head_dim": 24, "tie_word_embeddings": True}),
    "llama": (LlamaConfig, {}),
    "llama-biased": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "smollm2": (
        LlamaConfig,
        {
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": (MistralConfig, {"intermediate_size": 176, "sliding_window": 8}),
    "gemma3": (
        Gemma3TextConfig,
        {
            "num_hidden_layers": 7,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
        },
    ),
    "gpt2": (
        GPT2Config,
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 176},
    ),
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MOE = {
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": (
        Qwen2MoeConfig,
        _EXPERTS
        | {"num_experts": 4, "shared_expert_intermediate_size": 64, "mlp_only_layers": [1]},
    ),
    "qwen3-moe": (Qwen3MoeConfig, _EXPERTS | {"num_experts": 4}),
    # Transposed weights, biases, gate and up by turns.
    "gpt-oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    # Its first block is dense.
    "deepseek-v3": (
        "deepseek_v3",
        _EXPERTS
        | {
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "num_key_value_heads": 4,
        },
    ),
    # No gate.
    "nemotron-h": (
        "nemotron_h",
        _EXPERTS
        | {
            "layers_block_type": ["mamba", "moe", "attention"],
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "head_dim": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "ssm_state_size": 16,
            "chunk_size": 8,
            "moe_shared_expert_intermediate_size": 32,
        },
    ),
    "granite-hybrid": (
        "granitemoehybrid",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_chunk_size": 8,
        },
    ),
    "qwen3-next": (
        "qwen3_next",
        _EXPERTS
        | {
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
    "lfm2-moe": (
        "lfm2_moe",
        _EXPERTS
        | {
            "num_experts": 4,
            "num_dense_layers": 0,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    # Every expert sees every token.
    "llama4": (
        "llama4_text",
        {
            "num_local_experts": 4,
            "head_dim": 16,
            "intermediate_size": 32,
            "intermediate_size_mlp": 96,
            "attention_chunk_size": 32,
            "moe_layers": [1],
        },
    ),
    # Each product a module.
    "jetmoe": (
        "jetmoe",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "kv_channels": 16,
            "num_key_value_heads": 2,
        },
    ),
}
_DSA = _EXPERTS | {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_topk": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
}
_GEMMA = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": 8,
    "vocab_size_per_layer_input": len(VOCABULARY),
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
# Blocks that hand each other more than one hidden state.
_LINKED = {
    # Keys and values, in a mapping that all blocks are handed.
    "gemma4": ("gemma4_text", _GEMMA | {"global_head_dim": 16}),
    # The same, and several streams in front of the windows.
    "gemma3n": ("gemma3n_text", _GEMMA | {"laurel_rank": 16, "activation_sparsity_pattern": None}),
    # The tokens that an indexer chose.
    "glm-dsa": (
        "glm_moe_dsa",
        _DSA
        | {
            "num_hidden_layers": 4,
            "first_k_dense_replace": 1,
            "indexer_types": ["full", "shared", "full", "shared"],
        },
    ),
    # Several streams behind the tokens.
    "deepseek-v4": ("deepseek_v4", _DSA | {"head_dim": 32, "num_hidden_layers": 3}),
    # What a router keeps.
    "zaya": (
        "zaya",
        {
            "num_hidden_layers": 3,
            "num_experts": 4,
            "head_dim": 16,
            "moe_intermediate_size": 32,
            "router_hidden_size": 32,
        },
    ),
}
# Two shared transformers by turns, each in several blocks, with an adapter of each block's own.
_TIED = {
    "zamba2": (
        "zamba2",
        {
            "num_hidden_layers": 5,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid"],
            "layer_types": ["mamba", "hybrid", "mamba", "hybrid", "hybrid"],
            "num_mem_blocks": 2,
            "adapter_rank": 16,
            "use_mem_rope": True,
            "mamba_d_state": 16,
            "n_mamba_heads": 8,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "chunk_size": 8,
        },
    ),
}


# `modeling_utils` imports torchao where that is installed. Inside jaxtyping's import hook that
# would be compiled anew, with a warning that is an error here; so it comes before any fp4scope.

# Tiny operations lose more by waiting for threads than they win.
torch.set_num_threads(1)


# What takes most of the time, and breaks less often: subprocesses, whole runs, every kernel and
# family, simulations. The rest is for every change: `scripts/test --fast`.
_SLOW = (
    "deploy/test_checkpoint.py", "deploy/test_verify.py",
    "end_to_end/test_calibration.py", "end_to_end/test_cli.py", "end_to_end/test_designed.py",
    "end_to_end/test_diagnose.py",
    "end_to_end/test_gradient.py", "end_to_end/test_interruption.py",
    "end_to_end/test_odd_options.py", "end_to_end/test_offload.py", "end_to_end/test_outputs.py",
    "end_to_end/test_plan.py", "end_to_end/test_real_model.py", "end_to_end/test_stopping.py",
    "end_to_end/test_workers.py",
    "families/test_families.py",
    "kernels/test_backends.py", "kernels/test_fused.py", "kernels/test_odd_tensors.py",
    "kernels/test_packed.py", "kernels/test_peers.py", "kernels/test_qdq.py",
    "metrics/test_fused.py", "models/test_gguf.py", "models/test_load.py", "models/test_offload.py",
    "models/test_dequantize.py", "models/test_text.py",
    "report/test_browser.py", "report/test_damage.py", "report/test_figures.py",
    "report/test_markdown.py", "report/test_names.py", "report/test_page.py",
    "report/test_reproduction.py",
    "stats/test_changes.py", "stats/test_controls.py", "stats/test_coverage.py",
    "stats/test_decisions.py", "stats/test_effects.py", "stats/test_noise.py",
    "stats/test_orders.py", "stats/test_ranks.py", "stats/test_sequences.py",
    "study/test_odd_values.py",
    "sweep/test_check.py", "sweep/test_gradient.py",
    "sweep/test_memory.py", "sweep/test_mixed_recipes.py", "sweep/test_tree.py",
)  # fmt: skip
_FIRST_FAMILIES = ("llama", "gpt2")


def pytest_ignore_collect(collection_path, config):
    """Not even read: that takes time as well."""
    left_out = config.option.markexpr == "not slow" and collection_path.as_posix().endswith(_SLOW)
    return True if left_out else None


def pytest_collection_modifyitems(items):
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        if item.path.as_posix().endswith(_SLOW) or (family and family not in _FIRST_FAMILIES):
            item.add_marker("slow")


@pytest.fixture(params=list(_DENSE))
def family(request):
    """Every dense family, one after the other."""
    return request.param


@pytest.fixture(params=list(_MOE))
def mixture(request):
    """Every family with experts, one after the other."""
    return request.param


@pytest.fixture(params=list(_LINKED))
def linked(request):
    """Every family whose blocks hand each other more than a hidden state, one after the other."""
    return request.param


@pytest.fixture(scope="session")
def tiny_model():
    """`tiny_model(family, **config)`: the same random weights each time, biases and norms too."""

    def build(family, **overrides):
        kind, own = (_DENSE | _MOE | _LINKED | _TIED)[family]
        common = _SPECIAL | {"vocab_size": len(VOCABULARY)} if kind is GPT2Config else _COMMON
        if isinstance(kind, str) and kind not in CONFIG_MAPPING:
            pytest.skip(f"transformers {transformers.__version__} has no {kind}")
        make = partial(AutoConfig.for_model, kind) if isinstance(kind, str) else kind
        # Vectors that are neither biases nor norms, such as sinks, keep some of how they are drawn.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(make(**common | own | overrides)).eval()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                # Cubes have the heavy tails that make quantizing matter.
                parameter.data = noise**3 / (15 * parameter.shape[-1]) ** 0.5
            elif name.endswith("bias"):
                parameter.data = 0.3 * noise
            else:
                parameter.data += 0.1 * noise
        return model.requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def ids():
    """Token ids of two windows of 24: more than every tiny model's sliding window."""
    return torch.randint(4, len(VOCABULARY), (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """`tiny_tokenizer(adds_bos=False)`: splits at white space; word `w7` is token 11."""

    def build(*, adds_bos=False, **special):
        words = models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>")
        backend = Tokenizer(words)
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if adds_bos:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 1)]
            )
        named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", **named | special
        )

    return build


@pytest.fixture(scope="session")
def observe():
    """`observe(asked, nll)`: rows with this NLL per token in windows of ten tokens."""
    return observed


@pytest.fixture(scope="session")
def results():
    """`results(*observed)`: a study that measured these and says nothing of its conditions."""

    def build(*found, **conditions):
        names = ("study", "model", "data", "protocol", "environment")
        counted = conditions.get("study", {}).get("numerics", {}).get("replicas", 1)
        empty = Results(**{name: {} for name in names} | conditions, ledger=Ledger(counted=counted))
        return take(empty, *found)

    return build


@pytest.fixture(scope="session")
def unchanged():
    """`with unchanged(model):` - afterwards no bit, parameter object or hook may differ."""

    @contextmanager
    def check(model):
        before = dict(model.named_parameters(remove_duplicate=False))
        values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        yield
        after = dict(model.named_parameters(remove_duplicate=False))
        assert list(after) == list(before)
        assert [name for name in after if after[name] is not before[name]] == []
        assert list(model.state_dict()) == list(values)
        for name, tensor in model.state_dict().items():
            # Bytes, because NaN is not equal to itself and zeros have signs.
            assert torch.equal(tensor.view(torch.uint8), values[name].view(torch.uint8)), name
        assert [name for name, module in model.named_modules() if _has_hooks(module)] == []

    return check


def _has_hooks(module):
    return bool(module._forward_pre_hooks or module._forward_hooks)
