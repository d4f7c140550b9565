"""`fp4scope plan`: what it says a run will take and reach is what a run takes and reaches."""

import json
import re
import tempfile
from collections import Counter
from statistics import geometric_mean

import numpy as np
import pytest
import torch

import fp4scope as library
from fp4scope.conductor import forecast, prepare, room, workers
from fp4scope.conductor.forecast import _TOKENS
from fp4scope.conductor.room import Room, room_of
from fp4scope.errors import StudyError
from fp4scope.models import load_model
from fp4scope.stats import MIN_WINDOWS
from fp4scope.study import Study
from fp4scope.sweep import worker

LEVELS = ("projections", "blocks", "layers", "patterns")


@pytest.fixture(scope="module")
def study(model_folder, text_file):
    return Study.build(
        model=model_folder,
        text=text_file,
        seq_len=32,
        windows=20,
        calibration_windows=8,
        calibration_seq_len=32,
        all_quantized="",
        sweep="projections:keep,layers:only",
        layers="down_proj,*.0.*",
        patterns="*.1.mlp.*",
        replicas=2,
        jitter=3,
    )


@pytest.fixture(scope="module")
def planned(study):
    return forecast(study)


@pytest.fixture(scope="module")
def executed(study, tmp_path_factory):
    """The run of the same study: its diagnosis, last progress, and blocks run on one window."""
    loaded = load_model(study.model.name)
    own = "model", "device", "dtype", "revision"
    measuring, batches = [], []

    def tell(event):
        if event.phase == "measuring":
            measuring.append(event)

    def count(_, args):
        if measuring:  # what was before is the calibration and the self-check
            batches.append(len(args[0]))

    for block in loaded.model.model.layers:
        block.input_layernorm.register_forward_pre_hook(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "still_the_same", lambda *_: None)  # it runs blocks as well
        diagnosis = library.diagnose(
            loaded.model,
            tokenizer=loaded.tokenizer,
            progress=tell,
            output_dir=tmp_path_factory.mktemp("out"),
            **{k: v for k, v in study.flat().items() if k not in own},
        )
    return diagnosis, measuring[-1], sum(batches)


def test_variants_are_those_that_a_run_writes(planned, executed):
    diagnosis, _, _ = executed
    ledger = diagnosis.results.ledger
    runs = {
        (subject, replica, name)
        for subject in ledger
        for name in ("kl", "rerun_kl")
        for replica, kl in zip(
            ledger[subject].replicas, ledger[subject].values.get(name, ()), strict=False
        )
        if kl is not None
    }
    assert planned.variants == len(runs)
    written = Counter(
        (row["format"], row["precision"], row["direction"], level)
        for level in LEVELS
        for row in getattr(diagnosis, level)
    )
    families = {(f.format, f.precision, f.direction, f.level): f.units for f in planned.families}
    assert families == dict(written)
    assert {count for family, count in families.items() if family[3] == "layers"} == {3 + 6}


def test_work_is_what_a_run_does(planned, executed):
    diagnosis, last, batches = executed
    assert planned.executions == batches
    assert (last.done, last.total) == (planned.work, planned.work)
    assert planned.windows == diagnosis.results.data["windows"]


def test_the_time_without_layers_is_that_of_a_plan_without_them(study, planned):
    """Relative to the whole, for speed is measured anew in each plan."""
    less = forecast(study.but(sweep="projections:keep"))
    assert less.coarse_s is None
    assert planned.coarse_s / planned.sweep_s == pytest.approx(less.work / planned.work)
    assert less.work < planned.work


def test_passes_are_those_of_the_journal(planned, executed):
    diagnosis, _, _ = executed
    lines = map(json.loads, (diagnosis.folder / "journal.jsonl").read_text().splitlines())
    chunks = [line["shape"] for line in lines if "job" in line]
    assert chunks == [planned.shape.to_json()] * len(chunks)
    assert planned.passes == sum(shape["groups"] for shape in chunks)


@pytest.mark.parametrize("tokens", [128, 16], ids=["whole windows", "shorter windows"])
def test_intervals_are_about_as_wide_as_forecast(tokens, study, executed, monkeypatch):
    """To a factor of three, from four windows. Those of a single unit say next to nothing."""
    monkeypatch.setitem(_TOKENS, "cpu", tokens)
    planned = forecast(study)
    assert planned.probe.endswith(f" on 4 windows of {min(32, tokens)} tokens")
    diagnosis, _, _ = executed
    several = [family for family in planned.families if family.units > 1]
    assert len(several) == 2 * 2
    ratios = []
    for family in several:
        rows = getattr(diagnosis, family.level).where(
            format=family.format, precision=family.precision, direction=family.direction
        )
        widths = [(row["delta_nll_high"] - row["delta_nll_low"]) / 2 for row in rows]
        reached = np.sqrt(np.mean(np.square(widths)))
        ratios.append(family.half_width / reached)
    assert all(1 / 3 < ratio < 3 for ratio in ratios)
    assert 2 / 3 < geometric_mean(ratios) < 3 / 2


def test_intervals_shrink_with_windows_and_there_are_none_for_too_few(study, planned):
    few = forecast(study.but(windows=MIN_WINDOWS))
    for wide, narrow in zip(few.families, planned.families, strict=True):
        assert wide.half_width > narrow.half_width
    fewer = forecast(study.but(windows=MIN_WINDOWS - 1))
    assert [f.half_width for f in fewer.families] == [None] * len(planned.families)


def test_less_memory_means_more_passes(study, planned):
    budget = planned.memory_bytes * 7 // 10
    less = forecast(study.but(memory=budget))
    assert less.memory_bytes <= less.budget_bytes == budget
    assert less.passes > planned.passes
    assert less.variants == planned.variants


@pytest.fixture
def plan(fp4scope, tmp_path, monkeypatch):
    """`fp4scope plan` in an empty folder, temporary files in another."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(*arguments):
        found = fp4scope("plan", *arguments)
        assert [*tmp_path.rglob("*")] == [temporary]
        return found

    return run


def test_a_long_text_is_said_to_be_tokenized(plan, small, monkeypatch):
    assert "tokenizing" not in plan(*small, "--windows", 9)[2]
    monkeypatch.setattr(prepare, "LONG", 1)
    code, _, err = plan(*small, "--windows", 9)
    assert code == 0
    assert re.search(r"tokenizing \S+, 0 million characters \.\.\.", err)


def test_it_prints_what_it_found_and_leaves_nothing(plan, small):
    code, out, err = plan(*small, "--sweep", "projections,layers:keep", "--windows", 9)
    assert code == 0
    assert "calibrating" in err
    first, *lines = [line for line in out.splitlines() if line.strip()]
    assert first == "Plan for tiny-llama, float32 on cpu"
    facts = dict(line.split(maxsplit=1) for line in lines[:8])
    assert list(facts) == [
        "coverage", "variants", "windows", "chunk", "memory", "passes", "work", "time",
    ]  # fmt: skip
    assert "% of the blocks' parameters, 3 blocks, 7 projections" in facts["coverage"]
    # Full precision and two all-quantized models, a control for each; per format 7 + 7 projections
    # and 21 layers, the work of 29 all-quantized models with its own: 8% of it are two replicas.
    assert facts["variants"].startswith(f"{3 + 3 + 2 * (7 + 7 + 21 + 2)}: ")
    for kind in ("14 projections (keep)", "14 projections (only)", "42 layers (keep)"):
        assert kind in facts["variants"]
    assert facts["windows"].strip() == "9 of 32 tokens"
    assert facts["chunk"].startswith("7 windows; batches of ")
    assert " GB beside the model (of " in facts["memory"]
    assert facts["passes"].strip() == "2 over the weights"
    assert "% fewer than one run for each variant" in facts["work"]
    assert re.match(r"about \d+:\d\d and \d+:\d\d of calibration", facts["time"])
    assert lines[8] == "Half-width of the 95% intervals after 9 windows, if independent"
    table = [line.split() for line in lines[10:-1]]
    assert [row[:-1] for row in table] == [
        [fmt, "W4A4", direction, level, count]
        for fmt in ("mxfp4:floor", "nvfp4")
        for direction, level, count in (
            ("keep", "projections", "7"),
            ("keep", "layers", "21"),
            ("only", "projections", "7"),
        )
    ]
    assert all(0.01 < float(row[-1]) < 1000 for row in table)
    assert lines[-1].startswith("Estimated from a probe: ")


def facts_of(out):
    lines = [line for line in out.splitlines() if line.strip()]
    return dict(line.split(maxsplit=1) for line in lines[1:12] if not line.startswith(" "))


def test_several_workers_take_memory_each_and_share_the_time(plan, small, monkeypatch):
    """Room for the model and a sweep for each; what waits on the host is there once."""
    assert room._cores() >= 1
    monkeypatch.setattr(room, "_cores", lambda: 2)
    small = [*small, "--windows", 12, "--direction", "keep"]
    code, out, _ = plan(*small, "--workers", 2)
    assert code == 0
    facts = facts_of(out)
    assert facts["chunk"].startswith("2 windows; ")
    assert facts["passes"].strip() == "6 over the weights"
    assert "both for each of 2 workers" in facts["memory"]
    assert "GB of memory for all 2 workers" in facts["host"]
    assert "2 workers share the sweep, each loads the model first" in facts["time"]
    assert "slow each other down" not in out
    code, out, _ = plan(*small, "--workers", 3)
    assert "more than 2 workers win nothing" in " ".join(out.split())


@pytest.mark.parametrize("count", [1, 2])
def test_room_of_blocks_that_wait(model_folder, tmp_path, monkeypatch, count):
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path))
    found = {}
    for where in ("no", "yes", "disk"):
        loaded = load_model(str(model_folder), device="cpu", offload=where, sharing=count)
        found[where] = room_of(loaded, count)
    block = sum(p.nbytes for p in loaded.model.model.layers[0].parameters())
    whole = sum(t.nbytes for t in (*loaded.model.parameters(), *loaded.model.buffers()))
    assert found["no"] == Room(whole, 0)
    assert found["yes"] == Room(whole - block, 3 * block)
    assert found["disk"] == Room(whole - block, count * 2 * block)


@pytest.mark.parametrize(("offload", "blocks"), [("no", 0), ("yes", -1), ("disk", 1)])
def test_each_further_worker_takes_of_a_host_what_is_not_there_once(
    model_folder, tmp_path, monkeypatch, offload, blocks
):
    monkeypatch.setenv("FP4SCOPE_CACHE", str(tmp_path))
    loaded = load_model(str(model_folder), device="cpu", offload=offload, sharing=3)
    block = sum(p.nbytes for p in loaded.model.model.layers[0].parameters())
    whole = sum(t.nbytes for t in (*loaded.model.parameters(), *loaded.model.buffers()))
    study = Study.build(model="x", workers=3)
    each = whole + blocks * block + room.PROCESS_BYTES
    free = 2 * each + 3000
    monkeypatch.setattr(workers, "free_memory", lambda device: free)
    assert workers.budget_of(study, loaded) == 1000
    free = 2 * each
    with pytest.raises(StudyError, match=r"workers is ray:3, and each more takes .* give fewer"):
        workers.budget_of(study, loaded)


def test_threads_of_workers_are_counted_over_cores(monkeypatch):
    monkeypatch.setattr(room, "_cores", lambda: 4)
    for threads, count, expected in ((1, 4, 1), (2, 2, 1), (4, 2, 2), (1, 8, 2)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert room.crowded(count) == expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert room.crowded_note(1) is None
    assert "2 workers have 8 threads on 4 cores" in room.crowded_note(2)
    assert "OMP_NUM_THREADS=2 gives each cores of its own" in room.crowded_note(2)


def test_too_few_windows_are_said(plan, small):
    code, out, _ = plan(*small, "--windows", MIN_WINDOWS - 1)
    assert code == 0
    assert out.count("too few windows") == 4


BAD = {
    "no model": ((), "which model?"),
    "a level": (("--sweep", "cell"), "unknown 'cell'; choices: projections, blocks, layers"),
    "a pattern": (("--pattern", "*.moe.*"), "matches none of the 21 linears"),
    "layers": (("--sweep", "layers", "--layers", "*.moe.*"), "matches none of the 21 linears"),
    "windows": (("--windows", 999), "--windows 62"),
    "a text": (("--text", "no.txt"), "cannot read the text no.txt"),
    "a size": (("--memory", "plenty"), "memory is 'plenty'; give a size such as 8GB"),
    "too little": (("--memory", "1MB"), "memory is 0.00 GB beside the model"),
    "a folder": (("-o", "out"), "No such option"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(case, plan, small):
    options, message = BAD[case]
    code, out, err = plan(*(small if options else ()), *options)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert message in " ".join(err.split())
