"""A model in memory, ready to be measured, and what identifies it."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from fp4scope.errors import DataError
from fp4scope.models.config import config_size, text_config
from fp4scope.models.layout import Layout
from fp4scope.models.offload import Offloaded
from fp4scope.models.stack import BlockStack, only_last_rows
from fp4scope.models.text import Tower
from fp4scope.operands import Product, product_at

# What saving, loading or running writes into a configuration; `architectures` is one of these.
_VOLATILE_CONFIG = (
    "_name_or_path",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
)
_LARGE = 1 << 33
_THREADS = 8
_PIECE = 1 << 26


@dataclass(kw_only=True)
class LoadedModel:
    """A model ready to be measured, and what identifies it.

    `name` is its hub id, or the last part of its path.
    `prior_quantization` says how the weights were stored before they came here, if they were
    quantized; `fingerprint` is a SHA-256 over every parameter and the configuration. `towers` are
    what a multimodal model has beside its language model. `copies`: how many rows a token is to the
    experts of a block.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    layout: Layout
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    towers: tuple[Tower, ...] = ()
    prior_quantization: str | None = None
    warnings: tuple[str, ...] = ()
    offloaded: Offloaded | None = None
    copies: int = 1

    @property
    def config(self) -> Any:  # noqa: ANN401
        """The configuration of the text model."""
        return text_config(self.model.config)

    @property
    def dtype_name(self) -> str:
        """Such as `float32`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def max_seq_len(self) -> int | None:
        """Tokens in a window at most; None if the model names no bound."""
        longest = config_size(self.config, "max_position_embeddings", 0)
        return longest if longest > 0 else None

    @property
    def hidden_size(self) -> int:
        """Width of what a block passes on."""
        return config_size(self.config, "hidden_size", 0) or self._embeddings[1]

    @property
    def bytes_per_token(self) -> Sequence[float]:
        """Of a state as it enters each block, and behind the last.

        A hidden state and nothing else, as long as the blocks have not shown what they hand on.
        """
        plain = [float(self.hidden_size * self.dtype.itemsize)] * (self.layout.blocks + 1)
        return self.stack.bytes_per_token or plain

    @property
    def vocab_size(self) -> int:
        return config_size(self.config, "vocab_size", 0) or self._embeddings[0]

    @property
    def _embeddings(self) -> tuple[int, int]:
        embeddings: Any = self.model.get_input_embeddings()
        tokens, width = embeddings.weight.shape
        return tokens, width

    def require_known(self, ids: torch.Tensor, source: str) -> None:
        """Refuse tokens that the model has no embeddings or no logits for.

        Args:
            ids: Token ids, of any shape.
            source: Where they come from.

        Raises:
            DataError: There are some.
        """
        head: Any = self.model.get_output_embeddings()
        tables = [self.model.get_input_embeddings(), head]
        rows = [len(t.weight) for t in tables if getattr(t, "weight", None) is not None]
        if rows and int(ids.max()) >= min(rows):
            raise DataError(
                f"the tokenizer makes token {int(ids.max())} of {source}, but {self.name} knows "
                f"tokens 0 to {min(rows) - 1} only; give the tokenizer that belongs to it, or "
                "resize its embeddings"
            )

    @cached_property
    def products(self) -> dict[str, Product]:
        """What can be quantized, by name."""
        return {name: product_at(self.model, name) for name in self.layout.linears}

    @cached_property
    def block_products(self) -> tuple[Product, ...]:
        """Those of the blocks."""
        behind = {site.name for site in self.layout.sites.behind}
        return tuple(product for name, product in self.products.items() if name not in behind)

    @property
    def active(self) -> int:
        """Numbers in all weights of blocks that a token meets: of experts, those it goes to."""
        return sum(p.rows * p.cols * min(p.experts, self.copies) for p in self.block_products)

    @property
    def tokenizer_sha256(self) -> str | None:
        """Hash of a fast tokenizer's whole definition."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return hashlib.sha256(backend.to_str().encode()).hexdigest() if backend else None

    @cached_property
    def stack(self) -> BlockStack:
        """The blocks, to be run one at a time."""
        return BlockStack(self.model, self.layout, self.offloaded)

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """The model's own forward: token ids of a window (1-d), or of several (2-d), to logits.

        They have an axis for the vocabulary more. With `last`, only those of the last so many
        tokens; most heads then compute no others.
        """
        spared = nullcontext() if last is None else only_last_rows(self.model, last)
        with spared:
            several = torch.atleast_2d(ids).to(self.device)
            logits = self.model(several, use_cache=False).logits
        logits = logits[0] if ids.ndim == 1 else logits
        return logits if last is None else logits[..., -last:, :]


def fingerprint_of(model: PreTrainedModel) -> str:
    """SHA-256 over the configuration and every tensor of a model.

    Of a large model each tensor has a hash of its own, which several threads make: for 61 GB one
    thread takes a minute and a half longer.
    """
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if k not in _VOLATILE_CONFIG}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    tensors = sorted(model.state_dict().items())
    names = [f"{name} {tensor.dtype} {tuple(tensor.shape)}\n" for name, tensor in tensors]
    if sum(tensor.nbytes for _, tensor in tensors) < _LARGE:
        for name, (_, tensor) in zip(names, tensors, strict=True):
            digest.update(name.encode())
            _update(digest, tensor)
        return digest.hexdigest()
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(_digest_of, (tensor for _, tensor in tensors))
        for name, each in zip(names, found, strict=True):
            digest.update(name.encode() + each)
    return digest.hexdigest()


def _digest_of(tensor: torch.Tensor) -> bytes:
    digest = hashlib.sha256()
    _update(digest, tensor)
    return digest.digest()


def _update(digest: Any, tensor: torch.Tensor) -> None:  # noqa: ANN401
    """Feed a tensor's bytes to a hash, in pieces: not all of it need be in host memory."""
    for piece in tensor.detach().contiguous().reshape(-1).view(torch.uint8).split(_PIECE):
        digest.update(piece.cpu().numpy())
