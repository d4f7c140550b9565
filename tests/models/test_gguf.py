"""GGUF files: converted once to exactly their dequantized weights, or refused without a trace."""

import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fp4scope.errors import ModelError, OutputError
from fp4scope.models import cache_folder, load_model, quantization_of
from fp4scope.models import gguf as gguf_module

# A byte-level vocabulary with one merge.
TOKENS = [*bytes_to_unicode().values(), "he", "zq", "<s>", "</s>"]
BOS, EOS = 258, 259
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QUANTIZED, HALF = ("attn_q", "attn_v", "ffn_up"), ("ffn_down",)


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama", vocab_size=len(TOKENS), bos_token_id=BOS, eos_token_id=EOS)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder that the tool uses during a test."""
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache):
    """Everything the cache holds but its lock."""
    return sorted(path.name for path in cache.glob("gguf/*") if path.name != ".lock")


def write(
    path, model, leave_out=(), quantized=QUANTIZED, tokens=TOKENS, as_kind=Type.Q8_0, pack=None
):
    """`model` as llama.cpp writes it; returns its state dict as it can be read back."""
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * BOS + [3, 3] + [1] * (len(tokens) - len(TOKENS)))
    writer.add_token_merges(["h e", "z q"])  # of one alone transformers may take the letters
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    read_back = {}
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, block, stem = stem.split(".", 3)
            short = NAMES[stem]
            stored = f"blk.{block}.{short}.weight"
        else:
            short = NAMES[stem]
            stored = f"{short}.weight"
        if stored in leave_out:
            continue
        values, kind = tensor.numpy(), None
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        order = np.arange(len(values))
        if short in heads:  # llama.cpp interleaves the halves that rotary embeddings pair
            order = order.reshape(heads[short], 2, -1).swapaxes(1, 2).ravel()
        if short in quantized:
            kind = as_kind
            packed = (pack or gguf.quants.quantize)(values[order], kind)
            back = gguf.quants.dequantize(packed, kind)
        else:
            packed = values[order].astype(np.float16 if short in HALF else np.float32)
            back = packed.astype(np.float32)
        writer.add_tensor(stored, np.ascontiguousarray(packed), raw_dtype=kind)
        restored = np.empty_like(back)
        restored[order] = back
        read_back[name] = torch.from_numpy(restored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_back


def test_words_that_no_merge_reaches(tiny_model, cache, tmp_path):
    tokens = [*TOKENS, *(f"model{i}" for i in range(5000))]
    model = tiny_model("llama", vocab_size=len(tokens), bos_token_id=BOS, eos_token_id=EOS)
    write(tmp_path / "lost.gguf", model, tokens=tokens)
    with pytest.raises(ModelError, match="entries and makes a token of nearly every character"):
        load_model(str(tmp_path / "lost.gguf"), device="cpu")
    assert kept(cache) == []


def test_words_that_are_lost_when_the_copy_is_saved(model, cache, tmp_path, monkeypatch):
    class Lost:
        def __len__(self) -> int:
            return 5000

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": list(range(len(text)))}

    read = AutoTokenizer.from_pretrained

    def reads(*source: str, **options: Any) -> Any:
        return read(*source, **options) if "gguf_file" in options else Lost()

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", reads)
    write(tmp_path / "tiny.gguf", model)
    with pytest.raises(ModelError, match="makes a token of nearly every character"):
        load_model(str(tmp_path / "tiny.gguf"), device="cpu")
    assert kept(cache) == []


def test_converted_weights_are_the_dequantized_ones(model, cache, ids, tmp_path):
    path = tmp_path / "tiny.gguf"
    expected = write(path, model)
    assert not torch.equal(
        expected["model.layers.0.mlp.up_proj.weight"], model.model.layers[0].mlp.up_proj.weight
    )
    loaded = load_model(str(path), device="cpu")
    state = loaded.model.state_dict()
    assert set(state) == set(expected)
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []
    model.load_state_dict(expected)
    with torch.no_grad():
        assert torch.equal(loaded.logits(ids[0]), model(ids[:1], use_cache=False).logits[0])

    assert loaded.name == "tiny"
    assert loaded.prior_quantization == "Q8_0 (6)"
    assert loaded.dtype == torch.float32
    assert loaded.tokenizer("hello")["input_ids"] == [256, *(TOKENS.index(c) for c in "llo")]
    assert loaded.tokenizer.bos_token_id == BOS


def test_the_second_load_converts_nothing(model, cache, tmp_path, monkeypatch):
    """Not under another name either: the key is the file's hash."""
    path = tmp_path / "tiny.gguf"
    write(path, model)
    first = load_model(str(path), device="cpu")
    monkeypatch.setattr(gguf_module, "_convert", lambda *_: pytest.fail("converted again"))
    renamed = shutil.copy(path, tmp_path / "renamed.gguf")
    for again in (path, renamed):
        loaded = load_model(str(again), device="cpu")
        assert loaded.fingerprint == first.fingerprint
        assert loaded.prior_quantization == "Q8_0 (6)"
    assert len(kept(cache)) == 1


def test_another_file_is_converted_again(model, cache, tmp_path):
    path = tmp_path / "tiny.gguf"
    write(path, model)
    first = load_model(str(path), device="cpu")
    model.model.norm.weight[0] += 1
    write(path, model)
    assert load_model(str(path), device="cpu").fingerprint != first.fingerprint
    assert len(kept(cache)) == 2


def test_a_tied_head_needs_no_tensor(model, cache, tmp_path):
    path = tmp_path / "tied.gguf"
    write(path, model, leave_out=["output.weight"])
    loaded = load_model(str(path), device="cpu")
    assert loaded.config.tie_word_embeddings
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


@pytest.mark.parametrize("tensor", ["blk.1.ffn_gate.weight", "output_norm.weight"])
def test_missing_tensors_are_not_made_up(tensor, model, cache, tmp_path):
    path = tmp_path / "incomplete.gguf"
    write(path, model, leave_out=[tensor])
    with pytest.raises(ModelError, match=r"no weights for 1 parameters, model\.") as error:
        load_model(str(path), device="cpu")
    assert str(error.value).startswith(f"cannot convert {path}: ")
    assert kept(cache) == []


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01, 0.0005])
def test_a_damaged_file_leaves_nothing_in_the_cache(share, model, cache, tmp_path):
    path = tmp_path / "torn.gguf"
    write(path, model)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match="check the file") as error:
        load_model(str(path), device="cpu")
    assert str(error.value).startswith(f"cannot convert {path}: ")
    assert kept(cache) == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_written(below, model, tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"
    write(path, model)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(OutputError, match="set FP4SCOPE_CACHE to a folder"):
        load_model(str(path), device="cpu")


def test_a_full_disk_is_the_caches_problem(model, cache, tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"
    write(path, model)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left on device; make room"):
        load_model(str(path), device="cpu")
    assert kept(cache) == []


def test_another_way_of_converting_converts_again(model, cache, tmp_path, monkeypatch):
    """What an older converter made is not used, and makes room; a newer one's stays."""
    path = tmp_path / "tiny.gguf"
    write(path, model)
    load_model(str(path), device="cpu")
    (first,) = kept(cache)
    newer = first.rpartition("-")[0] + "-99"
    (cache / "gguf" / newer).mkdir()
    monkeypatch.setattr(gguf_module, "_CONVERTER", gguf_module._CONVERTER + 1)
    load_model(str(path), device="cpu")
    assert kept(cache) == sorted([f"{first.rpartition('-')[0]}-{gguf_module._CONVERTER}", newer])


OTHER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("converting", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_converts_is_left_alone_until_it_dies(model, cache, tmp_path):
    path = tmp_path / "tiny.gguf"
    write(path, model)
    unfinished = cache / "gguf" / "converting-x"
    unfinished.mkdir(parents=True)
    command = [sys.executable, "-c", OTHER, str(cache / "gguf" / ".lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "converting\n"
        waiting = threading.Thread(target=gguf_module.converted, args=[path])
        waiting.start()
        waiting.join(1)
        assert kept(cache) == ["converting-x"]
        other.kill()
    waiting.join()
    (name,) = kept(cache)
    assert name.endswith(f"-{gguf_module._CONVERTER}")


def test_the_slower_of_two_processes_uses_the_others_conversion(
    model, cache, tmp_path, monkeypatch
):
    path = tmp_path / "tiny.gguf"
    write(path, model)
    exclusive = gguf_module._cache_to_itself

    @contextmanager
    def after_another(folder):
        monkeypatch.setattr(gguf_module, "_cache_to_itself", exclusive)
        gguf_module.converted(path)
        monkeypatch.setattr(gguf_module, "_convert", lambda *_: pytest.fail("converted again"))
        with exclusive(folder):
            yield

    monkeypatch.setattr(gguf_module, "_cache_to_itself", after_another)
    assert load_model(str(path), device="cpu").prior_quantization == "Q8_0 (6)"
    assert len(kept(cache)) == 1


NOT_OURS = ["", "{", "[]", "null", "{}", '{"quantization": "Q4_0 (1)"}', "\xff", "[" * 100_000]


@pytest.mark.parametrize("text", ["", '{"quantization": "Q4_0 (1)"}'])
def test_damaged_notes_in_the_cache_are_converted_again(text, model, cache, tmp_path):
    path = tmp_path / "tiny.gguf"
    write(path, model)
    first = load_model(str(path), device="cpu").fingerprint
    notes = cache / "gguf" / kept(cache)[0] / "fp4scope.json"
    whole = notes.read_text()
    notes.write_text(text, encoding="latin-1")
    again = load_model(str(path), device="cpu")
    assert (again.fingerprint, again.prior_quantization) == (first, "Q8_0 (6)")
    assert notes.read_text() == whole
    assert len(kept(cache)) == 1


@pytest.mark.parametrize("text", NOT_OURS, ids=range(len(NOT_OURS)))
def test_anothers_notes_in_a_model_folder_are_refused(text, model, tmp_path):
    model.save_pretrained(tmp_path)
    notes = tmp_path / "fp4scope.json"
    notes.write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match="is not what fp4scope writes there; remove or rename it"):
        load_model(str(tmp_path), device="cpu")


# What lies beside a GGUF file is not part of it.


def neighbours(folder, tokenizer, marker):
    """A foreign tokenizer, Python code, and configurations that ask to run it."""
    tokenizer.save_pretrained(folder)
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')")
    own = {
        "AutoTokenizer": ["own.T", "own.T"],
        "AutoConfig": "own.C",
        "AutoModelForCausalLM": "own.M",
    }
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        path = folder / name
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | {"auto_map": own, "tokenizer_class": "T"}))


def test_a_files_neighbours_change_nothing_and_run_nothing(
    model, cache, tmp_path, tiny_tokenizer, monkeypatch
):
    monkeypatch.setattr("builtins.input", lambda _: "y")  # the library asks on the terminal
    for name in ("clean", "crowded"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "tiny.gguf", model)
    neighbours(tmp_path / "crowded", tiny_tokenizer(), tmp_path / "ran")
    crowded = load_model(str(tmp_path / "crowded" / "tiny.gguf"), device="cpu")
    shutil.rmtree(cache)
    clean = load_model(str(tmp_path / "clean" / "tiny.gguf"), device="cpu")
    assert crowded.tokenizer_sha256 == clean.tokenizer_sha256
    assert crowded.fingerprint == clean.fingerprint
    assert not (tmp_path / "ran").exists()


def test_quantization_is_none_where_nothing_was_quantized(model, cache, tmp_path):
    write(tmp_path / "full.gguf", model, quantized=())
    assert load_model(str(tmp_path / "full.gguf"), device="cpu").prior_quantization is None
    assert quantization_of(cache / "gguf" / kept(cache)[0]) is None
    assert quantization_of(tmp_path) is None


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FP4SCOPE_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "fp4scope"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "fp4scope"
