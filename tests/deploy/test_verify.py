"""What is served is told from what is not; what is wrong is named."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from fp4scope.cli.app import app
from fp4scope.deploy.checkpoint import write_checkpoint
from fp4scope.deploy.held import wrong_weights
from fp4scope.deploy.losses import losses_of
from fp4scope.deploy.served import Served
from fp4scope.deploy.verify import Candidate, candidates_of, judge, losses_under
from fp4scope.errors import DataError, ModelError, StudyError
from fp4scope.models import load_model, open_source
from fp4scope.treatments import Setting

from .served import server

WINDOWS = torch.randint(4, 96, (8, 40), generator=torch.Generator().manual_seed(3))


def nvfp4(name):
    return Setting.from_json("nvfp4")


@pytest.fixture(scope="module")
def checkpoint(exported, tmp_path_factory):
    """Source, export and folder of a tiny model in NVFP4."""
    folder = tmp_path_factory.mktemp("served") / "packed"
    source, export = exported("llama", nvfp4)
    write_checkpoint(export, source, folder)
    return source, export, folder


@pytest.fixture(scope="module")
def losses(checkpoint):
    """Losses of each candidate by its name, and of full precision."""
    source, export, folder = checkpoint
    loaded = load_model(str(folder), device="cpu")
    scales = open_source(str(folder)).tensor_scales()
    found = {
        each.name: losses_under(loaded, export, each, WINDOWS)
        for each in candidates_of(export, scales)
    }
    return found | {"full": losses_of(load_model(source.where, device="cpu"), WINDOWS)}


def served_as(losses, name, path, seed=0, **changes):
    noise = 0.003 * np.random.default_rng(seed).standard_normal(losses[name].shape)
    content = {"version": 1, "engine": "a test", "ids": WINDOWS.tolist()}
    values = np.minimum(-losses[name] + noise, 0).tolist()
    path.write_text(json.dumps(content | {"logprobs": values} | changes))
    return path


def verify(checkpoint, *args):
    source, _, folder = checkpoint
    found = CliRunner().invoke(
        app, ["verify", str(folder), "--model", source.where, "--device", "cpu", *map(str, args)]
    )
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("what was predicted", "served as predicted"),
        ("weights only, inputs in full precision", "kernel is off: the engine serves weights only"),
        ("inputs in nvfp4:4over6", "format is off: the engine serves inputs in nvfp4:4over6"),
        ("tensor scales taken for their inverse", "kernel is off: the engine serves tensor scales"),
    ],
)
def test_the_candidate_that_is_served_is_named(checkpoint, losses, tmp_path, name, said):
    path = served_as(losses, name, tmp_path / "served.json")
    found = verify(checkpoint, "--served", path, "-o", tmp_path / "verdict.json")
    assert said in found.stdout
    assert "all 14 packed weights are what the recipe makes" in found.stdout
    assert "prove what runs at prefill" in found.stdout
    assert "Correlation" in found.stdout
    assert "Off by, mnat" in found.stdout
    expected = name == "what was predicted"
    # Calibration cannot be told on 8 windows of a model that was never trained.
    assert found.exit_code == (3 if expected else 1)
    data = json.loads((tmp_path / "verdict.json").read_text())
    assert data["outcome"] == ("undecided" if expected else "missed")
    assert data["verdict"].startswith("served as predicted") == expected
    best = max(data["candidates"], key=lambda row: row["correlation"])
    assert best["candidate"] == name
    assert best["slope_low"] < 1.02
    assert best["slope_high"] > 0.98


def test_what_goes_with_nothing(checkpoint, losses, tmp_path):
    values = np.log(np.random.default_rng(0).uniform(0, 1, losses["full"].shape)).tolist()
    path = served_as(losses, "full", tmp_path / "served.json", logprobs=values)
    found = verify(checkpoint, "--served", path)
    assert found.exit_code == 1
    assert "off: what is served goes with no candidate" in found.stdout


def test_a_server_of_the_original_is_named(checkpoint, losses, tmp_path):
    path = served_as(losses, "full", tmp_path / "served.json")
    found = verify(checkpoint, "--served", path)
    assert found.exit_code == 1
    assert "off: the engine serves the original in full precision" in found.stdout


def test_little_damage_behind_much_rounding_is_not_called_off():
    """Of few windows tokens tell nothing then; of many they do."""
    rng = np.random.default_rng(0)
    names = [Candidate("predicted", "none"), Candidate("another", "kernel")]
    said = {8: Counter(), 64: Counter()}
    for windows, found in said.items():
        for _ in range(100):
            full = rng.gamma(2.0, size=(windows, 60))
            first, second = full + 0.005 * rng.standard_normal((2, *full.shape))
            engine = 0.05 * rng.standard_normal(full.shape)
            verdict = judge(first + engine, full, names, [first, second])
            told = "served as predicted", "what is served cannot be told", "off", "kernel is off"
            (start,) = (each for each in told if verdict.sentence().startswith(each))
            found[start] += 1
            assert verdict.is_open == (start == told[1])
    assert said[8]["what is served cannot be told"] > 30
    assert said[8]["off"] + said[8]["kernel is off"] < 10
    assert said[64]["served as predicted"] > 90


def test_a_reference_that_the_engine_served(checkpoint, losses, tmp_path):
    path = served_as(losses, "what was predicted", tmp_path / "served.json")
    reference = served_as(losses, "full", tmp_path / "full.json", seed=1)
    found = verify(checkpoint, "--served", path, "--reference", reference)
    assert "served as predicted" in found.stdout
    others = (WINDOWS + 1).clamp(max=95).tolist()
    reference = served_as(losses, "full", tmp_path / "full.json", ids=others)
    with pytest.raises(DataError, match="served on other windows"):
        verify(checkpoint, "--served", path, "--reference", reference)


def test_all_is_told_of_weights_alone(exported, tmp_path):
    """The export is proven, no scale of inputs is stored, and nothing served is by chance."""
    source, export = exported("llama", lambda name: Setting.from_json("mxfp4:even/w4a16"))
    write_checkpoint(export, source, tmp_path / "packed")
    loaded = load_model(str(tmp_path / "packed"), device="cpu")
    (predicted, *_) = candidates_of(export, {})
    losses = {"own": losses_under(loaded, export, predicted, WINDOWS)}
    path = served_as(losses, "own", tmp_path / "served.json")
    found = verify((source, export, tmp_path / "packed"), "--served", path)
    assert found.exit_code == 0
    assert "no step behind it (export, serving) adds more than" in found.stdout


def test_a_weight_that_is_not_the_recipes(checkpoint, tmp_path):
    source, export, folder = checkpoint
    other = tmp_path / "packed"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.weight_global_scale"] = 1 / tensors[f"{name}.weight_global_scale"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert list(wrong_weights(export, source, open_source(str(other)))) == [f"{name}.weight"]
    assert wrong_weights(export, source, open_source(str(folder))) == {}


def test_unequal_scales_of_what_is_fused_are_a_candidate(checkpoint):
    _, export, folder = checkpoint
    scales = open_source(str(folder)).tensor_scales()
    assert "one tensor scale for fused" not in str(candidates_of(export, scales))
    scales["model.layers.0.self_attn.k_proj.weight"] *= 2
    (found,) = (c for c in candidates_of(export, scales) if c.cause == "checkpoint")
    assert found.factors == {"model.layers.0.self_attn.k_proj": 0.5}


def test_mixtures_have_candidates_for_gpus_without_four_bits(exported):
    _, export = exported("llama")
    names = [c.name for c in candidates_of(export, {})]
    assert "weights only where they have 4 bits" in names
    assert "inputs in mxfp4:floor" in names
    assert len(names) == len(set(names))


def test_experts_are_run_as_they_are_served(exported, tmp_path):
    source, export = exported("qwen3-moe", nvfp4)
    write_checkpoint(export, source, tmp_path / "packed")
    loaded = load_model(str(tmp_path / "packed"), device="cpu")
    predicted, weights, *_ = candidates_of(export, {})
    found = [losses_under(loaded, export, each, WINDOWS[:2]) for each in (predicted, weights)]
    assert np.isfinite(found).all()
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "version is 2; this reads 1"),
        ({"logprob": []}, "did you mean logprobs"),
        ({"logprobs": [[0.5] * 39] * 8}, r"logprobs holds 0\.5"),
        ({"logprobs": [[float("nan")] * 39] * 8}, "logprobs holds nan"),
        ({"logprobs": [[-1.0] * 40] * 8}, r"the shape \(8, 40\), and ids \(8, 40\)"),
        ({"logprobs": [[-1.0], [-1.0, -2.0]]}, "rows of numbers, all of one length"),
        ({"ids": [["a"]]}, "ids is"),
        ({"ids": [[10**30, 1]]}, "too large"),
        ({"ids": None}, "ids is None"),
    ],
)
def test_files_that_are_no_served_files(losses, tmp_path, changes, said):
    path = served_as(losses, "full", tmp_path / "served.json", **changes)
    with pytest.raises(DataError, match=said):
        Served.read(path)


def test_what_cannot_be_verified(checkpoint, losses, tmp_path):
    source, _, folder = checkpoint
    path = served_as(losses, "full", tmp_path / "served.json")
    with pytest.raises(StudyError, match="give what was served"):
        CliRunner().invoke(app, ["verify", str(folder)], catch_exceptions=False)
    with pytest.raises(StudyError, match="is not there; give the folder of a checkpoint"):
        verify((source, None, tmp_path / "absent"), "--served", path)
    with pytest.raises(StudyError, match="--served FILE or --server URL"):
        verify(checkpoint, "--reference", path)
    with pytest.raises(StudyError, match="--save is for a server that is asked"):
        verify(checkpoint, "--served", path, "--save", tmp_path / "saved.json")
    with pytest.raises(ModelError, match="cannot load"):
        verify((source, None, tmp_path), "--ids", tmp_path / "ids.json", "--text", path)
    with pytest.raises(StudyError, match=r"has no recipe\.yaml"):
        verify((source, None, tmp_path), "--served", path)
    with pytest.raises(StudyError, match="declares no quantization"):
        verify((source, None, source.where), "--served", path)
    few = {"ids": WINDOWS[:3].tolist(), "logprobs": (-losses["full"][:3]).tolist()}
    with pytest.raises(DataError, match="3 windows were served"):
        verify(checkpoint, "--served", served_as(losses, "full", tmp_path / "few.json", **few))
    (tmp_path / "text").write_text("{")
    with pytest.raises(DataError, match="one with vLLM"):
        verify(checkpoint, "--served", tmp_path / "text")
    assert folder.exists()


def test_a_server_is_asked(checkpoint, losses, tmp_path):
    text = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text(" ".join(f"w{i}" for i in rng.integers(0, 92, 400)))
    size = ["--text", text, "--windows", 8, "--seq-len", 40]
    written = verify(checkpoint, "--ids", tmp_path / "ids.json", *size)
    assert written.exit_code == 0
    ids = torch.tensor(json.loads((tmp_path / "ids.json").read_text()))
    assert ids.shape == (8, 40)
    _, export, folder = checkpoint
    loaded = load_model(str(folder), device="cpu")
    (predicted, *_) = candidates_of(export, {})
    values = -losses_under(loaded, export, predicted, ids)
    by_prompt = {tuple(row): v for row, v in zip(ids.tolist(), values.tolist(), strict=True)}

    def answer(prompt, _):
        own = [None, *by_prompt[tuple(prompt)], -1.0]  # the last is a token that was written
        return {"choices": [{"logprobs": {"token_logprobs": own}}]}

    with server(answer) as (url, came):
        save = tmp_path / "served.json"
        found = verify(checkpoint, "--server", f"{url}/v1", "--save", save, *size)
    assert "served as predicted" in found.stdout
    assert "served as predicted" in found.stdout
    assert came[0]["model"] == "a-model"
    assert came[0]["echo"] is True
    assert (Served.read(save).ids == ids.numpy()).all()


def test_what_is_said_to_be_the_original_is_not_what_was_predicted():
    """What is controlled for may be most of the damage: the answer and the exit code are one."""
    rng = np.random.default_rng(0)
    full = rng.gamma(2.0, size=(8, 60))
    own = 0.05 * rng.standard_normal(full.shape)
    predicted = full + own + 0.5 * (full - full.mean())
    verdict = judge(full + own, full, [Candidate("predicted", "none")], [predicted])
    assert verdict.explained
    assert verdict.is_full
    assert "serves the original" in verdict.sentence()
    assert not verdict.as_predicted
