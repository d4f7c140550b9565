"""Results files: all of a study comes back, and what points nowhere is refused."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest

from fp4scope.design import NOTHING, design
from fp4scope.errors import OutputError
from fp4scope.ledger import ActivationRecord, Ledger, Results, results_from_json, results_to_json
from fp4scope.recipes import Site, Sites
from fp4scope.study import Study
from fp4scope.treatments import Amax

BLOCKS, WINDOWS, TOKENS = 3, (4, 0, 2), 10
SITES = Sites(
    [
        Site(
            name=f"model.layers.{b}.{path}", block=b, projection=path.split(".")[1], rows=8, cols=16
        )
        for b in range(BLOCKS)
        for path in ("attn.q_proj", "mlp.up_proj", "mlp.down_proj")
        if (b, path) != (2, "attn.q_proj")
    ],
    BLOCKS + 1,  # the last has none
)


def measured(**options):
    """A study of which every run gave other numbers on three windows, and two estimates."""
    plan = design(Study.build(**{"model": "m", "all_quantized": ""} | options), SITES)
    ledger = Ledger(counted=plan.realisations)
    for number, run in enumerate(plan.runs):
        for window in WINDOWS:
            sums = (number + window / 8, number / 16, number % TOKENS)
            values = dict(zip(run.measures, sums, strict=True))
            ledger.open(run.recipe).put(window, run.replica, TOKENS, values)
    for contrast in plan.contrasts[-2:]:
        for window in (0, 1):
            ledger.open(contrast.own).put(window, 0, TOKENS, {"gradient": window - 0.5})
    return Results(
        study={"numerics": {"replicas": plan.realisations}},
        model={"name": "m", "blocks": BLOCKS + 1},
        data={"windows": 5, "calibration": {"sha256": "c"}},
        protocol={"activation_scale": "calibrated"},
        environment={"python": "3"},
        sites=SITES,
        contrasts=plan.contrasts,
        ledger=ledger,
        activations=[
            ActivationRecord(
                block=0, projection="q_proj", max=2.0, p999=0.0, ratio=None, elements=9
            )
        ],
    )


def test_experts_and_parts_come_back():
    named = {"block": 0, "rows": 4, "cols": 8}
    sites = [
        Site(name="m.0.moe.u", projection="moe.u", experts=3, **named),
        Site(name="m.0.moe.1.d", projection="moe.d", expert=1, **named),
        Site(name="m.0.qkv.q", projection="qkv.q", part="q", **named),
        Site(name="m.0.moe.g.up", projection="moe.g.up", experts=3, part="up", **named),
    ]
    whole = measured()
    plain = Ledger({NOTHING: whole.ledger[NOTHING]}, counted=1)
    results = replace(whole, sites=Sites(sites, 4), contrasts=[], ledger=plain)
    found = results_from_json(json.dumps(results_to_json(results)).encode()).sites
    assert list(found) == sites
    assert [site.product for site in found] == ["m.0.moe.u", "m.0.moe.d", "m.0.qkv", "m.0.moe.g"]


def equal(one, other):
    """Whether two results say the same."""
    names = ("study", "model", "data", "protocol", "environment", "activations")
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]
    assert list(one.sites) == list(other.sites)
    assert one.sites.blocks == other.sites.blocks
    assert list(one.contrasts) == list(other.contrasts)
    assert one.ledger == other.ledger
    return True


@pytest.mark.parametrize(
    "options",
    [
        {"formats": "nvfp4", "sweep": "projections"},
        {"formats": "nvfp4,mxfp4", "sweep": "projections,blocks,layers", "jitter": 3},
        {"formats": "nvfp4", "sweep": (), "patterns": ["*.1.*", "re:.*attn"], "replicas": 2},
        {"formats": "nvfp4,mxfp4", "activation_scale": "dynamic", "sweep": "layers"},
        {"formats": "nvfp4", "all_quantized": "mxfp4:even/weights", "sweep": "blocks"},
    ],
)
def test_all_of_a_study_comes_back(options):
    results = measured(**options)
    text = json.dumps(results_to_json(results, {"nvfp4": 0.25})).encode()
    found = results_from_json(text)
    assert equal(found, results)
    amax = {c.family.setting.input and c.family.setting.input.amax for c in found.contrasts}
    assert (Amax.WINDOW in amax) == ("activation_scale" in options)
    assert json.dumps(results_to_json(found, {"nvfp4": 0.25})).encode() == text
    assert equal(results_from_json(json.loads(text)), results)


def test_rows_of_the_same_windows_say_so_once():
    data = results_to_json(measured(formats="nvfp4", sweep="layers", direction="only"))
    ledger = data["ledgers"]["text"]
    assert len(ledger["rows"]) == 1 + 1 + len(SITES)
    # Whole models with their perturbed runs, units, and the two units with estimates.
    assert len(ledger["places"]) == 3


@pytest.fixture(scope="module")
def whole():
    return results_to_json(measured(formats="nvfp4", sweep="projections", patterns=["*.1.*"]))


def first(kind):
    """The first recipe, or contrast, that has sites."""

    def find(data):
        if kind == "recipes":
            return next(r for r in data["recipes"].values() if r["edits"])["edits"][0]
        return next(c for c in data["contrasts"] if c["unit"])["unit"]

    return find


def damage(change):
    def build(data):
        data = deepcopy(data)
        change(data)
        return data

    return build


def _set(data, key, value):
    data[key] = value


DAMAGE = {
    "site of a recipe": (lambda d: _set(first("recipes")(d), "sites", [8]), "no site 8 among 8"),
    "site of a unit": (lambda d: _set(first("contrasts")(d), "sites", [0, 99]), "no site 99"),
    "negative site": (lambda d: _set(first("contrasts")(d), "sites", [-1]), "sites"),
    "recipe of a term": (
        lambda d: _set(d["contrasts"][1]["terms"], 0, ["x", 1]), "no recipe 'x'"
    ),
    "recipe of a row": (lambda d: _set(d["ledgers"]["text"]["rows"][1], "recipe", "x"), "'x'"),
    "place of a row": (lambda d: _set(d["ledgers"]["text"]["rows"][1], "place", 9), "no place 9"),
    "a row twice": (
        lambda d: d["ledgers"]["text"]["rows"].append(d["ledgers"]["text"]["rows"][0]),
        "has rows twice",
    ),
    "a recipe twice": (
        lambda d: _set(d["recipes"], "x", next(iter(d["recipes"].values()))), "one comes twice"
    ),
    "a contrast twice": (lambda d: d["contrasts"].append(d["contrasts"][0]), "one comes twice"),
    "a site twice": (lambda d: _set(d["sites"], 1, d["sites"][0]), "a name comes twice"),
    "a block beyond": (
        lambda d: d["sites"].append(["model.layers.9.q", 9, "q", 1, 1]), "there is a block 9"
    ),
    "both signs alike": (
        lambda d: [_set(t, 1, 1) for t in d["contrasts"][0]["terms"]], "signs"
    ),
    "three terms": (
        lambda d: d["contrasts"][0]["terms"].append(d["contrasts"][0]["terms"][0]), "signs"
    ),
    "no direction": (lambda d: _set(d["contrasts"][1], "direction", None), "direction None"),
    "no unit": (lambda d: _set(d["contrasts"][1], "unit", None), "unit None"),
    "no such format": (lambda d: _set(d["contrasts"][0], "setting", {"weight": "nvfp5"}), "nvfp5"),
    "no operand": (lambda d: _set(d["contrasts"][0], "setting", {}), "neither operand"),
    "what is compared with": (
        lambda d: [
            row["values"].clear()
            for row in d["ledgers"]["text"]["rows"]
            if d["recipes"][row["recipe"]] == {"base": None, "edits": []}
        ],
        "full-precision model was not measured",
    ),
    "nothing measured": (
        lambda d: d["ledgers"]["text"]["rows"].clear(),
        "full-precision model was not measured",
    ),
    "a shorter column": (
        lambda d: d["ledgers"]["text"]["rows"][2]["values"]["kl"].pop(), "not equally long"
    ),
    "a window twice": (
        lambda d: _set(d["ledgers"]["text"]["places"][0]["indices"], 0, 0), "comes twice"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_points_nowhere_or_comes_twice_is_one_message(whole, kind):
    change, words = DAMAGE[kind]
    data = damage(change)(whole)
    with pytest.raises(OutputError, match="or it is damaged") as caught:
        results_from_json(json.dumps(data).encode(), "here/results.json")
    message = str(caught.value)
    assert message.startswith("here/results.json is not a results file of fp4scope")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("version", [3, 6, "5", None])
def test_another_version_is_said(whole, version):
    data = whole | {"version": version}
    with pytest.raises(OutputError, match=r"reads version 5, and version 4 of 0\.1"):
        results_from_json(json.dumps(data).encode())
