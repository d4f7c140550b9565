"""Loading folders and hub ids: the same logits, one fingerprint, and refusals that say why."""

import json
import shutil
import socket
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    T5Config,
    ViTConfig,
    ViTModel,
)

from fp4scope import diagnose
from fp4scope.errors import DataError, ModelError, StudyError
from fp4scope.models import adopt, choose_dtype, load_model
from fp4scope.models.loaded import fingerprint_of
from fp4scope.models.placement import dtype_note

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def saved(tiny_model, tiny_tokenizer, tmp_path_factory):
    """A folder with a tiny Llama and its tokenizer. Read only."""
    folder = tmp_path_factory.mktemp("saved") / "llama"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(saved, tmp_path / "model")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, **changes):
    """Replace tensors of the checkpoint; None takes one away."""
    path = folder / "model.safetensors"
    tensors = {n: t.clone() for n, t in load_file(path).items()} | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata={"format": "pt"})


def refusal(folder, error=ModelError, **options):
    with pytest.raises(error) as caught:
        load_model(str(folder), **{"device": "cpu"} | options)
    return str(caught.value)


# What is loaded.


def test_a_saved_model_gives_the_same_logits(family, tiny_model, tiny_tokenizer, ids, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    with torch.no_grad():
        expected = model(ids[:1], use_cache=False).logits[0]
    assert torch.equal(loaded.logits(ids[0]), expected)
    assert loaded.logits(ids[0]).shape == (24, 96)
    assert (loaded.name, loaded.device) == (tmp_path.name, torch.device("cpu"))
    assert (loaded.max_seq_len, loaded.prior_quantization, loaded.warnings) == (64, None, ())
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_sharded_checkpoint_is_the_same_model(saved, tiny_model, tmp_path):
    shards = shutil.copytree(saved, tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    tiny_model("llama").save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    whole, sharded = (load_model(str(path), device="cpu") for path in (saved, shards))
    assert whole.fingerprint == sharded.fingerprint


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_dtype(dtype, expected, saved, tiny_model, tmp_path):
    """On CPU, auto is FP32 whatever the checkpoint holds."""
    folder = shutil.copytree(saved, tmp_path / "bf16")
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    assert load_file(folder / "model.safetensors")[WEIGHT].dtype == torch.bfloat16
    loaded = load_model(str(folder), device="cpu", dtype=dtype)
    assert loaded.dtype == expected
    assert {p.dtype for p in loaded.model.parameters()} == {expected}


def test_tokenizer_has_a_hash_of_its_own(saved, folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"w7"', '"w007"'))
    hashes = [load_model(str(f), device="cpu").tokenizer_sha256 for f in (saved, saved, folder)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 64


@pytest.fixture
def library():
    """The logging settings of transformers, put back after the test."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield logging
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


@pytest.mark.parametrize("bars", [True, False])
def test_the_library_is_silenced_only_meanwhile(bars, library, saved, folder):
    (folder / "config.json").write_text("{")
    library.set_verbosity(library.WARNING)
    (library.enable_progress_bar if bars else library.disable_progress_bar)()
    load_model(str(saved), device="cpu")
    refusal(folder)
    assert library.get_verbosity() == library.WARNING
    assert library.is_progress_bar_enabled() == bars


@pytest.mark.parametrize(
    ("family", "dtype", "warned"),
    [
        ("gemma3", torch.float16, True),
        ("gemma3", torch.bfloat16, False),
        ("llama", torch.float16, False),
    ],
)
def test_gemma_in_fp16_is_warned_about(family, dtype, warned, tiny_model, tiny_tokenizer):
    loaded = adopt(tiny_model(family).to(dtype), tiny_tokenizer())
    assert [w.split(";")[0] for w in loaded.warnings] == [
        "gemma3_text models are known to overflow float16"
    ] * warned


# The fingerprint.


def test_fingerprint_is_of_the_model_not_of_where_it_is(saved, folder, tiny_model, tiny_tokenizer):
    loaded = [load_model(str(path), device="cpu").fingerprint for path in (saved, saved, folder)]
    in_memory = adopt(tiny_model("llama"), tiny_tokenizer(), name="mine").fingerprint
    assert {*loaded, in_memory} == {in_memory}


@pytest.mark.parametrize("large", [False, True])
def test_fingerprint_of_a_large_model(large, monkeypatch, tiny_model):
    """Every value of every tensor counts, also where threads hash tensors in pieces."""
    monkeypatch.setattr("fp4scope.models.loaded._PIECE", 100)
    monkeypatch.setattr("fp4scope.models.loaded._LARGE", 0 if large else 1 << 33)
    model = tiny_model("llama")
    found = {fingerprint_of(model)}
    tensors = model.state_dict()
    for tensor in tensors.values():
        tensor.view(-1)[-1] += 1
        found.add(fingerprint_of(model))
    assert len(found) == 1 + len(tensors)


@pytest.mark.parametrize(
    "parameter",
    ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", WEIGHT],
)
def test_fingerprint_changes_with_one_value(parameter, saved, tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    before = adopt(model, tiny_tokenizer()).fingerprint
    values = model.get_parameter(parameter).view(-1)
    values[-1] = torch.nextafter(values[-1], values[-1] + 1)
    assert adopt(model, tiny_tokenizer()).fingerprint != before


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("rms_norm_eps", 1e-5, False),
        ("rope_parameters", {"rope_theta": 5e5, "rope_type": "default"}, False),
        ("use_cache", False, True),
        ("transformers_version", "4.0.0", True),
    ],
)
def test_fingerprint_and_configuration(key, value, same, saved, folder):
    edit_json(folder / "config.json", **{key: value})
    before, after = (load_model(str(path), device="cpu").fingerprint for path in (saved, folder))
    assert (before == after) == same


def test_fingerprint_knows_the_dtype(saved):
    one, other = (load_model(str(saved), device="cpu", dtype=d) for d in ("float32", "bfloat16"))
    assert one.fingerprint != other.fingerprint


# What is refused.


def test_pickled_weights_need_permission(folder, saved, ids):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "no safetensors weights" in refusal(folder)
    assert "pass --allow-pickle" in refusal(folder)
    loaded = load_model(str(folder), device="cpu", allow_pickle=True)
    assert torch.equal(loaded.logits(ids[0]), load_model(str(saved), device="cpu").logits(ids[0]))


def test_damaged_safetensors_are_no_reason_to_open_pickles(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    message = refusal(folder)
    assert "SafetensorError" in message
    assert "--allow-pickle" not in message


def test_random_weights_need_none(saved, folder, ids):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        load_model(str(folder))
    before = torch.get_rng_state()
    first, second = (load_model(str(folder), random_weights=True) for _ in range(2))
    assert first.fingerprint == second.fingerprint != load_model(str(saved)).fingerprint
    assert torch.equal(torch.get_rng_state(), before)
    assert first.logits(ids).isfinite().all()
    assert any("random" in warning for warning in first.warnings)


def test_missing_weights_are_named(folder):
    edit_weights(folder, **{WEIGHT: None, "model.norm.weight": None})
    assert f"for 2 of its parameters, {WEIGHT} first" in refusal(folder)


def test_weights_of_another_shape_are_named(folder):
    edit_weights(folder, **{WEIGHT: torch.zeros(64, 64)})
    assert f"for 1 of its parameters, {WEIGHT} first" in refusal(folder)


def test_an_untied_head_that_is_missing_is_not_made_up(folder):
    edit_weights(folder, **{"lm_head.weight": None})
    assert "lm_head.weight" in refusal(folder)


def test_folder_without_configuration(folder):
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


def test_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    assert refusal(folder).startswith(f"cannot load {folder}: ")


def test_damaged_configuration(folder):
    (folder / "config.json").write_text("{")
    assert f"{folder / 'config.json'} is no model's configuration: it is no JSON" in refusal(folder)


def test_the_word_in_a_path_is_not_the_reason(folder):
    """What a message quotes is no advice to open pickles."""
    folder = folder.rename(folder.parent / "my-safetensors")
    (folder / "tokenizer.json").write_text("{")
    message = refusal(folder)
    assert message.startswith(f"cannot load {folder}: ")
    assert "--allow-pickle" not in message


def test_folder_without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(folder)


@pytest.mark.parametrize("name", ["notes.txt", "model.gguf"])
def test_text_file(name, tmp_path):
    (tmp_path / name).write_text("Once upon a time")
    assert "is a file but not a GGUF file" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./nowhere", "~/no-such-model", "models/qwen/0.5b", "gone.gguf"]
)
def test_path_that_does_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(name).startswith(f"{name} does not exist")


def test_hub_id_without_network(monkeypatch):
    """Offline as `HF_HUB_OFFLINE=1` makes it: no connection is even tried."""
    tried = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: tried.append(args))
    message = refusal("fp4scope-tests/no-such-model")
    assert message.startswith("cannot load 'fp4scope-tests/no-such-model' from the hub")
    assert "check the name and the network" in message
    assert tried == []


@pytest.mark.parametrize("depth", [1, 4], ids=["short path", "long path"])
def test_a_models_own_code_is_not_run(depth, saved, tmp_path):
    """The advice must survive a path so long that the library's message is cut."""
    folder = shutil.copytree(saved, tmp_path.joinpath(*["a" * 90] * depth))
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit_json(folder / "config.json", auto_map=own, model_type="their-own")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "pass --trust-remote-code" in refusal(folder)
    assert not (tmp_path / "ran").exists()


SEQ2SEQ = {
    "t5": T5Config(vocab_size=96, d_model=32, d_ff=64, num_layers=1, num_heads=2, d_kv=16),
    "bart": BartConfig(
        vocab_size=96,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=64,
    ),
}


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoder(name, tiny_tokenizer, tmp_path):
    model = AutoModelForSeq2SeqLM.from_config(SEQ2SEQ[name])
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        adopt(model, tiny_tokenizer())
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert refusal(tmp_path) == (
        f"{tmp_path} is an encoder-decoder; fp4scope needs a causal language model"
    )


def test_integer_weights(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    module = model.model.layers[1].mlp.up_proj
    module.weight = torch.nn.Parameter(torch.zeros(160, 64, dtype=torch.int8), False)
    with pytest.raises(ModelError, match=r"1.mlp.up_proj already holds torch.int8 weights"):
        adopt(model, tiny_tokenizer())


# What is no language model.


def test_a_model_without_a_language_models_head(tiny_tokenizer, tmp_path):
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path
    )
    tiny_tokenizer().save_pretrained(tmp_path)
    message = refusal(tmp_path)
    assert "is of type 'vit', for which transformers" in message
    assert message.endswith("give a causal language model")


# What is in memory already.


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (5, "5 (int)"),
        (None, "a NoneType"),
        ({"weight": torch.zeros(2)}, "a dict"),
        (torch.nn.Linear(2, 2), "a torch.nn.modules.linear.Linear"),
    ],
)
def test_what_is_no_model(model, shown, tiny_tokenizer):
    with pytest.raises(ModelError) as error:
        diagnose(model, tokenizer=tiny_tokenizer())
    assert str(error.value).startswith(f"model is {shown}, not a transformers model; give")


def test_what_is_no_tokenizer(tiny_model):
    with pytest.raises(StudyError, match=r"tokenizer is 'x' \(str\), not a transformers tokenizer"):
        diagnose(tiny_model("llama"), tokenizer="x")


def test_a_processor_is_no_tokenizer(tiny_model, tiny_tokenizer):
    processor = SimpleNamespace(tokenizer=tiny_tokenizer())
    with pytest.raises(StudyError, match=r"give its \.tokenizer"):
        diagnose(tiny_model("llama"), tokenizer=processor)


def test_float64(tiny_model):
    with pytest.raises(ModelError, match=r"is in float64 .* model\.to\(torch\.float32\)"):
        adopt(tiny_model("llama").double(), None)


def test_mixed_dtypes(tiny_model):
    model = tiny_model("llama")
    model.model.layers[1].mlp.bfloat16()
    with pytest.raises(ModelError, match="in bfloat16 and float32; bring them to one dtype"):
        adopt(model, None)


def test_parameters_without_data(tiny_model):
    model = tiny_model("llama")
    model.model.layers[1].to("meta")
    with pytest.raises(ModelError, match=r"without data, on the device meta \(model\.layers\.1"):
        adopt(model, None)


def test_an_adapter_in_memory(tiny_model):
    model = tiny_model("llama")
    model._hf_peft_config_loaded = True
    with pytest.raises(ModelError, match="has an adapter beside its weights; merge it"):
        adopt(model, None)


def test_linears_that_quantize_on_their_own(tiny_model):
    """BitNet's, which ternarize at every forward, are known by their home."""
    home = {"__module__": "transformers.integrations.bitnet", "forward": None}
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.up_proj = type("AutoBitLinear", (torch.nn.Linear,), home)(64, 160, bias=False)
    with pytest.raises(
        ModelError, match=r"up_proj of .* AutoBitLinear, which quantizes on its own"
    ):
        adopt(model, None)


class Again(torch.nn.Linear):
    """A linear of its own kind that is one all the same."""

    def forward(self, x):
        return x @ self.weight.T


class Subclass(torch.Tensor):
    """As quantizers keep packed weights."""


class Ternary(torch.nn.Linear):
    """A linear that quantizes on its own."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.sign() * self.weight.abs().mean())


def test_linears_of_another_kind(tiny_model):
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    weight = mlp.up_proj.weight
    mlp.up_proj = Again(64, 160, bias=False)
    mlp.up_proj.weight = weight
    assert adopt(model, None).layout.blocks == 2
    mlp.down_proj = Ternary(160, 64, bias=False)
    with pytest.raises(ModelError, match=r"down_proj of .* Ternary, which quantizes on its own"):
        adopt(model, None)
    mlp.up_proj.weight = torch.nn.Parameter(weight.data.as_subclass(Subclass), False)
    with pytest.raises(ModelError, match=r"keeps .*up_proj as a Subclass, not as plain numbers"):
        adopt(model, None)


def test_tokens_that_the_model_does_not_know(tiny_model, tiny_tokenizer):
    loaded = adopt(tiny_model("llama", vocab_size=90), tiny_tokenizer(), name="small")
    loaded.require_known(torch.tensor([[0, 89]]), "text.txt")
    with pytest.raises(DataError, match=r"token 95 of text\.txt, but small knows tokens 0 to 89"):
        loaded.require_known(torch.tensor([[0, 95]]), "text.txt")


def test_a_text_of_unknown_tokens_is_refused_before_anything_runs(
    tiny_model, tiny_tokenizer, tmp_path
):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 92}" for i in range(400)))
    events = []
    with pytest.raises(DataError, match="knows tokens 0 to 89 only"):
        diagnose(
            tiny_model("llama", vocab_size=90),
            tokenizer=tiny_tokenizer(),
            text=text,
            seq_len=32,
            progress=events.append,
        )
    assert {event.stage for event in events} <= {"loading"}


# Where it runs.


@pytest.mark.parametrize(
    ("asked", "device", "stored", "chosen"),
    [
        ("auto", "cpu", torch.bfloat16, torch.float32),
        ("auto", "cuda", torch.bfloat16, torch.bfloat16),
        ("auto", "cuda", torch.float16, torch.float16),
        ("auto", "cuda", torch.float32, torch.bfloat16),
        ("auto", "cuda", torch.float64, torch.bfloat16),
        ("auto", "cuda", None, torch.bfloat16),
        ("float32", "cuda", torch.bfloat16, torch.float32),
        ("float16", "cpu", torch.float32, torch.float16),
    ],
)
def test_the_dtype_to_measure_in(asked, device, stored, chosen):
    assert choose_dtype(asked, device, stored) == chosen


@pytest.mark.parametrize(
    ("asked", "device", "stored", "said"),
    [
        ("auto", "cpu", torch.float32, None),
        ("auto", "cuda", torch.bfloat16, None),
        ("bfloat16", "cuda", torch.float32, None),
        ("auto", "cuda", torch.float32, "stored in float32"),
        ("float32", "cuda", torch.float32, "without tensor cores"),
    ],
)
def test_a_dtype_that_costs_is_said(asked, device, stored, said):
    note = dtype_note(asked, device, stored, choose_dtype(asked, device, stored))
    assert note is None if said is None else said in note


@pytest.mark.parametrize("name", ["~nosuchuser/model", "a" * 300, "a\0b"])
def test_names_that_no_system_takes(name):
    assert "cannot be a model's name or path" in refusal(name)


def test_a_local_model_has_no_revisions(saved, tmp_path):
    message = f"revision is 'main', but {saved} is local and has no revisions"
    assert refusal(saved, StudyError, revision="main").startswith(message)


@pytest.mark.parametrize("device", ["cpux", "meta", "", "hpu"])
def test_device_that_makes_no_sense(device, saved):
    assert f"device {device!r} cannot be used here" in refusal(saved, StudyError, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(saved):
    assert "device 'cuda' cannot be used here" in refusal(saved, StudyError, device="cuda")
    assert load_model(str(saved), device="auto").device == torch.device("cpu")
