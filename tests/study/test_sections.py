"""Sections and flat names, other spellings, files of both versions, and what is identity."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fp4scope.errors import StudyError
from fp4scope.formats import FORMATS
from fp4scope.study import (
    PLACES,
    SECTIONS,
    Direction,
    Level,
    Operands,
    Study,
    Switch,
    flatten,
    in_sections,
    read_options,
)
from fp4scope.study.goals import BestGoal, TimeGoal, WidthGoal

OLD = Path(__file__).parents[1] / "data" / "version_0_1" / "study.yaml"


def test_flat_names_and_sections_say_the_same():
    flat = Study.build(model="m", seq_len=16, formats="nvfp4", seed=3, method="gradient")
    nested = Study.build(
        model={"name": "m"}, data={"seq-len": 16}, question={"formats": ["nvfp4"]}, seed=3,
        run={"method": "gradient"},
    )  # fmt: skip
    assert flat == nested
    assert flatten(flat.model_dump()) == flatten({"model": "m"}) | flatten(flat.model_dump())


def test_a_flat_name_says_one_field():
    fields = [field for kind in SECTIONS.values() for field in kind.model_fields]
    assert len(fields) == len(set(fields)) == len(PLACES)
    assert not {"model", "preset", "version", *SECTIONS} & set(fields)


def test_every_field_is_described():
    for kind in SECTIONS.values():
        for name, field in kind.model_fields.items():
            assert field.description, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": 4}, "data is 4; it is a section: give a mapping of options"),
        ({"data": {"seq_length": 4}}, "unknown option 'seq_length' in data; did you mean seq_len"),
        ({"data": {"formats": "nvfp4"}}, "unknown option 'formats' in data"),
        ({"model": {"names": "m"}}, "unknown option 'names' in model; did you mean name"),
        ({"question": {"formats": ""}}, "formats is empty"),
    ],
)
def test_what_is_wrong_with_a_section(options, message):
    with pytest.raises(StudyError, match=message):
        Study.build(**{"model": "m"} | options)


@pytest.mark.parametrize("name", sorted(PLACES))
def test_an_option_has_one_value_under_all_its_names(name):
    section, field = PLACES[name]
    for other in SECTIONS[section].option(field).also:
        assert flatten({other: "x", other.replace("_", "-"): "x"}) == {name: "x"}
        assert flatten({section: {other: "x"}}) == {name: "x"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"operands": "weights+activations,weights"}, {"operands": "w4a4,w4a16"}),
        ({"operands": "w8a8,w8a16,w16a8"}, {"operands": "w4a4,w4a16,w16a4"}),
        ({"sweep": "projections,layers:only"}, {"sweep": "projections,layers:only"}),
        ({"layers": "down_proj"}, {"layers": "down_proj"}),
        ({"all_quantized": "nvfp4/activations"}, {"all_quantized": "nvfp4/w16a4"}),
        ({"pattern": ["*.0.*"]}, {"patterns": ["*.0.*"]}),
        ({"limit": 4}, {"windows": 4}),
        ({"activation_scale": "static"}, {"activation_scale": "calibrated"}),
    ],
)
def test_old_and_borrowed_words(given, meant):
    assert Study.build(model="m", **given) == Study.build(model="m", **meant)


def test_what_results_call_a_word_is_read_too():
    assert Direction("keep") is Direction("keep") is Direction.KEEP
    assert Level("layers") is Level("layers") is Level.LAYERS
    assert Operands("w4a16") is Operands("weights") is Operands.WEIGHTS
    with pytest.raises(ValueError, match="sideways"):
        Direction("sideways")


# Files.


def test_a_study_of_the_version_before(tmp_path):
    old = yaml.safe_load(OLD.read_text())
    study = Study.build(**read_options(OLD))
    assert old["version"] == 1
    assert study.model.name == old["model"]
    assert study.data.seq_len == old["seq_len"]
    assert [str(one) for one in study.question.formats] == old["formats"]
    assert [own.spellings[-1] for own in study.question.operands] == old["operands"]
    assert len(study.question.all_quantized) == len(old["baselines"])
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    assert Study.build(**read_options(tmp_path / "study.yaml")) == study


def test_results_of_the_version_before_have_sections_when_read():
    flat = {"version": 1, "model": "m", "operands": ["weights"], "replicas": 3, "layers": ["a"]}
    found = in_sections(flat)
    assert found == Study.build(model="m", operands="w4a16", replicas=3, layers="a").model_dump(
        mode="json"
    )
    assert in_sections(found) == found


def test_results_of_a_study_that_this_version_cannot_run():
    flat = {"operands": ["w2a2"], "replicas": 3, "new": [1], "run": {"memory": "x"}}
    assert in_sections(flat) == {
        "question": {"operands": ["w2a2"]},
        "numerics": {"replicas": 3},
        "new": [1],
        "run": {"memory": "x"},
    }
    assert in_sections([]) == []


_WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_NATS = st.floats(1e-6, 10, allow_nan=False)
_GOALS = st.one_of(
    st.floats(1e-3, 1e9).map(TimeGoal),
    _NATS.map(WidthGoal),
    st.builds(BestGoal, st.integers(1, 10**8), _NATS, st.floats(1e-9, 0.4999)),
)
_PATTERNS = st.lists(_WORDS.filter(lambda word: not word.startswith("re:")), max_size=3)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    model=_WORDS,
    options=st.fixed_dictionaries(
        {},
        optional={
            "revision": _WORDS,
            "text": _WORDS,
            "windows": st.integers(1, 2**60),
            "bos": st.sampled_from(Switch),
            "formats": st.lists(st.sampled_from(sorted(FORMATS)), min_size=1, max_size=3),
            "operands": st.lists(st.sampled_from(Operands), min_size=1, max_size=3),
            "direction": st.lists(st.sampled_from(Direction), min_size=1, max_size=3),
            "patterns": _PATTERNS,
            "layers": _PATTERNS,
            "exclude": _PATTERNS,
            "memory": st.integers(0, 2**63 - 1),
            "workers": st.integers(1, 4096),
            "jitter": st.integers(1, 1000),
            "stop_when": _GOALS,
        },
    ),
)
@example(model="a\x85b", options={"text": "\u2028"})
def test_what_is_written_is_read_back(model, options):
    study = Study.build(model=model, **options)
    assert Study.build(**yaml.safe_load(study.to_yaml())) == study
    assert Study.build(**json.loads(study.model_dump_json())) == study
    assert Study.build(**study.flat()) == study == study.but()


# Identity.

OTHER = {
    "experts": "single", "parts": "heads",
    "exclude": "*.0.*", "seq_len": 16, "bos": "yes", "calibration_seq_len": 16, "formats": "nvfp4",
    "operands": "w4a16", "all_quantized": "nvint4", "sweep": "blocks", "direction": "only",
    "layers": "down_proj", "patterns": "*", "stop_when": "best=3", "activation_scale": "dynamic",
    "replicas": 2, "jitter": 2, "seed": 1,
}  # fmt: skip
LATER = {
    "causes": "layers", "remedies": 5, "keep": "*.0.*",
    "lm_head": True, "kv_cache": "fp8", "attention": "nvfp4", "recipes": {"r": {"base": "nvfp4"}},
    "design_runs": 64, "scales": "served",
}  # fmt: skip
"""What studies did not ask before there was such an option: identities say it where it is asked."""
WITH = {"remedies": {"causes": "layers"}}
"""What an option does not go without."""
LOADED = {
    "model": "n", "revision": "r", "text": "t", "dataset": "wikitext2", "windows": 3,
    "calibration_text": "t", "calibration_windows": 8, "dtype": "fp16", "device": "cpu",
    "random_weights": True, "first_window": 2,
}  # fmt: skip
"""What only loading resolves: the identity then holds what it was found to mean."""
RUN = {
    "method": "gradient", "memory": "1GB", "workers": "ray:2", "offload": "no",
    "allow_partial": True, "trust_remote_code": True, "allow_pickle": True,
}  # fmt: skip


def test_the_identity_is_all_sections_but_run():
    assert OTHER.keys() | LATER.keys() | LOADED.keys() | RUN.keys() == PLACES.keys()
    assert RUN.keys() == {name for name, (section, _) in PLACES.items() if section == "run"}
    study = Study.build(model="m")
    assert study.identity.keys() == OTHER.keys()
    for name, value in (OTHER | LATER).items():
        other = study.but(**{name: value}, **WITH.get(name, {}))
        assert other.identity[name] != study.identity.get(name), name
    for name, value in (LOADED | RUN).items():
        changed = study.but(**{name: value})
        assert changed != study, name
        assert changed.identity == study.identity, name
