"""Which linears a run of the design quantizes: projections, blocks, layers, patterns, experts."""

from fnmatch import fnmatchcase

import pytest
from torch import nn

from fp4scope.design import NOTHING, design
from fp4scope.errors import UnitError
from fp4scope.formats import FORMATS
from fp4scope.models import find_layout
from fp4scope.study import Study
from fp4scope.treatments import Setting, Treatment


def study(**options):
    return Study.build(
        **{"model": "m", "formats": "mxfp4", "direction": "only", "all_quantized": ""} | options
    )


def planned_for(study, layout):
    """What runs, without controls and replicas, which repeat it."""
    return [run for run in design(study, layout.sites).runs if not run.replica]


def settings_of(recipe, layout):
    return dict(recipe.in_block(layout.sites))


def test_units_name_the_linears_they_say(family, tiny_model):
    layout = find_layout(tiny_model(family))
    options = {"sweep": "projections,blocks,layers", "direction": "only,keep"}
    asked = study(**options, patterns="*.1.*")
    contrasts = [c for c in design(asked, layout.sites).contrasts if c.unit is not None]
    units = len(layout.projections) + layout.blocks + len(layout.layers) + 1
    assert len(contrasts) == 2 * units
    assert len({contrast.name for contrast in contrasts}) == len(contrasts)
    assert len(planned_for(asked, layout)) == 2 + len({c.own for c in contrasts})

    everything = set(layout.linears)
    expected = {
        "projections": lambda u, name: name.endswith(f".{u.name}"),
        "blocks": lambda u, name: name.startswith(f"{layout.blocks_path}.{u.block}."),
        "layers": lambda u, name: (
            name.endswith(f".{u.name}") and name.startswith(f"{layout.blocks_path}.{u.block}.")
        ),
        "patterns": lambda u, name: fnmatchcase(name, u.name),
    }
    for contrast in contrasts:
        unit = contrast.unit
        names = {name for name in everything if expected[unit.level](unit, name)}
        assert names
        chosen = names if contrast.labels["direction"] == "only" else everything - names
        assert set(settings_of(contrast.own, layout)) == chosen, contrast.name


def test_reference_quantizes_nothing_and_all_quantized_everything(family, tiny_model):
    layout = find_layout(tiny_model(family))
    reference, baseline = planned_for(study(sweep=()), layout)
    assert settings_of(reference.recipe, layout) == {}
    assert set(settings_of(baseline.recipe, layout)) == set(layout.linears)
    controls = [run for run in design(study(sweep=()), layout.sites).runs if run.replica]
    assert [run.recipe for run in controls] == [reference.recipe, baseline.recipe]
    assert [run.against for run in controls] == [reference.recipe, baseline.recipe]
    assert [run.replica for run in controls] == [1, 1]


@pytest.mark.parametrize(
    ("operands", "weights", "activations"),
    [("weights+activations", True, True), ("weights", True, False), ("activations", False, True)],
)
@pytest.mark.parametrize("name", FORMATS)
def test_operands(operands, weights, activations, name, tiny_model):
    layout = find_layout(tiny_model("gpt2"))
    treated = Treatment(FORMATS[name])
    setting = Setting(treated if weights else None, treated if activations else None)
    for planned in planned_for(study(formats=name, operands=operands, sweep="layers"), layout)[1:]:
        assert set(settings_of(planned.recipe, layout).values()) == {setting}


def test_a_layer_holds_all_experts_of_its_block():
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
    units = {c.unit for c in design(study(sweep="layers"), layout.sites).contrasts if c.unit}
    by_place = {(unit.name, unit.block): unit.sites for unit in units}
    assert by_place["experts.*.up_proj", 1] == {f"layers.1.experts.{i}.up_proj" for i in range(3)}
    assert len(units) == 4


def test_a_pattern_that_matches_nothing_is_an_error(tiny_model):
    with pytest.raises(UnitError, match="matches none of the 8 linears"):
        planned_for(study(patterns="*.mlp.*,*.experts.*"), find_layout(tiny_model("gpt2")))


def replicas(layout, **options):
    """The numbers of the replicas that each all-quantized model has, by format and precision."""
    asked = study(**options)
    found = {}
    for run in design(asked, layout.sites).runs:
        if run.replica >= asked.numerics.replicas and run.recipe != NOTHING == run.against:
            assert set(settings_of(run.recipe, layout)) == set(layout.linears)
            (setting,) = run.recipe.settings
            found.setdefault((setting.format, setting.precision), []).append(run.replica)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Of two blocks. A baseline and seven projections: 8% of the work of 8 baselines.
        ({"sweep": "projections", "direction": "keep"}, [1]),
        # With 14 layers, of which half run both blocks, in two directions: 8% of 36.
        ({"sweep": "projections,layers", "direction": "keep,only"}, [1, 2, 3]),
        # Three realisations of each: 8% of 3 * 36, and 8 at most. The first three are there anyway.
        (
            {"sweep": "projections,layers", "direction": "keep,only", "replicas": 3},
            [3, 4, 5, 6, 7, 8, 9, 10],
        ),
        ({"sweep": "projections", "direction": "keep", "jitter": 2, "replicas": 3}, [3, 4]),
        ({"sweep": "projections", "direction": "keep", "jitter": 20}, list(range(1, 21))),
    ],
)
def test_how_many_replicas_a_all_quantized_has(options, expected, tiny_model):
    layout = find_layout(tiny_model("llama"))
    assert replicas(layout, **options) == {("mxfp4:floor", "W4A4"): expected}


@pytest.mark.parametrize(
    "options",
    [
        {"direction": "only"},
        {"sweep": ()},
        {"operands": "weights"},  # not chaotic
        {"stop_when": "best=1"},
    ],
)
def test_no_replicas_where_nothing_uses_them(options, tiny_model):
    layout = find_layout(tiny_model("llama"))
    assert replicas(layout, **{"direction": "keep", "all_quantized": "nvfp4"} | options) == {}


def test_formats_of_which_only_the_all_quantized_is_measured_have_no_replicas(tiny_model):
    layout = find_layout(tiny_model("llama"))
    found = replicas(layout, direction="keep", sweep="layers", baselines="nvfp4")
    assert list(found) == [("mxfp4:floor", "W4A4")]
