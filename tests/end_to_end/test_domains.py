"""Several texts in one run: each with its results, and whole models judged by the worst."""

import json
import random

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from fp4scope import load
from fp4scope.conductor.domains import parse_domains
from fp4scope.deploy.bar import Verdict, verdict
from fp4scope.errors import StudyError
from fp4scope.report.domains import Domains

TEMPLATE = "{% for m in messages %}w90 {{ m.role }} {{ m.content }} w91 {% endfor %}"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains")
    for seed, name in enumerate(("prose", "code")):
        words = [f"w{i}" for i in range(40 * seed, 40 * seed + 40)]
        (folder / f"{name}.txt").write_text(" ".join(random.Random(seed).choices(words, k=1200)))
    chats = [
        {"messages": [{"role": "w1", "content": " ".join(f"w{(i + j) % 90}" for j in range(30))}]}
        for i in range(40)
    ]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return folder


@pytest.fixture
def run(fp4scope, model_folder, texts):
    def measure(*more, named="prose=prose.txt,code=code.txt", model=model_folder):
        named = ",".join(
            f"{n}={texts / f}" for n, f in (own.split("=") for own in named.split(","))
        )
        return fp4scope(
            "run", model, "--text", named, "--seq-len", 32, "--windows", 12,
            "--calibration-windows", 8, "--calibration-seq-len", 32, "--formats", "nvfp4,fp8",
            "--all-quantized", "", "--sweep", "projections:only", "-o", "out", "-q", *more,
        )  # fmt: skip

    return measure


def test_each_domain_has_results_and_all_have_one_calibration(run, tmp_path):
    code, out, _ = run("--accept", "ppl<90%")
    assert code == 0
    found = {name: load(tmp_path / "out" / name) for name in ("prose", "code")}
    hashes = {own.results.data["calibration"]["sha256"] for own in found.values()}
    assert len(hashes) == 1
    assert len({own.results.data["sha256"] for own in found.values()}) == 2
    domains = Domains(found)
    table = domains.table
    assert len(table) == 4
    for recipe in ("nvfp4", "fp8"):
        rows = table.where(recipe=recipe)
        (worst,) = rows.where(worst=True)
        assert worst["delta_kl"] == max(rows["delta_kl"])
    section = domains.section()
    for row in section.rows:
        wholes = [w for own in found.values() for w in own.wholes if w.name == row[0].text]
        each = {verdict(domains.bars, whole.costs) for whole in wholes}
        assert (row[-1].text == "met") is (each == {Verdict.MET})
    text = (tmp_path / "out" / "domains.md").read_text()
    assert "Whole models by domain" in text
    assert "Rho: Spearman" in text
    assert "\n## prose · code\n" in text
    assert domains.sentence() in " ".join(out.split())
    assert "KL by position and token, from prose to code" in text
    assert "not paired (Welch)" in text
    assert "groups of tokens" in out


def test_chats_go_through_the_models_template(run, tmp_path, model_folder, texts):
    code, _, err = run(named="prose=prose.txt,chat=chat.jsonl")
    assert code == 2
    assert "no chat template" in err
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chatty")
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(tmp_path / "chatty")
    code, _, _ = run(named="prose=prose.txt,chat=chat.jsonl", model=tmp_path / "chatty")
    assert code == 0
    assert (tmp_path / "out" / "chat.txt").read_text().startswith("w90 w1 w0 w1 w2")
    assert (tmp_path / "out" / "chat" / "results.json").exists()


def test_a_domain_costs_what_its_text_alone_does(run, fp4scope, small, texts, tmp_path):
    """With the same calibration text: each run is the study of that text."""
    calibration = ["--calibration-text", texts / "prose.txt"]
    assert run(*calibration)[0] == 0
    alone = [
        "run", small[0], "--text", texts / "code.txt", "--seq-len", 32, "--windows", 12,
        "--calibration-windows", 8, "--calibration-seq-len", 32, "--formats", "nvfp4,fp8",
        "--all-quantized", "", "--sweep", "projections:only", "-o", "alone", "-q", *calibration,
    ]  # fmt: skip
    assert fp4scope(*alone)[0] == 0
    found = [load(tmp_path / name) for name in ("alone", "out/code")]
    assert found[0].all_quantized.rows == found[1].all_quantized.rows
    assert found[0].projections.rows == found[1].projections.rows


@pytest.mark.parametrize("text", ["prose=a.txt,b.txt", "prose=a.txt,prose=b.txt", "a=b,..=c"])
def test_each_text_has_a_name_of_its_own(text):
    with pytest.raises(StudyError, match="name of its own"):
        parse_domains(text)


@pytest.mark.parametrize("line", ["{", "{}", '{"messages": []}', '{"messages": [{"role": 1}]}'])
def test_what_is_no_chat_is_said_before_the_model_is_loaded(run, texts, line, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr("fp4scope.conductor.domains.load", never)
    (texts / "bad.jsonl").write_text(line)
    code, _, err = run(named="prose=prose.txt,chat=bad.jsonl")
    assert code == 2
    assert "line 1 holds no chat" in err
