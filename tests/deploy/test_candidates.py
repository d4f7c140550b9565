"""Of a model that is served without its weights: which recipes go with what it gives."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fp4scope.cli.app import app
from fp4scope.deploy.losses import losses_of
from fp4scope.errors import DataError, FormatError, StudyError
from fp4scope.groups import scale_partners
from fp4scope.models import load_model
from fp4scope.operands import Injector, observe_inputs
from fp4scope.recipes import Recipe
from fp4scope.stats.inference.consistency import coarse_kl, consistency
from fp4scope.treatments import Setting

from .drawn import drawn
from .served import server

WINDOWS, TOP = 16, 8
ASKED = ("fp8", "nvfp4", "nvfp4/w4a16", "mxfp4:even", "mxfp4:even/w4a16")


@pytest.fixture(scope="module")
def model(folder_of):
    """A tiny model's folder, loaded, its own text, and what enters its linears."""
    folder = folder_of("llama", intermediate_size=128)
    loaded = load_model(str(folder), device="cpu")
    ids = drawn(loaded, WINDOWS, seed=3)

    def forwards():
        for row in ids:
            loaded.logits(row)
            yield

    seen = observe_inputs(loaded.model, loaded.layout.inputs, forwards())
    return folder, loaded, ids, {name: found.max for name, found in seen.items()}


def run(model, name, look=None):
    """Losses under a recipe."""
    _, loaded, ids, amax = model
    settings = {}
    if name != "full":
        recipe = Recipe(Setting.from_json(name))
        settings = dict(recipe.in_block(loaded.layout.sites.everywhere))
    fused = scale_partners(loaded.layout.sites)
    with Injector(loaded.model, amax, fused=fused).applied(settings):
        return losses_of(loaded, ids, replica=2, look=look)


def served_as(model, name, path, noise=0.002, temperature=1.0, late=0):
    """What an engine gives that rounds a little otherwise, with the likeliest tokens."""
    tops, own = [], []

    def look(window, logits):
        known = (logits / temperature).log_softmax(-1).roll(late, 0)
        tops.append(known.topk(TOP))
        own.append(known.gather(-1, model[2][window, 1:, None])[:, 0])

    run(model, name, look)
    losses = -torch.stack(own).double().numpy()
    noise = noise * np.random.default_rng(0).standard_normal(losses.shape)
    content = {
        "version": 1,
        "ids": model[2].tolist(),
        "logprobs": np.minimum(noise - losses, 0).tolist(),
        "top_ids": [top.indices.tolist() for top in tops],
        "top_logprobs": [top.values.tolist() for top in tops],
    }
    path.write_text(json.dumps(content))
    return path


def verify(model, *args):
    command = ["verify", "--original", model[0], "--device", "cpu", *args]
    found = CliRunner().invoke(app, list(map(str, command)))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.mark.parametrize("name", ["full", *ASKED])
def test_what_is_served_is_among_what_goes_with_it(model, tmp_path, name):
    served = served_as(model, name, tmp_path / "served.json")
    found = verify(model, "--served", served, "-o", tmp_path / "found.json")
    assert found.exit_code == 0
    data = json.loads((tmp_path / "found.json").read_text())
    rows = {row["candidate"]: row for row in data["candidates"]}
    own = "full precision" if name == "full" else name
    assert len(rows) == 6
    assert rows[own]["consistent"]
    assert rows[own]["log10_likelihood_ratio"] == 0
    assert sum(row["consistent"] for row in rows.values()) == 1
    assert min(rows.values(), key=lambda row: row["kl_at_least_nats"]) == rows[own]
    assert f"consistent with {own}" in found.stdout


def test_what_is_none_of_them(model, tmp_path):
    served = served_as(model, "mxfp4:floor", tmp_path / "served.json")
    found = verify(model, "--served", served, "--candidates", "fp8, nvfp4/w4a16")
    assert found.exit_code == 1
    assert "none of 3 candidates goes with what is served" in found.stdout


def test_what_is_not_told_apart_is_undecided(model, tmp_path):
    """A scale rule that differs in few blocks, and an engine whose own rounding is not known."""
    served = served_as(model, "nvfp4/w4a16", tmp_path / "served.json", noise=0.3)
    content = json.loads(served.read_text())
    served.write_text(json.dumps({key: content[key] for key in ("version", "ids", "logprobs")}))
    names = "nvfp4/w4a16,nvfp4:mse/w4a16"
    found = verify(model, "--served", served, "--candidates", names, "-o", tmp_path / "found.json")
    assert "not told apart on 16 windows" in found.stdout
    assert found.exit_code == 3
    assert json.loads((tmp_path / "found.json").read_text())["outcome"] == "undecided"


@pytest.mark.parametrize("fault", [{"temperature": 0.7}, {"temperature": 1.3}, {"late": 1}])
def test_what_an_engine_does_by_mistake_is_no_candidate(model, tmp_path, fault):
    """Whichever candidate it is nearest to, and though its own rounding is not known."""
    served = served_as(model, "nvfp4", tmp_path / "served.json", **fault)
    found = verify(model, "--served", served)
    assert "none of 6 candidates goes with what is served" in found.stdout
    assert found.exit_code == 1
    way = "flatter" if fault.get("temperature", 0) > 1 else "sharper"
    said = f"Next to nvfp4 it is {way}, as at a temperature of" in " ".join(found.stdout.split())
    assert said == ("temperature" in fault)


def test_likeliest_tokens_tell_what_losses_do_not(model, tmp_path):
    """Two whose mean losses are alike."""
    served = served_as(model, "nvfp4/w4a16", tmp_path / "served.json", noise=0.02)
    names = ["--candidates", "nvfp4/w4a16,nvfp4:mse/w4a16"]
    assert verify(model, "--served", served, *names).exit_code == 0


def test_a_reference_tells_the_engines_own_rounding(model, tmp_path):
    served = served_as(model, "nvfp4/w4a16", tmp_path / "served.json")
    reference = served_as(model, "full", tmp_path / "reference.json")
    found = verify(model, "--served", served, "--reference", reference)
    assert "consistent with nvfp4/w4a16 alone, of 6 candidates, on 16 windows" in found.stdout


def test_a_server_is_asked_for_the_likeliest(model, tmp_path):
    text = tmp_path / "text.txt"
    words = [" ".join(f"w{token - 4}" for token in row if token > 3) for row in model[2].tolist()]
    text.write_text(" ".join(words))
    _, loaded, *_ = model

    def answer(prompt, body):
        logits = loaded.logits(torch.tensor(prompt))[:-1].log_softmax(-1)
        own = [float(row[token]) for row, token in zip(logits, prompt[1:], strict=True)]
        best = logits.topk(body["logprobs"])
        tops = [
            {f"token_id:{token}": value for token, value in zip(*pair, strict=True)}
            for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        given = {"token_logprobs": [None, *own, -1.0], "top_logprobs": [None, *tops, {}]}
        return {"choices": [{"logprobs": given}]}

    size = ["--text", text, "--windows", 8, "--seq-len", 40, "--candidates", "nvfp4"]
    with server(answer) as (url, _):
        found = verify(model, "--server", url, "--top-logprobs", 3, *size)
    assert "consistent with full precision alone" in found.stdout
    assert "KL at least" in found.stdout


def test_what_cannot_be_tried(model, tmp_path):
    served = served_as(model, "full", tmp_path / "served.json")
    with pytest.raises(StudyError, match="give what was served"):
        verify(model)
    with pytest.raises(FormatError, match="unknown format"):
        verify(model, "--served", served, "--candidates", "nvfp5")
    with pytest.raises(StudyError, match="leave it out to try --candidates"):
        verify(model, tmp_path, "--served", served, "--candidates", "nvfp4")
    with pytest.raises(StudyError, match="give a checkpoint, or the model"):
        CliRunner().invoke(app, ["verify", "--served", str(served)], catch_exceptions=False)
    content = json.loads(served.read_text())
    few = {key: value[:5] if isinstance(value, list) else value for key, value in content.items()}
    served.write_text(json.dumps(few))
    with pytest.raises(DataError, match="5 windows were served; intervals take 8"):
        verify(model, "--served", served)
    tops = np.array(content["top_ids"])
    unknown, twice = tops.copy(), tops.copy()
    unknown[0, 0, 0] = 10_000
    twice[2, 1, 3] = twice[2, 1, 0]
    moved = np.roll(content["logprobs"], 1, 1).tolist()
    for changes, said in (
        ({"top_ids": content["top_ids"][:3]}, "top_ids has the shape"),
        ({"top_ids": unknown.tolist()}, "token 10000 of top_ids"),
        ({"top_ids": twice.tolist()}, "names a token twice"),
        ({"logprobs": moved}, "logprobs and top_logprobs do not agree at"),
    ):
        served.write_text(json.dumps(content | changes))
        with pytest.raises(DataError, match=said):
            verify(model, "--served", served)


def test_the_right_one_is_rarely_refused_however_noisy():
    """Weights alone, and inputs beside them whose roundings are noise and a damage of their own."""
    rng = np.random.default_rng(0)
    refused, likeliest = np.zeros(2), np.zeros(2)
    trials = 200
    for _ in range(trials):
        full = rng.gamma(2.0, size=(12, 100))
        alone = full + 0.1 + 0.3 * rng.standard_normal(full.shape)
        first, second, third = alone + 0.1 + 0.4 * rng.standard_normal((3, *full.shape))
        engine = 0.01 * rng.standard_normal(full.shape)
        again = 1e-4 * rng.standard_normal(full.shape)
        for place, served in enumerate((alone, third)):
            found = consistency(served + engine, full, [alone, first], [alone + again, second])
            refused[place] += not found[place].is_consistent
            likeliest[place] += found[place].log10_ratio == 0
    assert (refused <= 0.05 * trials).all()
    assert (likeliest >= 0.99 * trials).all()


def test_kl_at_few_places_is_a_lower_bound():
    rng = np.random.default_rng(0)
    p, q = (np.log(rng.dirichlet(np.full(50, 0.3), 200) + 1e-9) for _ in range(2))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    whole = (np.exp(p) * (p - q)).sum(-1)
    known = np.argsort(-q)[:, :5]
    found = coarse_kl(np.take_along_axis(p, known, 1), np.take_along_axis(q, known, 1))
    assert (found <= whole + 1e-9).all()
    assert 0.1 * whole.mean() < found.mean()
    every = coarse_kl(p, q)
    # What is left beside them, nothing here, is known to 1e-4.
    assert every == pytest.approx(whole, rel=1e-6, abs=1e-9)


def test_rounded_numbers_do_not_raise_the_bound():
    """Where a model is sure, what servers round away is more than all other tokens have."""
    rng = np.random.default_rng(0)
    rest = 10.0 ** rng.uniform(-7, -3, (500, 1))
    p = np.concatenate([1 - rest, rest * rng.dirichlet(np.ones(30), 500)], axis=1)
    own = np.log(p)[:, :5]
    served = np.round(own, 4)
    assert (np.exp(served).sum(-1) > 1 - rest[:, 0] / 10).any()
    assert coarse_kl(own, served).max() < 2e-4
