"""`--stop-when`: each goal on a small model that has learned something, and resuming under one."""

import json
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fp4scope as library
from fp4scope.errors import StudyError
from fp4scope.report import files
from fp4scope.report.stopping import stopping_lines

STEPS = 100
KEPT = ("projections.csv", "layers.csv", "all_quantized.csv", "journal.jsonl")
DECISION = "best=2,within=0mnat,error=40%"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_tokenizer):
    """A model whose layers had to learn which two words may follow each, and its text.

    Outliers in front of down_proj, stronger in the second block, make that layer by far the most
    costly.
    """
    torch.manual_seed(0)
    rng = random.Random(0)
    follow = [[rng.randrange(92) for _ in range(2)] for _ in range(92)]
    words = [0]
    for _ in range(2600):
        words.append(rng.choice(follow[words[-1]]))
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    model, ids = LlamaForCausalLM(config), torch.tensor(words) + 4
    optimizer = torch.optim.AdamW(model.model.layers.parameters(), 1e-2)
    for _ in range(STEPS):
        batch = torch.stack([ids[i : i + 32] for i in torch.randint(0, 2500, (8,)).tolist()])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for layer, factor in zip(model.model.layers, (8, 256), strict=True):
            layer.mlp.up_proj.weight[::32] *= factor
            layer.mlp.down_proj.weight[:, ::32] /= factor
    folder = tmp_path_factory.mktemp("trained")
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "words.txt").write_text(" ".join(f"w{i}" for i in words[:2000]))
    return folder


@pytest.fixture(scope="module")
def diagnose(trained):
    """`diagnose(goal, **options)`: isolated layers and projections, up to 40 windows."""

    def run(goal, **options):
        study = {
            "text": str(trained / "words.txt"),
            "seq_len": 32,
            "windows": 40,
            "calibration_windows": 4,
            "calibration_seq_len": 32,
            "all_quantized": "",
            "formats": "mxfp4:floor",
            "direction": "only",
            "stop_when": goal,
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "figures", lambda *_, **__: ())  # slow, and not what this is about
            return library.diagnose(trained / "model", **study | options)

    return run


@pytest.fixture(scope="module")
def decided(diagnose, tmp_path_factory):
    """A decision that drops layers on the way and has not come to its end by 40 windows."""
    folder = tmp_path_factory.mktemp("decided")
    return diagnose(DECISION, output_dir=folder), folder


def test_what_is_decided_is_not_measured_any_more(decided):
    diagnosis, _ = decided
    stopping = diagnosis.results.protocol["stopping"]
    (family,) = stopping["families"]
    units = {(u["unit"], u["block"]): u for u in family["units"]}
    assert units["down_proj", 1]["fate"] == "accepted"
    fates = [u["fate"] for u in family["units"]]
    assert "dropped" in fates
    assert "undecided" in fates
    assert not stopping["reached"]
    assert (stopping["windows"], stopping["available"], family["windows"]) == (40, 40, 40)
    for row in diagnosis.layers:
        unit = units[row["projection"], row["block"]]
        assert row["windows"] == unit["windows"]
        assert unit["windows"] == 40 or unit["fate"] != "undecided"
    assert units["down_proj", 1]["windows"] < 40
    # What is not in question is measured to the end.
    assert set(diagnosis.projections["windows"] + diagnosis.all_quantized["windows"]) == {40}


def test_the_journal_has_what_was_measured_chunk_by_chunk(decided):
    _, folder = decided
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    jobs = [line for line in lines if "job" in line]
    assert [len(job["job"]) for job in jobs] == [8, 2, 2, 3, 3, 4, 5, 6, 7]
    counts = [len(job["rows"]) for job in jobs]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]


def test_intervals_are_confidence_sequences_and_the_report_says_so(decided, diagnose):
    diagnosis, folder = decided
    plain = diagnose(None)
    for ours, fixed in zip(diagnosis.projections, plain.projections, strict=True):
        # The batches differ, so the numbers do by their rounding.
        assert ours["delta_nll"] == pytest.approx(fixed["delta_nll"], abs=2e-3)
        width = fixed["delta_nll_high"] - fixed["delta_nll_low"]
        assert ours["delta_nll_high"] - ours["delta_nll_low"] > 1.3 * width
        assert ours["p"] > fixed["p"]
    report = (folder / "report.md").read_text()
    for text in (
        "confidence sequences, which hold whenever one stops",
        "Goal best=2,within=0mnat,error=40%: not reached after 40 of 40 windows",
        "certain of 1 (1.down_proj)",
        "anytime",
    ):
        assert text in report
    assert "confidence sequence" not in plain.report()
    assert "anytime" not in plain.report()
    assert plain.results.protocol["stopping"] is None
    assert stopping_lines(plain.results) == []
    again = library.load(folder)
    assert again.layers.rows == diagnosis.layers.rows


@pytest.mark.parametrize("chunks", [0, 1, 3, 4])
def test_a_decision_that_was_interrupted_ends_the_same(decided, diagnose, tmp_path, chunks):
    diagnosis, folder = decided
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    ends = [i for i, line in enumerate(lines) if line.startswith(b'{"job"')]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[: ends[chunks]]))
    resumed = diagnose(DECISION, output_dir=tmp_path)
    assert resumed.results.protocol["stopping"] == diagnosis.results.protocol["stopping"]
    for name in KEPT:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_decision_that_is_reached_measures_nothing_more(diagnose, tmp_path):
    first = diagnose("best=1,within=20mnat", output_dir=tmp_path)
    stopping = first.results.protocol["stopping"]
    assert stopping["reached"]
    assert stopping["windows"] < 40
    (family,) = stopping["families"]
    found = [u for u in family["units"] if u["fate"] in ("accepted", "chosen")]
    assert [(u["unit"], u["block"]) for u in found] == [("down_proj", 1)]
    assert "decided after" in first.report()
    assert "1.down_proj." in first.report()
    before = (tmp_path / "journal.jsonl").read_bytes()
    events = []
    again = diagnose("best=1,within=20mnat", output_dir=tmp_path, progress=events.append)
    assert "measuring" not in {event.phase for event in events}
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    assert again.results.protocol["stopping"] == stopping
    with pytest.raises(StudyError, match="holds another study: stop_when is best=1"):
        diagnose("best=2", output_dir=tmp_path)
    with pytest.raises(StudyError, match="holds another study: stop_when"):
        diagnose(None, output_dir=tmp_path)


def test_a_decision_by_kl_says_so_and_reads_kl(diagnose, tmp_path):
    first = diagnose("best=1,by=kl", output_dir=tmp_path)
    stopping = first.results.protocol["stopping"]
    assert stopping["reached"]
    (family,) = stopping["families"]
    assert (family["by"], family["within_nats"]) == ("kl", 0.001)
    found = [u for u in family["units"] if u["fate"] in ("accepted", "chosen")]
    largest = max(first.layers, key=lambda row: row["delta_kl"])
    assert [(u["unit"], u["block"]) for u in found] == [(largest["projection"], largest["block"])]
    assert "The 1 most costly of 14 layers by KL, " in first.report()
    again = library.load(tmp_path)
    assert again.results.protocol["stopping"] == stopping
    with pytest.raises(StudyError, match="holds another study: stop_when is best=1,by=kl"):
        diagnose("best=1", output_dir=tmp_path)


def test_a_half_width_and_going_on_to_a_smaller_one(diagnose, tmp_path):
    wide = diagnose("half-width=200mnat", output_dir=tmp_path)
    stopping = wide.results.protocol["stopping"]
    assert stopping["reached"]
    assert 8 <= stopping["windows"] < 40
    rows = [*wide.layers, *wide.projections]
    largest = max(row["delta_nll_high"] - row["delta_nll"] for row in rows)
    assert stopping["widest_nats"] == pytest.approx(largest)
    assert largest <= 0.2
    assert {row["windows"] for row in rows} == {stopping["windows"]}
    narrow = diagnose("half-width=0.001mnat", output_dir=tmp_path)
    assert narrow.results.protocol["stopping"]["windows"] == 40
    assert not narrow.results.protocol["stopping"]["reached"]
    assert "not reached after 40 of 40 windows; the widest interval is" in narrow.report()


def test_a_time_measures_one_chunk_at_least_and_keeps_t_intervals(diagnose, tmp_path):
    events = []
    short = diagnose("0.001s", output_dir=tmp_path, progress=events.append)
    assert short.results.protocol["stopping"] == {
        "goal": "0.001s", "reached": True, "anytime": False, "windows": 8, "available": 40,
        "widest_nats": None, "families": [],
    }  # fmt: skip
    last = [event for event in events if event.phase == "measuring"][-1]
    assert last.done == last.total > 0
    assert "stopped by the clock after 8 of 40 windows" in short.report()
    assert "95% t intervals" in short.report()
    assert "8 of 40 windows of 32" in short.report()
    # Each run has its own time, and goes on.
    assert set(diagnose("0.001s", output_dir=tmp_path).all_quantized["windows"]) == {16}
    assert set(diagnose("10h", output_dir=tmp_path).all_quantized["windows"]) == {40}


def test_more_than_there_are_is_refused_before_measuring(diagnose):
    with pytest.raises(StudyError, match=r"best 14, but there are only 14 layers \(only, mxfp4"):
        diagnose("best=14")
    with pytest.raises(StudyError, match="best 7, but there are only 7 projections"):
        diagnose("best=7", sweep="projections")
    for goal in ("best=1", "half-width=1mnat"):
        with pytest.raises(StudyError, match="the study has no units; name some with --sweep"):
            diagnose(goal, sweep="")


def test_without_layers_the_decision_is_about_projections(diagnose):
    diagnosis = diagnose("best=1,within=20mnat", sweep="projections", windows=24)
    (family,) = diagnosis.results.protocol["stopping"]["families"]
    assert family["level"] == "projections"
    assert len(family["units"]) == 7


def test_the_command_line(fp4scope, trained):
    arguments = [
        "run", trained / "model", "--text", trained / "words.txt", "--seq-len", 32,
        "--windows", 24, "--calibration-windows", 4, "--calibration-seq-len", 32, "--sweep",
        "projections", "--all-quantized", "", "--direction", "only", "--formats", "nvfp4",
    ]  # fmt: skip
    code, out, _ = fp4scope(*arguments, "-o", "out", "--stop-when", "half-width=1nat")
    assert code == 0
    assert "Goal half-width=1000mnat: reached after 8 of 24 windows" in out
    assert "95% confidence sequences, which hold whenever one stops. Positive" in out
    code, _, err = fp4scope(*arguments, "--stop-when", "half-width=1")
    assert code == 2
    assert "half-width is '1'; give nats or millinats per token" in err
