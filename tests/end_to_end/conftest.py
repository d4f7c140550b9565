"""A tiny random model with a tokenizer in a folder, and a text for it."""

import random
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fp4scope.cli import main
from fp4scope.report import files

WORDS = [f"w{i}" for i in range(92)]


@pytest.fixture(autouse=True)
def without_figures(request, monkeypatch):
    """Figures are slow: a run of a test draws them if it is marked so."""
    if not request.node.get_closest_marker("figures"):
        monkeypatch.setattr(files, "figures", lambda *_, **__: ())


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
    tiny_tokenizer().save_pretrained(folder)
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
        "all_quantized": "",
    }


@pytest.fixture
def fp4scope(capsys, monkeypatch, tmp_path):
    """Runs a command in this process; gives its exit code, stdout and stderr.

    The code is shown with both streams where an assertion about it fails.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fp4scope", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return Code(code, out, err), out, err

    return run


class Code(int):
    """An exit code that says in a failed assertion what the command wrote."""

    def __new__(cls, code, out, err):
        made = super().__new__(cls, code)
        made.said = f"exit code {int(code)}\n--- stdout\n{out}\n--- stderr\n{err}"
        return made

    def __repr__(self):
        return self.said


@pytest.fixture
def small(model_folder, text_file):
    """Arguments of a run of a second."""
    return [
        model_folder, "--text", text_file, "--seq-len", 32, "--windows", 4,
        "--calibration-windows", 8, "--calibration-seq-len", 32, "--all-quantized", "",
        "--sweep", "projections",
    ]  # fmt: skip
