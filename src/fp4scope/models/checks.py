"""What a model in memory must be, so that it can be measured."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fp4scope.errors import ModelError, StudyError
from fp4scope.models.config import config_value, text_config
from fp4scope.models.layout import Layout
from fp4scope.models.text import Tower
from fp4scope.operands import Product, product_at

MINIMUM_COVERAGE = 0.95


def require_model(model: object, tokenizer: object = None) -> None:
    """Refuse what is no `transformers` model, and a tokenizer that is none.

    Raises:
        ModelError: `model` is something else.
        StudyError: `tokenizer` is something else; None is not.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"model is {_kind(model)}, not a transformers model; give what AutoModelForCausalLM."
            "from_pretrained returns (without a wrapper such as PEFT's or torch.compile's), or a "
            "hub id, a folder or a GGUF file"
        )
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        inner = isinstance(getattr(tokenizer, "tokenizer", None), PreTrainedTokenizerBase)
        hint = "its .tokenizer" if inner else "what AutoTokenizer.from_pretrained returns"
        raise StudyError(
            f"tokenizer is {_kind(tokenizer)}, not a transformers tokenizer; give {hint}"
        )


def require_decoder(config: Any, name: str) -> None:  # noqa: ANN401
    """Refuse a model that reads with one stack of blocks and writes with another.

    Raises:
        ModelError: It does.
    """
    if any(config_value(c, "is_encoder_decoder", False) for c in (config, text_config(config))):
        raise ModelError(f"{name} is an encoder-decoder; fp4scope needs a causal language model")


def require_data(model: PreTrainedModel, name: str) -> None:
    """Refuse parameters without data, on several devices, or in FP64; and adapters.

    Raises:
        ModelError: The model has one of these.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    devices = {str(tensor.device) for tensor in tensors.values()}
    if not tensors or "meta" in devices:
        first = next((n for n, tensor in tensors.items() if tensor.is_meta), "all")
        raise ModelError(
            f"{name} has parameters without data, on the device meta ({first} first); load its "
            "weights into memory, without offloading to disk"
        )
    if len(devices) > 1:
        raise ModelError(
            f"{name} lies on {' and '.join(sorted(devices))}; move all of it to one device"
        )
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize > 4:
            raise ModelError(
                f"{name} is in {_dtype(parameter)} ({key} first); convert it: "
                "model.to(torch.float32), or bfloat16 or float16"
            )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{name} has an adapter beside its weights; merge it (merge_and_unload), save the "
            "merged model and give that"
        )


def require_plain(model: PreTrainedModel, layout: Layout, name: str) -> None:
    """Refuse linears that do more than to multiply by their weight.

    A linear that quantizes its weight or input on its own would do it to an FP4 image again.

    Raises:
        ModelError: There is such a linear.
    """
    for path in layout.linears:
        product = product_at(model, path)
        if type(product.parameter.data) is not torch.Tensor:
            raise ModelError(
                f"{name} keeps {path} as a {type(product.parameter.data).__name__}, not as plain "
                "numbers; give the original model, before quantization"
            )
        if not _multiplies(product):
            raise ModelError(
                f"{path} of {name} is a {product.kind.__name__}, which quantizes on its own and "
                "would do it again to what is quantized; give the original model in BF16"
            )


def require_coverage(layout: Layout) -> None:
    """Refuse a model of which too little can be reached to call it an FP4 model.

    Raises:
        ModelError: Less than 95% of the parameters in its blocks.
    """
    if layout.reachable < MINIMUM_COVERAGE:
        listed = ", ".join(f"{path} ({share:.1%})" for path, share in layout.missed[:4])
        raise ModelError(
            f"only {layout.reachable:.1%} of the parameters in the blocks are weights of linears "
            f"that can be quantized; missed: {listed}. With all of them quantized this is no FP4 "
            "model; pass --allow-partial (allow_partial=True) to measure it all the same"
        )


def forward_failed(
    model: PreTrainedModel, name: str, error: Exception, towers: Sequence[Tower] = ()
) -> ModelError:
    """What to say of a model whose own forward raises.

    Args:
        model: The model.
        name: What to call it.
        error: What it raised.
        towers: What it has beside its language model.
    """
    dtypes = sorted({_dtype(p) for p in model.parameters() if p.is_floating_point()})
    mixed = f"its weights are in {' and '.join(dtypes)}; bring them to one dtype"
    alone = "it must run on a batch of token ids alone"
    if towers:
        beside = ", ".join(tower.name for tower in towers)
        alone += f", without what {beside} would read: give the language model alone"
    hint = mixed if len(dtypes) > 1 else alone
    reason = " ".join(str(error).split())[:200]
    return ModelError(f"{name} cannot run on 8 tokens: {type(error).__name__}: {reason}; {hint}")


@torch.no_grad()
def _multiplies(product: Product) -> bool:
    """Whether a linear gives what a plain product with its weight gives; of most it is known."""
    # All of these are quantizers.
    if product.kind.__module__.startswith("transformers.integrations."):
        return False
    if product.is_standard:
        return True
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, product.cols, generator=generator).to(product.weight)
    try:
        given = product(x)
    except Exception:  # it takes other inputs: a group of linears, for example
        return True
    expected = functional.linear(x, product.weight, product.bias)
    if not isinstance(given, torch.Tensor) or given.shape != expected.shape:
        return True
    off = (given.float() - expected.float()).norm() / expected.float().norm()
    return bool(off < 0.01)  # BF16 rounds by 0.002


def _kind(value: object) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{value!r} ({name})" if isinstance(value, str | int | float) else f"a {name}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
