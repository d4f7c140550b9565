"""A small study of whole models, and the same model run by hand."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fp4scope


def options(windows, length):
    """Of a study with NVFP4 everywhere, its weights alone, and a recipe."""
    return {
        "seq_len": length, "windows": windows, "calibration_windows": 8,
        "calibration_seq_len": length, "all_quantized": "nvfp4/w4a16", "formats": "nvfp4",
        "sweep": "projections:keep", "dtype": "float32",
    }  # fmt: skip


def diagnosed(model_folder, text_file, folder, windows, length):
    """The study, in a folder."""
    downs = {"base": "nvfp4", "edits": [{"sites": ["*.down_proj"], "setting": "fp8"}]}
    return fp4scope.diagnose(
        model_folder,
        text=str(text_file),
        recipes={"downs": downs},
        output_dir=folder,
        **options(windows, length),
    )


def log_probabilities(model_folder, text_file, windows, length):
    """Ids, and log-probabilities in full precision and with weights alone in NVFP4."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(model_folder)(text_file.read_text())["input_ids"]
    ids = torch.tensor(ids[: windows * length]).reshape(windows, length)
    with torch.no_grad():
        plain = model(ids).logits[:, :-1].double().log_softmax(-1)
        for name, linear in model.model.named_modules():
            if isinstance(linear, torch.nn.Linear):
                assert "proj" in name
                linear.weight.copy_(fp4scope.fake_quantize(linear.weight, "nvfp4"))
        other = model(ids).logits[:, :-1].double().log_softmax(-1)
    return ids, plain, other
