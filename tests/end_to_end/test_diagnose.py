"""`fp4scope.diagnose` on a tiny model: what it measures, writes, resumes and refuses."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

import fp4scope
from fp4scope.errors import ModelError, NonFiniteError, OutputError, StudyError, UnitError
from fp4scope.ledger import Ledger
from fp4scope.ledger.schema import RESULTS_VERSION
from fp4scope.models import load_model
from fp4scope.sweep import Worker, memory
from fp4scope.sweep.wavefront import Wavefront

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(model_folder, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    options = {
        "seq_len": 32,
        "windows": 3,
        "calibration_windows": 8,
        "calibration_seq_len": 32,
        "all_quantized": "",
    }
    return fp4scope.diagnose(
        model_folder,
        text=str(text_file),
        sweep="projections,blocks,layers",
        patterns=["*.0.mlp.*"],
        operands="weights+activations,weights",
        output_dir=folder,
        **options,
    )


def test_every_variant_is_there(finished):
    # 2 formats x 2 operands x 2 directions x (7 projections, 3 blocks, 21 layers, 1 pattern)
    assert len(finished.projections) == 8 * 7
    assert len(finished.blocks) == 8 * 3
    assert len(finished.layers) == 8 * 21
    assert len(finished.patterns) == 8
    assert len(finished.all_quantized) == 1 + 4
    assert set(finished.projections["projection"]) == PROJECTIONS


def test_the_reference_is_the_models_own_loss(finished, model_folder, text_file):
    loaded = load_model(str(model_folder))
    ids = loaded.tokenizer(text_file.read_text(), return_tensors="pt")["input_ids"][0]
    losses = []
    for w in range(3):
        window = ids[32 * w : 32 * (w + 1)][None]
        with torch.no_grad():
            losses.append(float(loaded.model(window, labels=window).loss))
    reference = finished.all_quantized[0]
    assert reference["nll"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert reference["ppl"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-6)
    assert (reference["kl"], reference["top1"]) == (0.0, 1.0)
    assert (reference["windows"], reference["tokens"]) == (3, 3 * 31)


def test_a_pattern_equals_the_block_projections_it_names(finished):
    # *.0.mlp.* quantized alone is its own unit; quantizing nothing else keeps the others' weights.
    rows = finished.patterns.where(direction="only", precision="W4A16", format="nvfp4")
    assert rows[0]["pattern"] == "*.0.mlp.*"
    assert rows[0]["kl"] > 0


def test_files(finished):
    names = {p.name for p in finished.folder.iterdir()}
    assert names == {
        "activations.csv", "all_quantized.csv", "blocks.csv", "layers.csv", "projections.csv",
        "figures", "journal.jsonl", "journal.lock", "patterns.csv", "report.html", "report.md",
        "results.json", "study.yaml", "savings.csv", "predictors.csv", "interactions.csv",
        "additivity.csv", "divergence.csv", "tokens.csv", "positions.csv",
    }  # fmt: skip
    layers = read_csv(finished.folder / "layers.csv")
    assert len(layers) == 8 * 21
    for written, row in zip(layers, finished.layers, strict=True):
        assert float(written["delta_nll"]) == row["delta_nll"]
        assert int(written["block"]) == row["block"]
    first = read_csv(finished.folder / "all_quantized.csv")[0]
    assert first["format"] == "full precision"
    assert first["delta_nll"] == ""
    figures = {p.name for p in (finished.folder / "figures").iterdir()}
    for kind in ("projections-keep", "projections-only", "layers-keep", "heatmap-keep"):
        assert {f"{kind}-W4A16.svg", f"{kind}-W4A16.png"} <= figures
    assert "percent-keep-W4A16.svg" in figures


def test_results_json_holds_the_windows_and_the_conditions(finished):
    data = json.loads((finished.folder / "results.json").read_text())
    assert data["version"] == RESULTS_VERSION
    ledger = data["ledgers"]["text"]
    assert ledger["counted"] == 1
    replicas = {frozenset(place["replicas"]) for place in ledger["places"]}
    assert {frozenset({0}), frozenset({0, 1}), frozenset({0, 1, 2, 3, 4})} == replicas
    assert {frozenset(place["indices"]) for place in ledger["places"]} == {frozenset(range(3))}
    for row in ledger["rows"]:
        count = len(ledger["places"][row["place"]]["indices"])
        assert {len(column) for column in row["values"].values()} == {count}
        assert row["recipe"] in data["recipes"]
    named = {recipe for contrast in data["contrasts"] for recipe, _ in contrast["terms"]}
    assert named == set(data["recipes"])
    assert data["model"]["fingerprint"]
    assert data["data"]["sha256"]
    assert data["data"]["tokens_in_text"] == 2000
    assert {"torch", "transformers", "python", "platform", "wall_s"} <= set(data["environment"])
    assert data["summary"]["confidence"] == 0.95
    assert data["summary"]["projections"][0]["delta_nll_stderr"] > 0


def test_load_gives_the_same_tables_without_torch(finished):
    again = fp4scope.load(finished.folder)
    assert again.layers.rows == finished.layers.rows
    assert again.activations.rows == finished.activations.rows
    assert again.report() == finished.report()


def test_tables_become_data_frames(finished):
    frame = finished.projections.to_pandas()
    assert list(frame.columns) == list(finished.projections.columns)
    assert len(frame) == len(finished.projections)


def test_the_report_has_the_numbers_of_the_tables(finished):
    text = (finished.folder / "report.md").read_text()
    row = finished.projections.where(projection="down_proj", direction="keep")[0]
    assert f"{row['ppl']:.2f}" in text or f"{row['ppl']:.1f}" in text
    assert "Positive means that quantizing this costs" in text
    assert finished.results.data["sha256"][:16] in text


def test_plots(finished):
    for kind in ("projections", "layers", "heatmap", "percent"):
        assert finished.plot(kind).axes
    with pytest.raises(StudyError, match="did you mean heatmap"):
        finished.plot("heatmaps")
    with pytest.raises(StudyError, match="only keep has that"):
        finished.plot("percent", direction="only")
    with pytest.raises(StudyError, match="no direction 'sideways'"):
        finished.plot("layers", direction="sideways")


def test_a_restored_unit_that_is_everything_would_be_the_reference(model_folder, options):
    """Restoring all linears leaves none quantized: the pattern `*` gives the reference back."""
    d = fp4scope.diagnose(model_folder, sweep="", patterns=["*"], formats="nvfp4", **options)
    restored = d.patterns.where(direction="keep")[0]
    isolated = d.patterns.where(direction="only")[0]
    assert (restored["kl"], restored["nll"]) == (0.0, d.all_quantized[0]["nll"])
    assert isolated["nll"] == d.all_quantized[1]["nll"]
    assert isolated["kl"] == d.all_quantized[1]["kl"]


def test_a_model_in_memory_gives_what_its_folder_gives(model_folder, options):
    loaded = load_model(str(model_folder))
    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    d = fp4scope.diagnose(
        loaded.model, tokenizer=loaded.tokenizer, sweep="projections", formats="mxfp4", **options
    )
    same = fp4scope.diagnose(model_folder, sweep="projections", formats="mxfp4", **options)
    assert d.projections.rows == same.projections.rows
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(StudyError, match="needs its tokenizer"):
        fp4scope.diagnose(loaded.model)
    with pytest.raises(StudyError, match="dtype is the model's own"):
        fp4scope.diagnose(loaded.model, tokenizer=loaded.tokenizer, dtype="bfloat16")


def test_a_model_in_memory_keeps_its_mode_and_gradients(model_folder, options):
    loaded = load_model(str(model_folder))
    loaded.model.train().requires_grad_(True)
    loaded.model.lm_head.eval()
    fp4scope.diagnose(loaded.model, tokenizer=loaded.tokenizer, sweep="", **options)
    assert loaded.model.training
    assert not loaded.model.lm_head.training
    assert all(p.requires_grad for p in loaded.model.parameters())


def test_a_model_that_sees_its_targets_is_refused(tiny_tokenizer, options):
    config = BertConfig(
        vocab_size=96,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with pytest.raises(ModelError, match="is not causal"):
        fp4scope.diagnose(BertLMHeadModel(config), tokenizer=tiny_tokenizer(), **options)


def test_calibration_on_the_evaluated_text_is_said(model_folder, options):
    d = fp4scope.diagnose(model_folder, sweep="", calibration_text=options["text"], **options)
    assert d.results.data["calibration"]["evaluated"]
    assert "calibration text is the evaluated text" in d.report()


def test_a_second_run_in_the_same_folder_is_refused(model_folder, options, tmp_path):
    refused = []

    def again(event):
        if event.diagnosis is not None and not refused:
            with pytest.raises(OutputError, match="another run is writing") as caught:
                fp4scope.diagnose(model_folder, sweep="", output_dir=tmp_path, **options)
            refused.append(caught)

    fp4scope.diagnose(model_folder, sweep="", output_dir=tmp_path, progress=again, **options)
    assert refused


@pytest.mark.parametrize("looks", [False, True])
def test_what_is_known_so_far_is_made_only_for_who_looks(looks, model_folder, options, monkeypatch):
    made, seen = [], set()
    own = Ledger.settled
    monkeypatch.setattr(Ledger, "settled", lambda *args: made.append(1) or own(*args))

    def watch(event):
        if event.windows and looks:
            seen.add(event.windows)
            assert event.diagnosis.results.ledger is event.diagnosis.results.ledger  # made once

    fp4scope.diagnose(model_folder, sweep="", formats="nvfp4", progress=watch, **options)
    assert bool(seen) == looks
    assert len(made) == len(seen) + 1  # and once at the end


def test_results_of_another_version_are_refused_with_advice(finished, tmp_path):
    data = json.loads((finished.folder / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(data | {"version": 99}))
    with pytest.raises(
        OutputError, match=f"has version 99; this fp4scope reads version {RESULTS_VERSION}"
    ):
        fp4scope.load(tmp_path)


def test_a_continued_folder_says_when_the_machine_is_another(
    model_folder, options, tmp_path, monkeypatch
):
    notes = []

    def run():
        fp4scope.diagnose(
            model_folder,
            sweep="",
            output_dir=tmp_path,
            progress=lambda event: notes.append(event.note or ""),
            **options,
        )
        return fp4scope.load(tmp_path).results.protocol["sessions"]

    assert len(run()) == len(run()) == 1
    assert not any("begun with" in note for note in notes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert len(run()) == 2
    assert any("begun with" in note for note in notes)


@pytest.fixture
def chunks(monkeypatch):
    """The windows of every chunk that is measured, two at a time."""
    monkeypatch.setitem(memory.SIZES, "cpu", replace(memory.SIZES["cpu"], block_tokens=2 * 32))
    measured = []
    own = Worker.execute

    def execute(self, task, advance):
        measured.append(list(task.windows))
        return own(self, task, advance)

    monkeypatch.setattr(Worker, "execute", execute)
    return measured


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_stopped_and_resumed_equals_run_through(
    model_folder, options, tmp_path, stop_after, chunks
):
    study = options | {"sweep": "projections", "formats": "nvfp4", "direction": "keep"}
    whole = fp4scope.diagnose(model_folder, output_dir=tmp_path / "whole", **study)
    order = list(chunks)
    assert [len(chunk) for chunk in order] == [2, 2, 2]
    in_turn = [window for chunk in order for window in chunk]
    assert sorted(in_turn) == list(range(6)) != in_turn
    chunks.clear()

    def stop(event):
        if event.phase == "measuring" and event.detail == f"{2 * stop_after} of 6 windows":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fp4scope.diagnose(model_folder, output_dir=tmp_path / "parts", progress=stop, **study)
    with pytest.raises(OutputError, match="has not finished"):
        fp4scope.load(tmp_path / "parts")
    parts = fp4scope.diagnose(model_folder, output_dir=tmp_path / "parts", **study)
    assert chunks == order
    assert parts.projections.rows == whole.projections.rows
    assert parts.all_quantized.rows == whole.all_quantized.rows
    for name in ("all_quantized.csv", "projections.csv", "activations.csv", "journal.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_measures_nothing_again(model_folder, options, tmp_path, monkeypatch):
    first = fp4scope.diagnose(model_folder, sweep="", output_dir=tmp_path, **options)
    monkeypatch.setattr(Wavefront, "measure", None)
    again = fp4scope.diagnose(model_folder, sweep="", output_dir=tmp_path, **options)
    assert again.all_quantized.rows == first.all_quantized.rows


def test_chunks_and_order_do_not_change_a_number(model_folder, options, chunks):
    """Another order and other chunks; the jitter, which the seed decides too, aside."""
    seen = []
    for seed in (0, 5):
        d = fp4scope.diagnose(model_folder, sweep="blocks", formats="mxfp4", seed=seed, **options)
        ledger = d.results.ledger
        keys = [(subject, 0, name) for subject in ledger for name in ("nll", "kl", "top1")]
        seen.append(ledger.settled(keys))
    assert chunks[:3] != chunks[3:]
    assert seen[0] == seen[1]


def test_another_study_in_the_folder_is_refused(model_folder, options, tmp_path):
    fp4scope.diagnose(model_folder, sweep="", output_dir=tmp_path, **options)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(StudyError, match=r"another study: .*seq_len is 32 there, 16 here"):
        fp4scope.diagnose(
            model_folder, sweep="", output_dir=tmp_path, **(options | {"seq_len": 16})
        )
    with pytest.raises(StudyError, match="windows is 6 there, 5 here"):
        fp4scope.diagnose(model_folder, sweep="", output_dir=tmp_path, **(options | {"windows": 5}))
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_pattern_that_matches_nothing_is_an_error(model_folder, options):
    with pytest.raises(UnitError, match=r"'\*\.moe\.\*' matches none of the 21 linears"):
        fp4scope.diagnose(model_folder, patterns=["*.moe.*"], **options)


def test_a_sequence_longer_than_the_model_takes(model_folder, options):
    with pytest.raises(StudyError, match=r"seq_len is 256.*takes at most 128"):
        fp4scope.diagnose(model_folder, **(options | {"seq_len": 256}))


def test_overflow_is_named_by_block_and_linear(model_folder, options):
    loaded = load_model(str(model_folder))
    loaded.model.model.layers[1].mlp.up_proj.weight.data *= 1e38
    with pytest.raises(
        NonFiniteError, match=r"model\.layers\.1\.mlp\.down_proj \(block 1, projection down_proj\)"
    ):
        fp4scope.diagnose(loaded.model, tokenizer=loaded.tokenizer, **options)


def test_a_reference_whose_nll_is_not_finite(model_folder, options):
    loaded = load_model(str(model_folder))
    loaded.model.lm_head.weight.data *= float("inf")
    with pytest.raises(NonFiniteError, match="NLL of the full-precision model"):
        fp4scope.diagnose(loaded.model, tokenizer=loaded.tokenizer, **options)


def test_calibrated_and_dynamic_scales_differ_for_nvfp4_only(model_folder, options):
    def run(scale):
        return fp4scope.diagnose(model_folder, sweep="", activation_scale=scale, **options)

    calibrated, dynamic = run("calibrated").all_quantized, run("dynamic").all_quantized
    assert calibrated.where(format="nvfp4")["nll"] != dynamic.where(format="nvfp4")["nll"]
    assert calibrated.where(format="mxfp4:floor").rows == dynamic.where(format="mxfp4:floor").rows


def test_what_is_excluded_is_quantized_nowhere_and_listed(model_folder, options, tmp_path):
    """The all-quantized model is the one without it: restoring an excluded unit is no question."""
    few = options | {"formats": "mxfp4", "sweep": "projections", "windows": 3}
    d = fp4scope.diagnose(model_folder, **few, exclude=["*.mlp.*"], output_dir=tmp_path / "out")
    listed = [(e["projection"], e["linears"], e["reason"]) for e in d.results.model["excluded"]]
    names = ("gate_proj", "up_proj", "down_proj")
    assert listed == [(name, 3, "by *.mlp.*") for name in names]
    assert {c.projection for c in d.results.activations} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "9 linears stay in full precision (gate_proj: 3, by *.mlp.*" in report
    whole = fp4scope.diagnose(model_folder, **few, patterns=["*.mlp.*"])
    kept = whole.patterns.where(direction="keep")["nll"]
    assert d.all_quantized.where(format="mxfp4:floor")["nll"] == kept
    with pytest.raises(StudyError, match="exclude"):
        fp4scope.diagnose(model_folder, **few, output_dir=tmp_path / "out")


def test_linears_that_never_run_stay_in_full_precision(tiny_tokenizer, options):
    """Mamba reads the weight of dt_proj; whatever a model does not call is left alone and said."""
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=2, state_size=4, time_step_rank=4
    )
    model = MambaForCausalLM(config)
    few = options | {"formats": "mxfp4", "sweep": "projections", "windows": 2, "exclude": "none"}
    d = fp4scope.diagnose(model, tokenizer=tiny_tokenizer(), **few, allow_partial=True)
    (excluded,) = d.results.model["excluded"]
    assert (excluded["projection"], excluded["linears"]) == ("dt_proj", 2)
    assert excluded["reason"].startswith("never runs as a module")


def test_widths_that_no_engine_serves_are_said(tiny_tokenizer, options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=100, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    notes = []
    fp4scope.diagnose(
        LlamaForCausalLM(config),
        tokenizer=tiny_tokenizer(),
        **options | {"formats": "nvfp4", "sweep": "projections", "windows": 2},
        progress=lambda event: notes.append(event.note),
    )
    (note,) = [note for note in notes if note and "width" in note]
    assert note.startswith("warning: 2 linears take inputs of width 100, which is no multiple")
