"""`fp4scope smooth`: a model that takes another's place, as a folder."""

import json

import pytest
import torch

from fp4scope.models import load_model

SIZE = ("--seq-len", 32, "--windows", 4)


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    """`saved(family, dtype)`: a folder with a tiny model."""

    def build(family, dtype=torch.float32):
        folder = tmp_path / family
        tiny_model(family).to(dtype).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_new_model_is_the_old_one(dtype, saved, fp4scope, text_file, tmp_path):
    folder = saved("llama", dtype)
    out = tmp_path / "smooth"
    code, shown, _ = fp4scope("smooth", folder, "--text", text_file, *SIZE, "-o", out)
    assert code == 0
    assert "input_layernorm: 2 norms, read by q_proj, k_proj, v_proj" in shown
    assert "bit for bit" in shown
    # In the dtype of the checkpoint, whatever it was measured in.
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    old, new = (load_model(str(path), device="cpu") for path in (folder, out))
    ids = torch.arange(4, 40)
    with torch.no_grad():
        assert torch.equal(old.logits(ids), new.logits(ids))
    assert old.fingerprint != new.fingerprint
    assert new.tokenizer("w7 w8").input_ids == old.tokenizer("w7 w8").input_ids


def test_a_folder_that_is_there_is_left(saved, fp4scope, text_file, tmp_path):
    out = tmp_path / "there"
    out.mkdir()
    code, _, said = fp4scope("smooth", saved("llama"), "--text", text_file, *SIZE, "-o", out)
    assert code == 2
    assert "exists; choose a folder that does not" in said
    assert list(out.iterdir()) == []


def test_a_model_whose_norms_take_no_factors(saved, fp4scope, text_file, tmp_path):
    """Gemma adds one to what it stores, which a power of two does not divide."""
    out = tmp_path / "smooth"
    code, _, said = fp4scope("smooth", saved("gemma3"), "--text", text_file, *SIZE, "-o", out)
    assert code == 2
    assert "without changing what the model computes" in said
    assert not out.exists()
