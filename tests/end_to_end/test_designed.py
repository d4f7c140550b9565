"""A designed sweep of a tiny model: run, stopped, gone on with, and read again."""

import pytest

import fp4scope
from fp4scope.cli.tables import main_tables
from fp4scope.stats import effects


@pytest.fixture(scope="module")
def designed(model_folder, text_file, tmp_path_factory):
    return fp4scope.diagnose(
        model_folder,
        text=str(text_file),
        seq_len=32,
        windows=8,
        calibration_windows=4,
        calibration_seq_len=32,
        all_quantized="",
        formats="nvfp4",
        method="designed",
        output_dir=tmp_path_factory.mktemp("out"),
    )


def test_every_group_of_an_engine_has_an_effect(designed):
    found = effects(designed.results)
    assert [(group.block, group.name) for group in found.groups] == [
        (block, name)
        for block in range(3)
        for name in (
            "self_attn.q_proj+k_proj+v_proj", "self_attn.o_proj",
            "mlp.gate_proj+up_proj", "mlp.down_proj",
        )
    ]  # fmt: skip
    assert found.by_window.shape == (8, 12, 1)
    assert found.predict(designed.results.contrasts[0].own).mean > 0


def test_they_are_in_the_results_as_they_were(designed):
    again = fp4scope.load(designed.folder).results
    for measure in ("nll", "kl"):
        ours, theirs = effects(designed.results, measure), effects(again, measure)
        assert (ours.groups, ours.settings) == (theirs.groups, theirs.settings)
        assert (ours.by_window == theirs.by_window).all()


def test_no_unit_is_measured(designed):
    rows = designed.results.ledger
    assert not any(c.own in rows for c in designed.results.contrasts if c.unit is not None)


def test_every_report_has_its_table(designed):
    title = "What quantizing this costs, on average over what else is quantized"
    assert title in designed.report()
    assert title in designed.html()
    assert title in designed._repr_html_()
    assert title in {section.title for section in main_tables(designed)}
    rows = designed.effects.rows
    assert (designed.folder / "effects.csv").read_text().count("\n") == 1 + len(rows) == 1 + 12
    figure = designed.plot("effects", metric="kl")
    assert sum(axis.get_visible() for axis in figure.axes) == 4  # a panel for each kind of group


def test_effects_stand_beside_what_the_whole_model_costs(designed):
    (nll, kl) = designed.effect_sums.rows
    assert (nll["measure"], kl["measure"]) == ("nll", "kl")
    whole = designed.all_quantized.where(format="nvfp4")[0]
    assert kl["whole"] == pytest.approx(whole["kl"])
    assert nll["whole"] == pytest.approx(whole["delta_nll"])
    assert kl["gap"] == pytest.approx(kl["sum"] - kl["whole"])
    assert kl["sum"] == pytest.approx(sum(row["delta_kl"] for row in designed.effects))


def test_exact_and_designed_go_together_and_a_time_stops_both(
    designed, model_folder, options, tmp_path
):
    both = options | {"windows": 3, "formats": "nvfp4", "sweep": "projections"}
    first = fp4scope.diagnose(model_folder, **both, method="designed", output_dir=tmp_path)
    assert effects(first.results) is not None
    then = fp4scope.diagnose(model_folder, **both, method="exact", output_dir=tmp_path)
    assert effects(then.results) is not None  # what was measured before is kept
    assert all(contrast.own in then.results.ledger for contrast in then.results.contrasts)
    timed = fp4scope.diagnose(
        model_folder, **both | {"windows": 12}, method="exact,designed", stop_when="1s"
    )
    seen = effects(timed.results).windows
    assert len(seen) == timed.results.protocol["stopping"]["windows"] <= 12
