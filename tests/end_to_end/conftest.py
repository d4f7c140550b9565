"""A tiny random model with a tokenizer in a folder, and a text for it."""

import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(94)]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    vocab = {word: i for i, word in enumerate(["<unk>", "<s>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tiny_tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=128,
        initializer_range=0.25,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text(" ".join(random.Random(0).choices(WORDS, k=2000)))
    return path


@pytest.fixture
def options(text_file):
    """A study small enough for a second."""
    return {
        "text": str(text_file),
        "seq_len": 32,
        "windows": 6,
        "calibration_windows": 8,
        "calibration_seq_len": 32,
    }
