"""The study: defaults, what it accepts, how it says what is wrong."""

import pytest

from fp4scope.errors import FormatError, StudyError
from fp4scope.study import Direction, Level, Operands, Study, parse_memory, read_options


def test_defaults_are_the_published_protocol():
    study = Study.build(model="m")
    assert (study.seq_len, study.windows, study.seed) == (2048, None, 0)
    assert study.formats == ("mxfp4:floor", "nvfp4")
    assert study.operands == (Operands.BOTH,)
    assert study.sweep == (Level.COMPONENTS, Level.CELLS)
    assert study.direction == (Direction.RESTORE, Direction.ISOLATE)
    assert (study.calibration_windows, study.calibration_seq_len) == ("auto", 512)


def test_lists_and_comma_separated_words_mean_the_same():
    one = Study.build(model="m", formats="mxfp4, nvfp4,mxfp4:floor", sweep="cells")
    other = Study.build(model="m", formats=["mxfp4:floor", "nvfp4"], sweep=["cells"])
    assert one == other
    assert one.formats == ("mxfp4:floor", "nvfp4")


@pytest.mark.parametrize("field", ["exclude", "cells", "patterns"])
def test_what_is_no_regular_expression_is_refused(field):
    with pytest.raises(StudyError, match=rf"{field}: 're:\(' is no regular expression"):
        Study.build(model="m", **{field: ["re:("]})
    assert getattr(Study.build(model="m", **{field: ["re:.*a$"]}), field) == ("re:.*a$",)


def test_yaml_round_trip(tmp_path):
    study = Study.build(model="m", text="t.txt", windows=3, patterns=["*.0.*"], operands="weights")
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml())
    assert Study.build(**read_options(path)) == study


def test_baselines_are_more_configurations():
    study = Study.build(model="m", formats="nvfp4", baselines="mxfp4,nvfp4/weights,nvfp4,mxfp4")
    assert study.baselines == ("mxfp4:floor", "nvfp4/weights", "nvfp4")
    assert study.swept == [("nvfp4", Operands.BOTH)]
    both, weights = Operands.BOTH, Operands.WEIGHTS
    assert study.configurations == [("nvfp4", both), ("mxfp4:floor", both), ("nvfp4", weights)]


def test_the_papers_study():
    study = Study.build(model="m", preset="paper")
    formats = ("mxfp4:floor", "mxfp4:rceil", "mxfp4:even", "nvfp4", "nvfp4:4over6")
    operands = (Operands.BOTH, Operands.WEIGHTS)
    assert set(study.configurations) == {(f, o) for f in formats for o in operands}
    assert study.swept == [("mxfp4:floor", operands[0]), ("nvfp4", operands[0])]
    assert (study.seq_len, study.windows, study.dtype) == (2048, None, "float16")
    assert Study.build(model="m", preset="paper", dtype="bfloat16").dtype == "bfloat16"


def test_a_study_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Study.build(model="m").windows = 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windws": 3}, r"unknown option 'windws'; did you mean windows"),
        ({"windows": 0}, "windows is 0"),
        ({"windows": -4}, "windows is -4"),
        ({"windows": "many"}, "windows is 'many'"),
        ({"sweep": "cell"}, "sweep: unknown 'cell'; did you mean cells"),
        ({"direction": "restored"}, "did you mean restore"),
        ({"operands": "w"}, "operands: unknown 'w'; choices: weights"),
        ({"formats": ""}, "formats is"),
        ({"baselines": "nvfp4/weight"}, "baselines: unknown operands 'weight' in 'nvfp4/weight'"),
        ({"preset": "papers"}, "unknown preset 'papers'; did you mean paper"),
        ({"text": "a", "dataset": "wikitext2"}, "give one of them"),
        ({"dtype": "fp8"}, "dtype is 'fp8'"),
        ({"version": 2}, "version is 2"),
        ({"sweep": "cells:isolated"}, "unknown direction 'isolated' in 'cells:isolated'; did you "),
        ({"sweep": "cells,:isolate"}, "sweep: unknown ''; choices: components, blocks, cells"),
        ({"sweep": "cell:isolate"}, "sweep: unknown 'cell'; did you mean cells"),
        ({"sweep": "cells:isolate:restore"}, "unknown direction 'isolate:restore' in 'cells:"),
        ({"calibration_windows": 0}, "calibration_windows is 0: input should be greater than"),
        ({"calibration_windows": "some"}, "calibration_windows is 'some': input should be a valid"),
        ({"replicas": 0}, "replicas is 0: input should be greater than or equal to 1"),
        ({"replicas": 1.5}, "replicas is 1.5: input should be a valid integer"),
        ({"jitter": 0}, "jitter is 0: input should be greater than or equal to 1"),
        ({"jitter": "some"}, "jitter is 'some': input should be a valid integer"),
        ({"memory": ["8GB"]}, r"memory is \"\['8GB'\]\"; give a size such as 8GB"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(StudyError, match=message):
        Study.build(model="m", **options)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8g", 8 * 10**9),
        (" 1.5 GiB ", 3 * 2**29),
        ("500mb", 500 * 10**6),
        ("500Mi", 500 * 2**20),
        ("64k", 64_000),
        ("1T", 10**12),
        ("123456789", 123456789),
        ("123 B", 123),
    ],
)
def test_sizes_of_memory(text, size):
    assert parse_memory(text) == size
    assert Study.build(model="m", memory=text).memory == text


def test_a_number_of_bytes_need_not_be_quoted(tmp_path):
    (tmp_path / "study.yaml").write_text("model: m\nmemory: 8000000000\n")
    study = Study.build(**read_options(tmp_path / "study.yaml"))
    assert study == Study.build(model="m", memory=8 * 10**9)
    assert parse_memory(study.memory) == 8 * 10**9


@pytest.mark.parametrize("text", ["", "GB", "-8GB", "8 GB of it", "8PB", "8iB", "1,5GB", "50%"])
def test_what_is_no_size_of_memory(text):
    with pytest.raises(StudyError) as caught:
        Study.build(model="m", memory=text)
    assert str(caught.value) == (f"memory is {text!r}; give a size such as 8GB, 1.5GiB or 500MB")


BOTH = (Direction.RESTORE, Direction.ISOLATE)


@pytest.mark.parametrize(
    ("sweep", "direction", "expected"),
    [
        ("components,cells", "restore,isolate", {"components": BOTH, "cells": BOTH}),
        ("components,cells", "isolate", {"components": BOTH[1:], "cells": BOTH[1:]}),
        ("components,cells:isolate", BOTH, {"components": BOTH, "cells": BOTH[1:]}),
        ("cells:isolate", "restore", {"cells": BOTH[1:]}),
        ("cells:isolate,cells:restore", "restore", {"cells": BOTH[::-1]}),
        ("cells:isolate,cells", "restore,isolate", {"cells": BOTH[::-1]}),
        ("blocks:restore", "isolate", {"blocks": BOTH[:1]}),
        ("", "isolate", {}),
    ],
)
def test_a_level_is_swept_in_its_own_direction_or_in_the_studys(sweep, direction, expected):
    study = Study.build(model="m", sweep=sweep, direction=direction)
    found = {level.value: study.directions(level) for level in Level}
    assert {level: directions for level, directions in found.items() if directions} == expected
    assert study.directions(None) == study.direction  # patterns
    assert Study.build(**study.model_dump(mode="json")) == study


def test_cells_are_patterns_as_words_or_a_list():
    study = Study.build(model="m", cells="down_proj, *.0.*,down_proj")
    assert study.cells == ("down_proj", "*.0.*")
    assert Study.build(model="m", cells=["down_proj", "*.0.*"]) == study
    assert Study.build(model="m").cells == ()


def test_jitter_is_automatic_or_a_number():
    assert Study.build(model="m").jitter == "auto"
    assert Study.build(model="m", jitter="auto").jitter == "auto"
    assert Study.build(model="m", jitter="3").jitter == 3


def test_replicas_and_jitter():
    study = Study.build(model="m", replicas="4", jitter=2)
    assert (study.replicas, study.jitter) == (4, 2)


def test_an_unknown_format_is_a_format_error():
    with pytest.raises(FormatError, match="did you mean mxfp4:floor or "):
        Study.build(model="m", formats="mxfp4:flor")


def test_a_model_is_needed():
    with pytest.raises(StudyError, match="model is missing"):
        Study.build()
