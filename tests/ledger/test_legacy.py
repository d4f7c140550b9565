"""Results of version 4, which 0.1 wrote: what its variants are now."""

import json
from pathlib import Path

import pytest

import fp4scope
from fp4scope.design import NOTHING
from fp4scope.diagnosis import Diagnosis
from fp4scope.errors import OutputError
from fp4scope.ledger import Rows, results_from_json, results_to_json
from fp4scope.recipes import Recipe
from fp4scope.report.markdown import markdown
from fp4scope.stats import rerun_noise, unit_table
from fp4scope.stats.findings.controls import luck_of
from fp4scope.study import Direction
from fp4scope.treatments import Amax, Setting

ROOT = Path(__file__).parents[2]
BOTH = "weights+activations"
WINDOWS = [0, 1]
NVFP4 = Recipe(Setting.from_json("nvfp4"))
PROJECTIONS = [
    {"component": "q_proj", "path": "attn.q_proj", "blocks": [0, 1]},
    {"component": "up_proj", "path": "mlp.up_proj", "blocks": [1]},
]


def variant(direction, level="model", unit="", block=None, format="nvfp4"):
    operands = "" if format == "reference" else BOTH
    names = {"format": format, "operands": operands, "direction": direction, "level": level}
    return names | {"unit": unit, "block": block}


def sums(of, nll, place=0, kl=0.5, top1=7):
    count = len(nll)
    return {"variant": of, "place": place, "nll": nll, "kl": [kl] * count, "top1": [top1] * count}


REFERENCE = variant("reference", format="reference")
PLACES = [
    {"windows": WINDOWS, "replicas": [0, 0], "tokens": [10, 10]},
    {"windows": WINDOWS, "replicas": [1, 1], "tokens": [10, 10]},
    {"windows": WINDOWS * 2, "replicas": [1, 1, 2, 2], "tokens": [10] * 4},
]
WHOLE = [
    sums(REFERENCE, [20.0, 30.0], kl=0.0, top1=10),
    sums(variant("baseline"), [25.0, 36.0]),
]


def read(observations, estimates=(), **model):
    """What is read of a file with these."""
    data = {
        "version": 4,
        "study": {"replicas": 1},
        "model": {"blocks": 2} | model,
        "data": {"windows": 2},
        "protocol": {"activation_scale": "calibrated"},
        "environment": {},
        "summary": {},
        "places": PLACES,
        "observations": observations,
        "estimates": {"windows": WINDOWS, "tokens": [10, 10], "units": list(estimates)},
        "activations": [],
    }
    if not estimates:
        data["estimates"] |= {"windows": [], "tokens": []}
    found = results_from_json(json.dumps(data).encode())
    again = results_from_json(json.dumps(results_to_json(found)).encode())
    assert list(again.contrasts) == list(found.contrasts)
    assert again.ledger == found.ledger
    return found


def test_the_reference_is_the_full_precision_model_and_a_baseline_a_contrast():
    found = read(WHOLE)
    (contrast,) = found.contrasts
    assert contrast.terms == ((NVFP4, 1), (NOTHING, -1))
    values = {"nll": [20.0, 30.0], "kl": [0.0, 0.0], "top1": [10, 10]}
    assert found.ledger[NOTHING] == Rows(WINDOWS, [0, 0], [10, 10], values)
    assert found.ledger[NVFP4].values["nll"] == [25.0, 36.0]


def test_jitter_is_a_further_replica_that_is_compared_with_the_model_itself():
    jitters = [
        sums(variant("jitter", format="reference"), [20.5, 30.5], place=1, kl=0.25),
        sums(variant("jitter"), [26.0, 38.0], place=1, kl=0.75, top1=6),
    ]
    found = read([*WHOLE, *jitters])
    assert len(found.contrasts) == 1
    assert found.ledger[NOTHING].replicas == found.ledger[NVFP4].replicas == [0, 0, 1, 1]
    plain, own = found.ledger[NOTHING].values, found.ledger[NVFP4].values
    # Of the full-precision model both comparisons are the same one.
    assert plain == {"nll": [20.0, 30.0, 20.5, 30.5], "kl": [0, 0, 0.25, 0.25],
                     "top1": [10, 10, 7, 7]}  # fmt: skip
    assert own["nll"] == [25.0, 36.0, 26.0, 38.0]
    assert own["kl"] == [0.5, 0.5, None, None]
    assert own["rerun_kl"] == [None, None, 0.75, 0.75]
    assert own["rerun_top1"] == [None, None, 6, 6]
    assert rerun_noise(found, NVFP4).kl == pytest.approx(0.075)


def test_a_replica_is_compared_with_full_precision_and_shares_rows_with_jitter():
    more = [
        sums(variant("jitter"), [26.0, 38.0], place=1, kl=0.75),
        sums(variant("replica"), [26.0, 38.0, 27.0, 34.0], place=2, kl=0.25),
    ]
    found = read([*WHOLE, *more])
    rows = found.ledger[NVFP4]
    assert rows.replicas == [0, 0, 1, 1, 2, 2]
    assert rows.values["nll"] == [25.0, 36.0, 26.0, 38.0, 27.0, 34.0]
    assert rows.values["kl"] == [0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert rows.values["rerun_kl"] == [None, None, 0.75, 0.75, None, None]
    luck = luck_of(found.ledger, NVFP4, "nll")
    assert luck.values == pytest.approx([2.5 - 2.65, 3.6 - 3.6])


@pytest.mark.parametrize(
    ("of", "direction"), [("restore", Direction.KEEP), ("isolate", Direction.ONLY)]
)
def test_units_have_the_sites_that_projections_say(of, direction):
    units = [
        variant(of, "components", "q_proj"),
        variant(of, "blocks", block=1),
        variant(of, "cells", "q_proj", 1),
        variant(of, "patterns", "*.1.attn.*"),
        variant(of, "patterns", "model.layers.0.*"),
    ]
    found = read(
        [*WHOLE, *(sums(u, [24.0 + i, 33.0]) for i, u in enumerate(units))], projections=PROJECTIONS
    )
    q = {b: f"blocks.{b}.attn.q_proj" for b in (0, 1)}
    sites = [set(c.unit.sites) for c in found.contrasts[1:]]
    # Names of 0.1's sites are not known: a pattern of them has a site of its own name.
    assert sites == [
        {q[0], q[1]}, {q[1], "blocks.1.mlp.up_proj"}, {q[1]}, {q[1]}, {"model.layers.0.*"},
    ]  # fmt: skip
    for contrast in found.contrasts[1:]:
        assert contrast.family.direction is direction
        assert contrast.own in found.ledger
    assert [s.name for s in found.sites if s.projection == "q_proj"] == list(q.values())
    (projection,) = unit_table(found, "projections")
    sign = -1 if direction is Direction.KEEP else 1
    compared = [25.0, 36.0] if direction is Direction.KEEP else [20.0, 30.0]
    cost = sign * ((24.0 - compared[0]) + (33.0 - compared[1])) / 20
    assert projection["delta_nll"] == pytest.approx(cost)
    assert len(unit_table(found, "patterns")) == 2


def test_cells_say_where_components_are_where_projections_do_not():
    cell = variant("isolate", "cells", "up_proj", 1)
    component = variant("isolate", "components", "up_proj")
    found = read([*WHOLE, sums(component, [21.0, 31.0]), sums(cell, [22.0, 32.0])])
    assert [(s.projection, s.block) for s in found.sites] == [("up_proj", 1)]
    assert [set(c.unit.sites) for c in found.contrasts[1:]] == [{"blocks.1.up_proj"}] * 2


def test_estimates_are_a_measure_of_the_contrasts_own_recipe():
    q, up = variant("restore", "components", "q_proj"), variant("isolate", "components", "up_proj")
    found = read(
        [*WHOLE, sums(q, [24.0, 35.0])],
        [{"variant": q, "nats": [1.0, -2.0]}, {"variant": up, "nats": [3.0, 4.0]}],
        projections=PROJECTIONS,
    )
    measured, only = found.contrasts[1:]
    values = {"nll": [24.0, 35.0], "kl": [0.5, 0.5], "top1": [7, 7], "gradient": [1.0, -2.0]}
    assert found.ledger[measured.own].values == values
    assert found.ledger[only.own] == Rows(WINDOWS, [0, 0], [10, 10], {"gradient": [3.0, 4.0]})
    rows = {row["projection"]: row for row in unit_table(found, "projections")}
    assert rows["q_proj"]["gradient_nll"] == pytest.approx(-0.05)
    assert rows["up_proj"]["ppl"] is None


def test_a_file_of_0_1_has_the_tables_of_the_same_run_today():
    old = fp4scope.load(ROOT / "tests" / "data" / "version_0_1")
    path = ROOT / "docs" / "results" / "checks" / "weights" / "results.json"
    kept = json.loads(path.read_bytes())
    assert kept["sites"][0][3:] == [896, 896]  # which 0.1 did not write
    kept["sites"] = [[*site[:3], 0, 0] for site in kept["sites"]]
    kept["model"] = {name: kept["model"][name] for name in old.results.model}
    new = Diagnosis(results_from_json(kept))
    assert len(old.projections) == len(new.projections) > 7
    for name in ("all_quantized", "projections", "projection_activations"):
        assert getattr(old, name).to_csv() == getattr(new, name).to_csv()
    assert markdown(old) == markdown(new)


def test_dynamic_scales_are_each_windows_own():
    data = {"protocol": {"activation_scale": "dynamic"}}
    text = {
        "version": 4, "study": {}, "model": {}, "data": {}, "environment": {}, "summary": {},
        "places": PLACES, "observations": WHOLE, "activations": [],
        "estimates": {"windows": [], "tokens": [], "units": []},
    }  # fmt: skip
    (contrast,) = results_from_json(text | data).contrasts
    assert contrast.family.setting.input.amax is Amax.WINDOW
    assert contrast.family.setting.weight.amax is Amax.CALIBRATED


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([WHOLE[1]], "its variant comes twice"),
        ([sums(variant("isolate", "components", "q_proj"), [1.0, 1.0], place=9)], "has no place"),
        ([sums(variant("isolate", "components"), [1.0, 1.0])], "is not that of level"),
        ([sums(variant("up", "components", "q"), [1.0, 1.0])], "direction is 'up'"),
        ([sums(variant("baseline", format="../x"), [1.0, 1.0])], "'../x' with operands"),
        ([sums(variant("isolate", "components", "q_proj"), [1.0])], "not equally long"),
    ],
)
def test_damage_is_one_message(more, words):
    with pytest.raises(OutputError, match="or it is damaged") as caught:
        read([*WHOLE, *more], projections=PROJECTIONS)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_estimate_of_a_whole_model_is_refused():
    with pytest.raises(OutputError, match="a control is not estimated"):
        read(WHOLE, [{"variant": variant("baseline"), "nats": [1.0, 2.0]}])
