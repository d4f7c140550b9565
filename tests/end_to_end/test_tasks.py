"""`fp4scope tasks`: lm-eval on local files drives the tiny model, recipe by recipe."""

import json
import random
from contextlib import closing

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fp4scope
from fp4scope.ledger import read_tasks
from fp4scope.ledger.claim import Claim
from fp4scope.stats import task_table
from fp4scope.stats.inference.flips import flips
from fp4scope.tasks.harness import Harness

pytest.importorskip("lm_eval", reason="tasks need lm-eval: pip install 'fp4scope[eval]'")

DOCUMENTS = 48
WORDS = [f"w{i}" for i in range(92)]


@pytest.fixture(scope="module")
def local_tasks(tmp_path_factory):
    """Tasks of random words in files: one of choices, one of answers that are written."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    lines = [
        {
            "question": " ".join(rng.choices(WORDS, k=12)),
            "choices": [f" {word}" for word in rng.sample(WORDS, 4)],
            "label": rng.randrange(4),
            "passage": i // 3,
        }
        for i in range(DOCUMENTS)
    ]
    (folder / "words.jsonl").write_text("\n".join(map(json.dumps, lines)))
    common = [
        "dataset_path: json",
        "dataset_kwargs:",
        f"  data_files: {{test: {folder / 'words.jsonl'}}}",
        f"  cache_dir: {folder / 'cache'}",
        "test_split: test",
        "doc_to_text: '{{question}}'",
    ]
    choices = [
        "task: words",
        "output_type: multiple_choice",
        "doc_to_target: label",
        "doc_to_choice: '{{choices}}'",
        "metric_list: [{metric: acc}, {metric: acc_norm}]",
    ]
    written = [
        "task: written",
        "output_type: generate_until",
        "doc_to_target: '{{choices[0]}}'",
        "generation_kwargs: {until: [w1], max_gen_toks: 4, do_sample: false}",
        "metric_list: [{metric: exact_match}]",
    ]
    for name, own in (("words", choices), ("written", written)):
        (folder / f"{name}.yaml").write_text("\n".join([*own, *common]))
    return folder


@pytest.fixture
def score(fp4scope, model_folder, text_file, local_tasks):
    def run(*more, task="words.yaml", recipes="nvfp4", model=model_folder):
        return fp4scope(
            "tasks", model, "--tasks", local_tasks / task, "--recipes", recipes,
            "--calibration-text", text_file, "--calibration-seq-len", 32,
            "--calibration-windows", 4, "--batch-size", 8, "-o", "out", "-q", *more,
        )  # fmt: skip

    return run


def test_recipes_are_scored_document_by_document(score, tmp_path):
    code, out, _ = score("--accept", "task:words<99", recipes="fp16,nvfp4,mxfp4/w4a16")
    assert code == 0
    found = read_tasks(tmp_path / "out" / "tasks.json")
    table = task_table(found)
    assert [(r["recipe"], r["metric"], r["main"]) for r in table] == [
        (recipe, metric, metric == "acc")
        for metric in ("acc", "acc_norm")
        for recipe in ("full precision", "nvfp4", "mxfp4:floor/w4a16")
    ]
    full, own = (
        [score for run in (0, 1) for score in found.scores["words", name, run]["acc"]]
        for name in ("full precision", "nvfp4")
    )
    row = table.where(recipe="nvfp4", metric="acc")[0]
    # Both runs of a document are of one problem.
    expected = flips(full, own, [*range(DOCUMENTS)] * 2)
    assert row["documents"] == row["problems"] == DOCUMENTS
    assert (row["lost"], row["gained"]) == (expected.lost, expected.gained) != (0, 0)
    assert row["loss_low"] == expected.loss.low < row["loss"] < row["loss_high"]
    assert row["runs"] == 2
    assert row["score"] == sum(own) / len(own)
    first = [found.scores["words", "nvfp4", run]["acc"] for run in (0, 1)]
    assert row["rerun_flips"] == flips(*first, range(DOCUMENTS)).share
    assert row["rerun_flips"] is not None
    assert "Task words: 48 documents" in out
    assert "met" in out
    lines = (tmp_path / "out" / "tasks.csv").read_text().splitlines()
    assert len(lines) == 1 + len(table)


def test_weights_alone_are_what_a_quantized_model_scores(score, tmp_path, model_folder):
    """The model whose weights are the images, loaded as any other, answers alike."""
    score("--replicas", 0, recipes="mxfp4/w4a16")
    found = read_tasks(tmp_path / "out" / "tasks.json")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj" in name:
                parameter.copy_(fp4scope.fake_quantize(parameter, "mxfp4"))
    baked = tmp_path / "baked"
    model.save_pretrained(baked)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(baked)
    score("--replicas", 0, "-o", "baked-out", recipes="mxfp4/w4a16", model=baked)
    other = read_tasks(tmp_path / "baked-out" / "tasks.json")
    quantized = found.scores["words", "mxfp4:floor/w4a16", 0]
    assert other.scores["words", "full precision", 0] == quantized
    assert quantized != found.scores["words", "full precision", 0]


def test_answers_that_are_written(score, tmp_path):
    code, _, _ = score(task="written.yaml", recipes="nvfp4")
    assert code == 0
    found = read_tasks(tmp_path / "out" / "tasks.json")
    assert set(found.scores) == {
        ("written", recipe, replica) for recipe in ("full precision", "nvfp4") for replica in (0, 1)
    }


def test_a_stopped_command_goes_on(score, tmp_path, monkeypatch):
    ran = Harness._run
    seen = []

    def counted(self, name):
        seen.append(name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return ran(self, name)

    monkeypatch.setattr(Harness, "_run", counted)
    code, _, err = score()
    assert code == 2
    assert "what was scored is kept" in err
    assert len(read_tasks(tmp_path / "out" / "tasks.json").scores) == 2
    code, _, _ = score()
    assert code == 0
    assert len(seen) == 5
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    score("-o", "whole")
    whole = read_tasks(tmp_path / "whole" / "tasks.json")
    assert read_tasks(tmp_path / "out" / "tasks.json").scores == whole.scores


def test_documents_of_one_problem_go_together(score, tmp_path):
    score("--problem", "passage", "--replicas", 0)
    (row,) = task_table(read_tasks(tmp_path / "out" / "tasks.json")).where(
        recipe="nvfp4", metric="acc"
    )
    assert (row["documents"], row["problems"]) == (DOCUMENTS, DOCUMENTS // 3)
    code, _, err = score("--problem", "chapter", "-o", "other")
    assert code == 2
    assert "no field 'chapter'; they have question, choices, label, passage" in err


def test_a_run_shows_tasks_of_its_folder(fp4scope, small, score, tmp_path):
    assert fp4scope("run", *small, "--formats", "nvfp4", "-o", "out", "-q")[0] == 0
    before = (tmp_path / "out" / "report.md").read_text()
    assert score("--accept", "task:words<1")[0] == 0
    for name in ("report.md", "report.html"):
        assert "Task words: 48 documents" in (tmp_path / "out" / name).read_text()
    assert "Task words" not in before
    bars = ["--accept", "ppl<99%", "--accept", "task:words<99"]
    assert fp4scope("report", "out", *bars)[0] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    # The other way round they are shown as well.
    assert score("-o", "first", "--replicas", 0)[0] == 0
    assert fp4scope("run", *small, "--formats", "nvfp4", "-o", "first", "-q")[0] == 0
    assert "Task words: 48 documents" in (tmp_path / "first" / "report.md").read_text()
    assert "meets task:words&lt;99" in page
    assert "ppl&lt;99% and" in page


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--recipes", "nvpf4"], "did you mean nvfp4"),
        (["--accept", "task:other<2"], "task:words<2"),
        (["--accept", "ppl<2%"], "task:words<2"),
        (["--tasks", "missing.yaml"], "there is no file 'missing.yaml'"),
        (["--tasks", "own.jsonl"], "humaneval=own.jsonl"),
        (["--chat"], "no chat template"),
        (["--calibration-text", "missing.txt"], "missing.txt"),
    ],
)
def test_what_cannot_be_scored_is_said(score, tmp_path, more, said):
    (tmp_path / "own.jsonl").write_text("{}")
    code, _, err = score(*more)
    assert code == 2
    assert said in err
    assert not (tmp_path / "out" / "tasks.json").exists()


def test_data_that_cannot_be_had_is_said_before_the_model_is_loaded(score, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("fp4scope.conductor.tasks.load", never)
    code, _, err = score("--tasks", "arc_easy")
    assert code == 2
    assert "the data of the task 'arc_easy' cannot be had" in err
    code, _, err = score("--tasks", "arc_eazy")
    assert code == 2
    assert "did you mean arc_easy" in err


def test_results_under_other_options_are_not_mixed(score, tmp_path):
    assert score("--limit", 8, "--replicas", 0)[0] == 0
    code, _, err = score("--limit", 9, "--replicas", 0)
    assert code == 2
    assert "results of another limit (8, and here it is 9)" in err


def test_code_runs_only_when_it_is_allowed(score, tmp_path):
    problem = {
        "task_id": "Own/0",
        "prompt": "w1 w2 w3",
        "entry_point": "w1",
        "test": "def check(candidate): pass",
    }
    (tmp_path / "own.jsonl").write_text(json.dumps(problem))
    asked = ["--tasks", "own=own.jsonl", "--replicas", 0, "--limit", 1]
    code, _, err = score(*asked)
    assert code == 2
    assert "--run-code" in err


@pytest.mark.parametrize("content", ["{", '{"version": 2}'])
def test_damaged_scores_are_refused(score, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tasks.json").write_text(content)
    code, _, err = score()
    assert code == 2
    assert "is damaged" in err


def test_a_folder_is_of_one_command_at_a_time(score, tmp_path):
    assert score("--limit", 4, "--replicas", 0)[0] == 0
    with closing(Claim(tmp_path / "out" / "tasks.lock")):
        code, _, err = score("--limit", 4, "--replicas", 0)
    assert code == 2
    assert "another run is writing" in err


def test_results_of_other_sites_are_not_mixed(score, tmp_path):
    """A recipe of one format is the same recipe, whatever is left out."""
    assert score("--limit", 8, "--replicas", 0)[0] == 0
    code, _, err = score("--limit", 8, "--replicas", 0, "--exclude", "*.down_proj")
    assert code == 2
    assert "results of another excluded" in err
