"""Whatever an option is given: a study, or one message."""

import datetime
from pathlib import Path

import pytest

from fp4scope.errors import Fp4ScopeError, StudyError
from fp4scope.study import PLACES, SECTIONS, Dtype, Study, Switch, read_options

_DEEP = [[]]
for _ in range(5000):
    _DEEP = [_DEEP]
_SELF = []
_SELF.append(_SELF)
_LAUGHS = ["ha"] * 9
for _ in range(30):
    _LAUGHS = [_LAUGHS] * 9

TEXTS = [
    "", " ", ",", "\0", "a\0b", "\ud800", "\udce9", "\n", "~nosuchuser/m", "x" * 5000, "-1",
    "9" * 400, "9" * 5000, "nan", "inf", "null", "None", "[", "*", ":", "/", "layers:", "nvfp4/",
    "/weights", "layers:only:", "hpu", "privateuseone", "cuda:-1", "half", "999GB", "日本語",
    "9" * 400 + "GB", "9" * 400 + "h", "best=" + "9" * 5000, "half-width=" + "9" * 400 + "nat",
    "best=1,within=" + "9" * 400 + "nat", "0." + "0" * 400 + "1s", "\x1b[31m", "$", "{}", "%s",
]  # fmt: skip
OTHERS = [
    None, True, False, 0, -1, 1, 2**63, 2**64, 10**400, 10**5000, 1.5, -0.0, float("nan"), 1e400,
    1j, b"", b"\xff", bytearray(b"x"), [], [""], [None], [1], [[]], [["a"]], [{}], [{"a": 1}], len,
    [b"x"], ["\0"], ["\ud800"], (), ((),), {}, {"a": 1}, set(), {"nvfp4"}, frozenset(), range(3),
    object(), Ellipsis, Path(), Path("\0"), datetime.date(2024, 1, 1), _DEEP, _SELF, _LAUGHS, type,
    iter([]),
]  # fmt: skip
IN_FILES = [
    "", "~", "2024-99-99", "2024-01-01", "[[a]]", "[{}]", "{a: 1}", "!!int x", "yes", "{<<: 1}",
    "!!python/object/apply:os.system [true]", "&a [*a]", '"\\0"', '"\\ud800"', ".nan", "1:30", "[",
    "!!timestamp x", "!!binary x", "? [a]", "0x10", "[" * 1500, "*a", "%x", "@", "\t", "- a", "|",
]  # fmt: skip
FIELDS = [*dict.fromkeys([*PLACES, *SECTIONS, "preset", "version"])]


def _refused(error):
    """By a message of ours, and briefly."""
    assert 10 < len(str(error)) < 1500, str(error)


def _study(**options):
    """A study, or None where it was refused."""
    try:
        return Study.build(**{"model": "m"} | options)
    except Fp4ScopeError as error:
        _refused(error)
        return None


@pytest.mark.parametrize("field", FIELDS)
def test_an_odd_value_is_a_study_or_one_message(field, tmp_path):
    path = tmp_path / "study.yaml"
    for value in [*TEXTS, *OTHERS]:
        if (study := _study(**{field: value})) is not None:
            path.write_text(study.to_yaml(), encoding="utf-8")
            assert Study.build(**read_options(path)) == study, value
            assert study.settings


def test_odd_values_in_a_file(tmp_path):
    path, accepted = tmp_path / "study.yaml", 0
    for words in IN_FILES:
        path.write_text(f"model: m\nrevision: {words}\n", encoding="utf-8")
        try:
            value = read_options(path)["revision"]
        except StudyError as error:
            _refused(error)
            continue
        for field in FIELDS:
            accepted += _study(**{field: value}) is not None
    assert accepted


def test_names_of_options_that_are_none():
    for name in ("cls", "self", "", "\0", "x" * 5000, "model_config", "build", "__class__", "goal"):
        assert _study(**{name: 1}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ""}, "formats is empty; give one or more of mxfp4:floor, "),
        ({"formats": []}, "formats is empty; give one or more of mxfp4:floor, "),
        ({"direction": " , "}, "direction is empty; give one or more of keep, only"),
        ({"operands": ""}, "operands is empty; give one or more of w4a4, w4a16, w16a4"),
        ({"method": ""}, "method is empty; give one or more of exact, gradient"),
        ({"sweep": "layers:"}, "sweep: unknown direction '' in 'layers:'; choices: keep, only"),
        (
            {"all_quantized": "nvfp4/"},
            "unknown '' in 'nvfp4/'; a format's name is followed by operands or the format of",
        ),
        ({"formats": [["a"]]}, "formats is [['a']]: give names with commas between them, or a"),
        ({"formats": {"nvfp4"}}, "formats is {'nvfp4'}: give names with commas between them, or a"),
        ({"preset": ["paper"]}, "unknown preset ['paper']; choices: paper"),
        ({"seed": 2**64}, "seed is 18446744073709551616: input should be less than or equal to"),
        ({"windows": True}, "windows is True: give a number"),
        ({"memory": "9" * 400 + "GB"}, "more than any machine has; give one such as 8GB"),
        ({"model": ""}, "model is '': give a name"),
        ({"device": "cuda 1"}, "device is 'cuda 1'; give auto, cpu, or one such as cuda or cuda:1"),
        ({"stop_when": "9" * 400 + "h"}, "give a time (90s, 10m, 2h)"),
        (
            {"direction": "kep"},
            "direction: unknown 'kep'; did you mean keep? (choices: keep, only)",
        ),
    ],
)
def test_what_was_wrong_and_what_would_be_right(options, message):
    with pytest.raises(StudyError) as caught:
        Study.build(**{"model": "m"} | options)
    assert message in str(caught.value)


def test_what_yaml_would_take_for_something_else(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "\ufeffmodel: m\nversion: 1\nrevision: 2024-01-01\nbos: yes\noffload: no\nwindows: 4\n"
        "text: ~\ndataset:\nallow_pickle: true\nformats: [nvfp4]\n",
        encoding="utf-8",
    )
    study = Study.build(**read_options(path))
    assert (study.model.revision, study.data.windows) == ("2024-01-01", 4)
    assert (study.data.bos, study.run.offload) == (Switch.YES, Switch.NO)
    assert (study.data.text, study.data.dataset, study.run.allow_pickle) == (None, None, True)
    path.write_text("model: m\nrevision: 0123456\n")
    assert Study.build(**read_options(path)).model.revision == "0123456"
    assert Study.build(model="m", bos=True, offload=False) == Study.build(
        model="m", bos="yes", offload="no"
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"dtype": "fp16"}, {"dtype": "float16"}),
        ({"dtype": "half"}, {"dtype": "float16"}),
        ({"dtype": "BF16"}, {"dtype": "bfloat16"}),
        ({"dtype": "float"}, {"dtype": "float32"}),
        ({"dtype": "torch.bfloat16"}, {"dtype": "bfloat16"}),
        ({"direction": "restore,isolate"}, {"direction": "keep,only"}),
        ({"sweep": "components,cells:isolate"}, {"sweep": "projections,layers:only"}),
        ({"direction": ["only", "only"]}, {"direction": "only"}),
        ({"sweep": "layers:only,layers:only"}, {"sweep": "layers:only"}),
    ],
)
def test_other_names(given, meant):
    assert Study.build(model="m", **given) == Study.build(model="m", **meant)


def test_torchs_own_device_and_dtype():
    import torch

    study = Study.build(model="m", device=torch.device("cuda", 1), dtype=torch.float16)
    assert (study.numerics.device, study.numerics.dtype) == ("cuda:1", Dtype.FLOAT16)


def test_a_study_that_is_no_file(tmp_path):
    with pytest.raises(StudyError, match="Is a directory"):
        read_options(tmp_path)
    with pytest.raises(StudyError, match="not a regular file"):
        read_options("/dev/zero")
    with pytest.raises(StudyError, match="embedded null"):
        read_options("a\0b")
    with pytest.raises(StudyError, match="File name too long"):
        read_options("x" * 5000)
