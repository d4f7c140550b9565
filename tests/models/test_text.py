"""The language model inside a multimodal one: found, run on text alone, its towers left alone."""

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    Gemma3Config,
    IdeficsConfig,
    LlavaConfig,
    Mistral3Config,
    Qwen2_5_VLConfig,
)

from fp4scope import diagnose
from fp4scope.errors import ModelError
from fp4scope.models import adopt, listed_towers, load_model
from fp4scope.models.text import Tower, text_model, towers

TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
# More weights than the text model has.
VISION = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
MULTIMODAL = {
    "gemma3": lambda: Gemma3Config(
        text_config=TEXT | {"query_pre_attn_scalar": 16, "sliding_window": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=95,
    ),
    "llava": lambda: LlavaConfig(
        text_config=TEXT | {"model_type": "llama"},
        vision_config=VISION | {"model_type": "clip_vision_model"},
        image_token_index=95,
    ),
    "mistral3": lambda: Mistral3Config(
        text_config=TEXT | {"model_type": "mistral"},
        vision_config=VISION | {"model_type": "pixtral", "head_dim": 48},
        image_token_index=95,
    ),
    "qwen2_5_vl": lambda: Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": SECTIONS},
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        image_token_id=95,
        video_token_id=94,
        vision_start_token_id=93,
        vision_end_token_id=92,
    ),
}
TOWERS = {
    "gemma3": ["model.vision_tower"],
    "llava": ["model.vision_tower", "model.multi_modal_projector"],
    "mistral3": ["model.vision_tower", "model.multi_modal_projector"],
    "qwen2_5_vl": ["model.visual"],
}


@pytest.mark.parametrize("kind", MULTIMODAL)
def test_multimodal_models(kind, tiny_tokenizer, ids, tmp_path):
    model = AutoModelForImageTextToText.from_config(MULTIMODAL[kind]()).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    assert loaded.layout.blocks_path == "model.language_model.layers"
    assert (loaded.layout.blocks, loaded.max_seq_len) == (2, 64)
    assert all(name.startswith("model.language_model.") for name in loaded.layout.linears)
    assert [tower.name for tower in loaded.towers] == TOWERS[kind]
    for name, count in loaded.towers:
        inside = loaded.model.get_submodule(name).modules()
        assert count == sum(isinstance(module, torch.nn.Linear) for module in inside)
    with torch.no_grad():
        expected = model(ids[:1] % 92, use_cache=False).logits[0]
    assert torch.equal(loaded.logits(ids[0] % 92), expected)


def test_a_model_of_text_alone_has_no_towers(family, tiny_model):
    model = tiny_model(family)
    assert text_model(model) is model
    assert towers(model) == ()


def test_a_wrapper_of_a_whole_language_model(tiny_tokenizer, ids):
    """BLIP-2 cannot run without images; the causal language model that it holds can."""
    config = Blip2Config(
        text_config={
            "model_type": "opt",
            "vocab_size": 96,
            "hidden_size": 64,
            "ffn_dim": 160,
            "word_embed_proj_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        vision_config=VISION,
        qformer_config={
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "encoder_hidden_size": 96,
        },
        num_query_tokens=4,
        image_token_index=95,
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    loaded = adopt(model, tiny_tokenizer())
    assert loaded.model is model.language_model
    assert loaded.layout.blocks_path == "model.decoder.layers"
    assert [tower.name for tower in loaded.towers] == [
        "vision_model",
        "qformer",
        "language_projection",
    ]
    with torch.no_grad():
        expected = model.language_model(ids[:1], use_cache=False).logits[0]
    assert torch.equal(loaded.logits(ids[0]), expected)


def test_a_model_that_does_not_run_without_images(tiny_tokenizer):
    config = IdeficsConfig(
        **{key: value for key, value in TEXT.items() if key != "head_dim"},
        use_resampler=False,
        vision_config={
            "embed_dim": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        },
    )
    model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(ModelError, match="cannot run on 8 tokens: ValueError: ") as error:
        adopt(model, tiny_tokenizer())
    assert "pixel_values" in str(error.value)
    assert "model.vision_model" in str(error.value)
    assert "\n" not in str(error.value)


def test_towers_are_told_once_and_stand_in_every_result(tiny_tokenizer, tmp_path):
    model = AutoModelForImageTextToText.from_config(MULTIMODAL["llava"]())
    (tmp_path / "text.txt").write_text(" ".join(f"w{i % 80}" for i in range(200)))
    notes = []
    found = diagnose(
        model,
        tokenizer=tiny_tokenizer(),
        text=str(tmp_path / "text.txt"),
        seq_len=16,
        windows=2,
        formats=["mxfp4"],
        sweep=["projections"],
        direction=["keep"],
        output_dir=tmp_path / "out",
        progress=lambda event: notes.append(event.note or ""),
    )
    assert [note for note in notes if "vision_tower" in note] == [
        "this model is measured on text; beside its language model it has "
        "model.vision_tower (18 linears), model.multi_modal_projector (2 linears), left alone"
    ]
    assert found.results.model["towers"] == [
        {"name": "model.vision_tower", "linears": 18},
        {"name": "model.multi_modal_projector", "linears": 2},
    ]
    for name in ("report.md", "report.html"):
        report = (tmp_path / "out" / name).read_text(encoding="utf-8").replace("\\", "")
        assert "left alone: model.vision_tower (18 linears)" in report


def test_one_line():
    assert listed_towers([Tower("a.b", 3), Tower("c", 1)]) == "a.b (3 linears), c (1 linears)"
