"""Which linears a variant of the plan quantizes: components, blocks, cells, patterns, experts."""

from fnmatch import fnmatchcase

import pytest
from torch import nn

from fp4scope.errors import UnitError
from fp4scope.formats import FORMATS
from fp4scope.models import find_layout
from fp4scope.records import REFERENCE
from fp4scope.study import Study
from fp4scope.sweep import plan
from fp4scope.treatments import Setting, Treatment


def study(**options):
    return Study.build(**{"model": "m", "formats": "mxfp4", "direction": "isolate"} | options)


def planned_for(study, layout):
    """The plan without its controls and replicas, which repeat the reference and the baselines."""
    return [v for v in plan(study, layout.sites) if not v.replica]


def settings_of(planned, layout):
    return dict(planned.recipe.in_block(layout.sites))


def test_units_name_the_linears_they_say(family, tiny_model):
    layout = find_layout(tiny_model(family))
    options = {"sweep": "components,blocks,cells", "direction": "isolate,restore"}
    variants = planned_for(study(**options, patterns="*.1.*"), layout)
    units = len(layout.components) + layout.blocks + len(layout.cells) + 1
    assert len(variants) == 2 + 2 * units
    assert len({v.variant.key for v in variants}) == len(variants)

    everything = set(layout.linears)
    expected = {
        "components": lambda v, name: name.endswith(f".{v.unit}"),
        "blocks": lambda v, name: name.startswith(f"{layout.blocks_path}.{v.block}."),
        "cells": lambda v, name: (
            name.endswith(f".{v.unit}") and name.startswith(f"{layout.blocks_path}.{v.block}.")
        ),
        "patterns": lambda v, name: fnmatchcase(name, v.unit),
    }
    for planned in variants[2:]:
        variant = planned.variant
        unit = {name for name in everything if expected[variant.level](variant, name)}
        assert unit
        chosen = unit if variant.direction == "isolate" else everything - unit
        assert set(settings_of(planned, layout)) == chosen, variant.key


def test_reference_quantizes_nothing_and_baseline_everything(family, tiny_model):
    layout = find_layout(tiny_model(family))
    reference, baseline = planned_for(study(sweep=()), layout)
    assert settings_of(reference, layout) == {}
    assert set(settings_of(baseline, layout)) == set(layout.linears)
    controls = [v for v in plan(study(sweep=()), layout.sites) if v.variant.direction == "jitter"]
    assert [v.recipe for v in controls] == [reference.recipe, baseline.recipe]
    assert [v.against for v in controls] == [reference.variant, baseline.variant]
    assert [v.replica for v in controls] == [1, 1]


@pytest.mark.parametrize(
    ("operands", "weights", "activations"),
    [("weights+activations", True, True), ("weights", True, False), ("activations", False, True)],
)
@pytest.mark.parametrize("name", FORMATS)
def test_operands(operands, weights, activations, name, tiny_model):
    layout = find_layout(tiny_model("gpt2"))
    treated = Treatment(FORMATS[name])
    setting = Setting(treated if weights else None, treated if activations else None)
    for planned in planned_for(study(formats=name, operands=operands, sweep="cells"), layout)[1:]:
        assert set(settings_of(planned, layout).values()) == {setting}


def test_a_cell_holds_all_experts_of_its_block():
    class Moe(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(
                nn.ModuleDict({"up_proj": nn.Linear(32, 32), "down_proj": nn.Linear(32, 32)})
                for _ in range(3)
            )

    model = nn.Module()
    model.layers = nn.ModuleList(Moe() for _ in range(2))
    layout = find_layout(model)
    variants = planned_for(study(sweep="cells"), layout)
    by_key = {v.variant.key: set(settings_of(v, layout)) for v in variants}
    assert by_key["mxfp4:floor|weights+activations|isolate|cells|1.up_proj"] == {
        f"layers.1.experts.{i}.up_proj" for i in range(3)
    }
    assert len(by_key) == 2 + 4


def test_a_pattern_that_matches_nothing_is_an_error(tiny_model):
    with pytest.raises(UnitError, match="matches none of the 8 linears"):
        planned_for(study(patterns="*.mlp.*,*.experts.*"), find_layout(tiny_model("gpt2")))


def replicas(layout, **options):
    """The numbers of the replicas that each baseline has, by format and operands."""
    found = {}
    for planned in plan(study(**options), layout.sites):
        if planned.variant.direction == "replica":
            assert set(settings_of(planned, layout)) == set(layout.linears)
            assert planned.against == REFERENCE
            name = (planned.variant.format, planned.variant.operands)
            found.setdefault(name, []).append(planned.replica)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Of two blocks. A baseline and seven components: 8% of the work of 8 baselines.
        ({"sweep": "components", "direction": "restore"}, [1]),
        # With 14 cells, of which half run both blocks, in two directions: 8% of 36.
        ({"sweep": "components,cells", "direction": "restore,isolate"}, [1, 2, 3]),
        # Three realisations of each: 8% of 3 * 36, and 8 at most. The baseline has the first three.
        (
            {"sweep": "components,cells", "direction": "restore,isolate", "replicas": 3},
            [3, 4, 5, 6, 7, 8, 9, 10],
        ),
        ({"sweep": "components", "direction": "restore", "jitter": 2, "replicas": 3}, [3, 4]),
        ({"sweep": "components", "direction": "restore", "jitter": 20}, list(range(1, 21))),
    ],
)
def test_how_many_replicas_a_baseline_has(options, expected, tiny_model):
    layout = find_layout(tiny_model("llama"))
    assert replicas(layout, **options) == {("mxfp4:floor", "weights+activations"): expected}


@pytest.mark.parametrize(
    "options",
    [
        {"direction": "isolate"},
        {"sweep": ()},
        {"operands": "weights"},  # not chaotic
        {"stop_when": "best=1"},
    ],
)
def test_no_replicas_where_nothing_uses_them(options, tiny_model):
    layout = find_layout(tiny_model("llama"))
    assert replicas(layout, **{"direction": "restore", "baselines": "nvfp4"} | options) == {}


def test_formats_of_which_only_the_baseline_is_measured_have_no_replicas(tiny_model):
    layout = find_layout(tiny_model("llama"))
    found = replicas(layout, direction="restore", sweep="cells", baselines="nvfp4")
    assert list(found) == [("mxfp4:floor", "weights+activations")]
