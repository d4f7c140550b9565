"""Faults that were planted are found where they are: in the weights, the scales, the engine."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from fp4scope.cli.app import app
from fp4scope.conductor.triage import open_checkpoint
from fp4scope.deploy.checkpoint import RECIPE, write_checkpoint
from fp4scope.deploy.held import input_amaxes, other_settings
from fp4scope.deploy.triage import Chain, triage
from fp4scope.deploy.verify import candidates_of, losses_under
from fp4scope.errors import StudyError
from fp4scope.models import load_model, open_source
from fp4scope.operands import observe_inputs
from fp4scope.treatments import Setting

from .chosen import setting_for
from .drawn import TOKENS, drawn

WINDOWS = 32
LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def made(folder_of, exported, tmp_path_factory):
    """Original, export, checkpoint, and windows; scales of inputs are from other windows."""
    original = load_model(str(folder_of("llama", intermediate_size=128)), device="cpu")
    calibration = drawn(original, 16, seed=1)

    def forwards():
        for row in calibration:
            original.logits(row)
            yield

    seen = observe_inputs(original.model, original.layout.inputs, forwards())
    amax = {name: found.max for name, found in seen.items()}
    source, export = exported("llama", lambda name: Setting.from_json("nvfp4"), input_amax=amax)
    folder = tmp_path_factory.mktemp("triage") / "packed"
    write_checkpoint(export, source, folder)
    return source, export, folder, drawn(original, WINDOWS, seed=2)


def changed(made, tmp_path, **factors):
    """A copy of the checkpoint with stored tensors of a layer times a factor each."""
    other = tmp_path / "changed"
    shutil.copytree(made[2], other)
    tensors = load_file(other / "model.safetensors")
    for name, factor in factors.items():
        tensors[f"{LAYER}.{name}"] = (tensors[f"{LAYER}.{name}"] * factor).contiguous()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    return other


def served_by(made, folder, tmp_path, candidate=0, spoil=lambda loaded: None, temperature=None):
    """What an engine gives for a checkpoint, but for a little noise of its own.

    With a temperature the likeliest tokens too.
    """
    _, export, _, ids = made
    loaded, packed = load_model(str(folder), device="cpu"), open_source(str(folder))
    spoil(loaded)
    found = candidates_of(export, packed.tensor_scales())[candidate]
    own = input_amaxes(export, packed)
    tops, losses = [], []

    def look(window, logits):
        known = (logits / (temperature or 1.0)).log_softmax(-1)
        tops.append(known.topk(20))
        losses.append(-known.gather(-1, ids[window, 1:, None])[:, 0])

    losses_under(loaded, export, found, ids, amaxes=own, replica=1, look=look)
    losses = torch.stack(losses).double().numpy()
    noise = 0.003 * np.random.default_rng(0).standard_normal(losses.shape)
    values = np.minimum(noise - losses, 0).tolist()
    path = tmp_path / "served.json"
    content = {"version": 1, "ids": ids.tolist(), "logprobs": values}
    if temperature is not None:
        content["top_ids"] = [top.indices.tolist() for top in tops]
        content["top_logprobs"] = [top.values.tolist() for top in tops]
    path.write_text(json.dumps(content))
    return path


def verify(made, folder, *args):
    command = ["verify", folder, "--original", made[0].where, "--device", "cpu", *args]
    found = CliRunner().invoke(app, list(map(str, command)))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def judged(made, folder, served, tmp_path):
    """What is printed, the verdict's data, and the state of each step."""
    found = verify(made, folder, "--served", served, "-o", tmp_path / "verdict.json")
    data = json.loads((tmp_path / "verdict.json").read_text())
    codes = {"met": 0, "missed": 1, "undecided": 3}
    assert found.exit_code == codes[data["outcome"]]
    assert data["as_predicted"] == (found.exit_code == 0)
    states = {row["step"]: row["state"] for row in data["triage"]["steps"]}
    return found.stdout, data, states


def noisy(loaded):
    weight = loaded.model.get_submodule(LAYER).weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.data += 0.5 * weight.data.std() * noise.to(weight.dtype)


def test_nothing_is_blamed_where_nothing_is_off(made, tmp_path):
    said, data, states = judged(made, made[2], served_by(made, made[2], tmp_path), tmp_path)
    assert data["outcome"] == "undecided"
    assert data["checkpoint_proven"]
    assert data["triage"]["faults"] == []
    assert data["triage"]["quantization_nats_low"] > 0.05
    assert data["triage"]["rerun_nats_low"] < 0 < data["triage"]["rerun_nats_high"]
    # Other input scales are other roundings, whose noise 32 windows do not tell from a fault.
    assert states == {"export": "within", "calibration": "open", "serving": "within"}
    assert "no step behind the format is seen to add damage; the format costs +" in said
    assert "calibration cannot be told with 32 windows" in said
    assert "windows would tell" in said
    assert "served as predicted" in said


def test_a_wrong_weight_is_the_exports(made, tmp_path):
    folder = changed(made, tmp_path, weight_global_scale=0.25)
    said, data, states = judged(made, folder, served_by(made, folder, tmp_path), tmp_path)
    assert data["triage"]["faults"] == ["export"]
    assert states["serving"] == "within"
    assert data["wrong_weights"] == [f"{LAYER}.weight"]
    assert f"not what the recipe makes of the original, {LAYER}.weight first" in said
    assert "export is off: the checkpoint's own weights cost +" in said
    assert "served as predicted" in said


def test_a_wrong_input_scale_is_the_calibrations(made, tmp_path):
    folder = changed(made, tmp_path, input_global_scale=100.0)  # it divides: large inputs are cut
    said, data, states = judged(made, folder, served_by(made, folder, tmp_path), tmp_path)
    assert data["triage"]["faults"] == ["calibration"]
    assert (states["export"], states["serving"]) == ("within", "within")
    assert list(data["far_input_scales"]) == [LAYER]
    assert f"1 of 14 input scales are not the recipe's, {LAYER} first (0.01 times it)" in said
    assert "calibration is off: its stored input scales cost +" in said


def test_a_kernel_that_computes_another_layer_is_the_engines(made, tmp_path):
    served = served_by(made, made[2], tmp_path, spoil=noisy)
    said, data, states = judged(made, made[2], served, tmp_path)
    assert data["triage"]["faults"] == ["serving"]
    assert states["export"] == "within"
    assert "serving is off: what the engine gives costs +" in said
    assert "in a way that is none of these" in said


def test_another_mode_of_the_engine_is_named(made, tmp_path):
    served = served_by(made, made[2], tmp_path, candidate=1)
    said, data, states = judged(made, made[2], served, tmp_path)
    assert data["triage"]["faults"] == []
    assert states["serving"] == "beyond"
    assert "serving differs: what the engine gives costs +" in said
    assert "millinats less than the checkpoint run here" in said
    assert "kernel is off: the engine serves weights only" in said
    assert not data["as_predicted"]


@pytest.mark.parametrize(
    ("temperature", "candidate", "said"),
    [
        (1.0, 0, "served as predicted"),
        (1.0, 1, "kernel is off: the engine serves weights only"),
        (1.2, 0, "off: next to what was predicted, what is served is flatter, as at a temperature "
         "of 1.2"),
        (0.9, 1, "off: next to weights only, inputs in full precision, what is served is sharper, "
         "as at a temperature of 0.9"),
    ],
)  # fmt: skip
def test_likeliest_tokens_tell_a_temperature(made, tmp_path, temperature, candidate, said):
    served = served_by(made, made[2], tmp_path, candidate, temperature=temperature)
    found, data, _ = judged(made, made[2], served, tmp_path)
    assert said in " ".join(found.split())
    assert (data["outcome"] == "missed") == ("off" in said)


def test_a_checkpoint_of_another_program_is_told_from_its_configuration(made, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(made[2], foreign)
    (foreign / RECIPE).unlink()
    served = served_by(made, made[2], tmp_path)
    _, data, _ = judged(made, foreign, served, tmp_path)
    own = judged(made, made[2], served, tmp_path)[1]
    assert data == own
    with pytest.raises(StudyError, match="give it: --original MODEL"):
        CliRunner().invoke(
            app, ["verify", str(foreign), "--served", str(served)], catch_exceptions=False
        )
    folder = changed((*made[:2], foreign, made[3]), tmp_path, weight_global_scale=0.25)
    said, data, _ = judged(made, folder, served_by(made, folder, tmp_path), tmp_path)
    assert data["triage"]["faults"] == ["export"]
    assert f"the format's usual scales, {LAYER}.weight first (its error has +" in said


def text_of(made, tmp_path):
    text = tmp_path / "text.txt"
    words = [" ".join(f"w{token - 4}" for token in row if token > 3) for row in made[3].tolist()]
    text.write_text(" ".join(words))
    return text


def test_equal_weights_settle_the_export_with_any_number_of_windows(made, tmp_path):
    size = ["--text", text_of(made, tmp_path), "--windows", 5, "--seq-len", TOKENS]
    found = verify(made, made[2], *size, "-o", tmp_path / "verdict.json")
    data = json.loads((tmp_path / "verdict.json").read_text())
    assert (data["outcome"], found.exit_code) == ("undecided", 3)
    rows = {row["step"]: row for row in data["triage"]["steps"]}
    assert (rows["export"]["state"], rows["export"]["proven"]) == ("within", True)
    assert (rows["calibration"]["state"], rows["calibration"]["proven"]) == ("open", False)
    assert "export is settled without windows: weights, other tensors" in found.stdout
    assert "cannot tell with 5 windows" in found.stdout
    assert "export cannot be told" not in found.stdout


def told_of(made, folder):
    return open_checkpoint(folder, made[0].where)


def test_what_proves_a_checkpoint(made, tmp_path):
    assert told_of(made, made[2]).is_proven
    other = changed(made, tmp_path, input_global_scale=2.0)
    assert not told_of(made, other).is_proven
    shutil.rmtree(other)
    shutil.copytree(made[2], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    found = told_of(made, other)
    assert list(found.settings) == ["rms_norm_eps"]
    assert not found.is_proven
    said = verify(made, other, "--text", text_of(made, tmp_path), "--windows", 4, "--seq-len", 40)
    wrong = "its configuration is not the original's: rms_norm_eps is 0.5, and 1e-06 there"
    assert wrong in " ".join(said.stdout.split())
    assert "settled" not in said.stdout
    shutil.copy(made[2] / "config.json", other / "config.json")
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.1.input_layernorm.weight"
    for changes in ({name: tensors[name] * 1.5}, {name: None}):
        kept = {k: v for k, v in (tensors | changes).items() if v is not None}
        save_file(kept, other / "model.safetensors", metadata={"format": "pt"})
        found = told_of(made, other)
        assert found.plain == [name]
        assert not found.is_proven
        assert not found.is_whole


def test_settings_of_a_file_are_not_the_models_wherever_they_stand(made):
    def source(**text):
        return replace(made[0], settings={"dtype": "float16", "text_config": text})

    one = source(dtype=None, transformers_version="5.0", head_dim=8, rope={"theta": 1e4})
    other = source(dtype="bfloat16", use_cache=False, head_dim=8, rope={"theta": 1e4})
    assert other_settings(one, other) == {}
    other = source(head_dim=8, rope={"theta": 1e6})
    assert other_settings(one, other) == {"text_config.rope.theta": (1e4, 1e6)}


def test_an_input_scale_that_is_absent(made, tmp_path):
    other = changed(made, tmp_path)
    tensors = load_file(other / "model.safetensors")
    del tensors[f"{LAYER}.input_global_scale"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    found = told_of(made, other)
    assert found.scales == {LAYER: 0.0}
    assert not found.is_proven
    said = verify(made, other, "--text", text_of(made, tmp_path), "--windows", 4, "--seq-len", 40)
    assert said.exit_code == 1
    line = f"1 of 14 input scales are not the recipe's, {LAYER} first (absent)"
    assert line in " ".join(said.stdout.split())


def test_windows_may_contradict_a_proof():
    rng = np.random.default_rng(0)
    full = rng.gamma(2.0, size=(32, 50))
    predicted = full + 0.2
    noisy = predicted + 0.5 * rng.standard_normal(full.shape)
    chain = Chain(full, predicted, noisy)
    assert triage(chain).steps["export"].state == "open"
    found = triage(chain, proven=True)
    assert found.still_open == []
    assert found.steps["export"].proven
    assert any("settled without windows" in line for line in found.sentences())
    off = triage(Chain(full, predicted, noisy + 0.5), proven=True)
    assert off.faults == ["export"]
    assert not off.steps["export"].proven


def test_a_checkpoint_alone(made, tmp_path):
    text = text_of(made, tmp_path)
    folder = changed(made, tmp_path, weight_global_scale=0.1)
    found = verify(made, folder, "--text", text, "--windows", 24, "--seq-len", TOKENS)
    assert found.exit_code == 1
    assert "export is off" in found.stdout
    assert "serving" not in found.stdout
    assert "prefill" not in found.stdout


def test_an_engine_that_rounds_otherwise_is_compared_with_itself():
    rng = np.random.default_rng(0)
    full = rng.gamma(2.0, size=(32, 50))
    damage, rounding = 0.2 + 0.01 * rng.standard_normal((2, *full.shape))
    rounding -= 0.15  # an engine whose own losses are otherwise
    predicted = full + damage
    chain = Chain(full, predicted, predicted, served=predicted + rounding)
    assert triage(chain).faults == ["serving"]
    found = triage(replace(chain, reference=full + rounding))
    assert found.faults == []
    assert found.steps["serving"].state == "within"
    assert found.damage.mean == pytest.approx(0.2, abs=0.01)
    assert found.sentences()[0].startswith("quantization is all: the format costs +")


def test_false_alarms_are_rare():
    """Four steps without any fault, whose roundings differ: 5% of trials at most blame one."""
    rng = np.random.default_rng(0)
    blamed = 0
    for _ in range(400):
        full = rng.gamma(2.0, size=(12, 40))
        runs = full + 0.01 + 0.3 * rng.standard_normal((4, *full.shape))
        found = triage(Chain(full, *runs[:2], runs[2], served=runs[3]))
        blamed += bool(found.faults)
    assert blamed <= 0.05 * 400


def test_too_few_windows_say_so():
    full = np.ones((5, 10))
    found = triage(Chain(full, full + 0.1, full + 0.1))
    assert found.sentences() == ["cannot tell with 5 windows: intervals take 8"]
    found = triage(Chain(full[:1], full[:1] + 0.1, full[:1] + 0.1))
    assert found.sentences() == ["cannot tell with 1 window: intervals take 8"]


@pytest.mark.parametrize(
    ("family", "dialect", "mixed"),
    [
        ("llama", "modelopt", False),
        ("llama", "compressed-tensors", True),
        ("qwen3-moe", "compressed-tensors", False),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_other_dialects_schemes_and_experts(exported, tmp_path, family, dialect, mixed, own):
    """What was not measured of a checkpoint is read from it: nothing is off in the export."""
    choose = (setting_for,) if mixed else (lambda name: Setting.from_json("nvfp4"),)
    source, export = exported(family, *choose)
    write_checkpoint(export, source, tmp_path / "packed", dialect)
    if not own:
        (tmp_path / "packed" / RECIPE).unlink()
    ids = torch.randint(4, 96, (9, 30), generator=torch.Generator().manual_seed(0)).tolist()
    values = np.full((9, 29), -4.0).tolist()
    served = tmp_path / "served.json"
    served.write_text(json.dumps({"version": 1, "ids": ids, "logprobs": values}))
    said, data, states = judged((source,), tmp_path / "packed", served, tmp_path)
    assert data["wrong_weights"] == []
    if mixed and not own:  # no configuration tells how the scales of weights were chosen
        assert "7 of 14 packed weights are rounded otherwise" in said
    else:
        assert states["export"] == "within"
        assert "are what the recipe makes of the original" in said
