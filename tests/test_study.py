"""The study: defaults, what it accepts, how it says what is wrong."""

import pytest

from fp4scope.errors import FormatError, StudyError
from fp4scope.study import Direction, Level, Operands, Study, read_options


def test_defaults_are_the_published_protocol():
    study = Study.build(model="m")
    assert (study.seq_len, study.windows, study.seed) == (2048, None, 0)
    assert study.formats == ("mxfp4:floor", "nvfp4")
    assert study.operands == (Operands.BOTH,)
    assert study.sweep == (Level.COMPONENTS, Level.CELLS)
    assert study.direction == (Direction.RESTORE, Direction.ISOLATE)
    assert (study.calibration_windows, study.calibration_seq_len) == (256, 512)


def test_lists_and_comma_separated_words_mean_the_same():
    one = Study.build(model="m", formats="mxfp4, nvfp4,mxfp4:floor", sweep="cells")
    other = Study.build(model="m", formats=["mxfp4:floor", "nvfp4"], sweep=["cells"])
    assert one == other
    assert one.formats == ("mxfp4:floor", "nvfp4")


def test_yaml_round_trip(tmp_path):
    study = Study.build(model="m", text="t.txt", windows=3, patterns=["*.0.*"], operands="weights")
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml())
    assert Study.build(**read_options(path)) == study


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
        ({"text": "a", "dataset": "wikitext2"}, "give one of them"),
        ({"dtype": "fp8"}, "dtype is 'fp8'"),
        ({"version": 2}, "version is 2"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(StudyError, match=message):
        Study.build(model="m", **options)


def test_an_unknown_format_is_a_format_error():
    with pytest.raises(FormatError, match="did you mean mxfp4:floor or "):
        Study.build(model="m", formats="mxfp4:flor")


def test_a_model_is_needed():
    with pytest.raises(StudyError, match="model is missing"):
        Study.build()
