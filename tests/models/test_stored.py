"""A GGUF file beside recipes; types of K and IQ are read as the package gguf has them."""

import json

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Type

from fp4scope.cli.app import app
from fp4scope.errors import ModelError, StudyError
from fp4scope.models import load_model

from .test_gguf import BOS, EOS, TOKENS, write

LARGE = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_XXS")


@pytest.fixture
def original(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    """A model that nothing was quantized in before, and its folder."""
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path / "cache"))
    model = tiny_model("llama", vocab_size=len(TOKENS), bos_token_id=BOS, eos_token_id=EOS)
    model.save_pretrained(tmp_path / "original")
    write(tmp_path / "full.gguf", model, quantized=())
    load_model(str(tmp_path / "full.gguf"), device="cpu").tokenizer.save_pretrained(
        tmp_path / "original"
    )
    return model, tmp_path / "original"


def verify(file, folder, *args):
    command = ["verify", file, "--original", folder, "--device", "cpu", *args]
    found = CliRunner().invoke(app, list(map(str, command)))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture
def size(tmp_path):
    rng = np.random.default_rng(0)
    letters = [chr(97 + n) for n in rng.integers(0, 26, 2000)]
    (tmp_path / "text.txt").write_text("".join(letters))
    return ["--text", tmp_path / "text.txt", "--windows", 10, "--seq-len", 24]


def test_a_file_stands_beside_recipes(original, size, tmp_path):
    model, folder = original
    every = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    write(tmp_path / "tiny.gguf", model, quantized=every)
    out = tmp_path / "found.json"
    asked = ["--candidates", "q8_0, nvfp4/w4a16", "-o", out]
    found = verify(tmp_path / "tiny.gguf", folder, *size, *asked)
    assert found.exit_code == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["tiny", "q8_0", "nvfp4/w4a16"]
    assert rows["tiny"]["bits"] == rows["q8_0"]["bits"] == 8.5
    # The file's linears are the format's, to the bit.
    assert rows["q8_0"]["kl_nats"] == pytest.approx(rows["tiny"]["kl_nats"], rel=1e-3)
    assert abs(rows["q8_0"]["more_than_file_nats"]) < 1e-6
    assert rows["nvfp4/w4a16"]["kl_nats"] > 5 * rows["tiny"]["kl_nats"] > 0
    assert rows["nvfp4/w4a16"]["kl_nats_low"] is not None
    assert "Q8_0 (14)" in found.stdout
    assert "More than the file" in found.stdout
    shown = [line.split()[0] for line in found.stdout.splitlines() if " [" in line]
    assert shown == list(rows)


def test_what_says_nothing_of_a_file(original, size, tmp_path, tiny_model):
    model, folder = original
    file = tmp_path / "tiny.gguf"
    write(file, model)
    with pytest.raises(ModelError, match=r"was quantized before \(Q8_0 \(6\)\), so nothing is"):
        verify(file, file, *size)
    with pytest.raises(StudyError, match="names no original"):
        CliRunner().invoke(app, ["verify", str(file)], catch_exceptions=False)
    with pytest.raises(StudyError, match="leave --served, --server and --ids out"):
        verify(file, folder, "--server", "http://localhost:1")
    other = tiny_model(
        "llama", vocab_size=len(TOKENS), intermediate_size=64, bos_token_id=BOS, eos_token_id=EOS
    )
    write(file, other)
    with pytest.raises(ModelError, match="is no file of original"):
        verify(file, folder, *size)


@pytest.mark.parametrize("name", LARGE)
def test_types_of_k_and_iq_are_read(name, tiny_model, tmp_path, monkeypatch):
    """Their bytes are drawn, since gguf does not make them; it says what they stand for."""
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path / "cache"))
    kind = Type[name]
    size, stored = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)

    def drawn(values, _):
        blocks = rng.integers(0, 256, (values.size // size, stored), dtype=np.uint8)
        with np.errstate(all="ignore"):
            found = gguf.quants.dequantize(blocks, kind)
            wild = ~(np.isfinite(found).all(1) & (np.abs(found).max(1) < 4))
        blocks[wild] = 0
        assert not wild.all()
        return blocks.reshape(len(values), -1)

    model = tiny_model(
        "llama", vocab_size=len(TOKENS), intermediate_size=256, bos_token_id=BOS, eos_token_id=EOS
    )
    expected = write(
        tmp_path / "tiny.gguf", model, quantized=("ffn_down",), as_kind=kind, pack=drawn
    )
    loaded = load_model(str(tmp_path / "tiny.gguf"), device="cpu")
    key = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(loaded.model.state_dict()[key], expected[key])
    assert expected[key].abs().max() > 0
    assert loaded.prior_quantization == f"{name} (2)"
