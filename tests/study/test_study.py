"""The study: defaults, what it accepts, how it says what is wrong."""

import pytest

from fp4scope.errors import FormatError, StudyError
from fp4scope.study import (
    ActivationScale,
    Direction,
    Dtype,
    Level,
    Operands,
    Study,
    Swept,
    parse_memory,
    read_options,
)
from fp4scope.treatments import Amax, Configuration, Setting

MXFP4, NVFP4 = Configuration.parse("mxfp4"), Configuration.parse("nvfp4")


def test_defaults_are_the_published_protocol():
    study = Study.build(model="m")
    data, question = study.data, study.question
    assert (data.seq_len, data.windows, study.numerics.seed) == (2048, None, 0)
    assert question.formats == (MXFP4, NVFP4)
    assert question.operands == (Operands.BOTH,)
    assert question.sweep == (Swept(Level.PROJECTIONS), Swept(Level.LAYERS))
    assert question.direction == (Direction.KEEP, Direction.ONLY)
    assert (data.calibration_windows, data.calibration_seq_len) == ("auto", 512)
    assert study.numerics.activation_scale is ActivationScale.CALIBRATED


@pytest.mark.parametrize(
    ("other", "said"),
    [({"experts": "single"}, "--experts single"), ({"method": "gradient"}, "--method gradient")],
)
def test_parts_stand_alone(other, said):
    with pytest.raises(StudyError, match=f"parts is heads, which does not go with {said}"):
        Study.build(model="m", parts="heads", **other)


def test_lists_and_comma_separated_words_mean_the_same():
    one = Study.build(model="m", formats="mxfp4, nvfp4,mxfp4:floor", sweep="layers")
    other = Study.build(model="m", formats=["mxfp4:floor", NVFP4.weight], sweep=["layers"])
    assert one == other
    assert one.question.formats == (MXFP4, NVFP4)


@pytest.mark.parametrize("field", ["exclude", "layers", "patterns"])
def test_what_is_no_regular_expression_is_refused(field):
    with pytest.raises(StudyError, match=rf"{field}: 're:\(' is no regular expression"):
        Study.build(model="m", **{field: ["re:("]})
    assert Study.build(model="m", **{field: ["re:.*a$"]}).flat()[field] == ["re:.*a$"]


def test_yaml_round_trip(tmp_path):
    study = Study.build(
        model="m", text="t.txt", windows=3, patterns=["*.0.*"], operands="weights", memory=1 << 30,
        sweep="layers:only,blocks", all_quantized="mxfp4/w4a16", stop_when="1.5h", jitter=3,
    )  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml())
    assert Study.build(**read_options(path)) == study


def test_all_quantized_adds_configurations():
    study = Study.build(
        model="m", formats="nvfp4", all_quantized="mxfp4,nvfp4/weights,nvfp4/w4a16,nvfp4,mxfp4"
    )
    assert [str(item) for item in study.question.all_quantized] == [
        "mxfp4:floor", "nvfp4/w4a16", "nvfp4",
    ]  # fmt: skip
    assert _names(study.swept) == ["nvfp4"]
    assert _names(study.settings) == ["nvfp4", "mxfp4:floor", "nvfp4/w4a16"]


def _names(settings):
    return [setting.name for setting in settings]


def test_formats_of_weights_and_inputs():
    study = Study.build(
        model="m", formats="nvfp4:4over6/nvfp4, mxfp4/W4A16", all_quantized="nvfp4:4over6/mxfp8"
    )
    mixed, weights = study.swept
    assert (mixed.weight.format.name, mixed.input.format.name) == ("nvfp4:4over6", "nvfp4")
    assert (weights.weight.format.name, weights.input) == ("mxfp4:floor", None)
    assert _names(study.settings[2:]) == ["nvfp4:4over6/mxfp8:e4m3:floor"]
    assert Setting.from_json("nvfp4:4over6/nvfp4") == mixed
    assert [str(one) for one in study.question.formats] == [
        "nvfp4:4over6/nvfp4", "mxfp4:floor/w4a16",
    ]  # fmt: skip
    assert Study.build(**study.flat()) == study


def test_operands_choose_among_two_formats():
    study = Study.build(
        model="m", formats="nvfp4:4over6/nvfp4,nvfp4:4over6", operands="w4a16,w16a4",
        activation_scale="dynamic",
    )  # fmt: skip
    assert _names(study.swept) == ["nvfp4:4over6/w4a16", "nvfp4/w16a4", "nvfp4:4over6/w16a4"]
    assert [s.input.amax for s in study.swept if s.input] == [Amax.WINDOW] * 2


@pytest.mark.parametrize(
    ("options", "beside"),
    [
        (
            {},
            [
                "mxfp4:even",
                "mxfp4:rceil",
                "nvfp4:4over6",
                "nvfp4:4over6/nvfp4",
                "mxfp4:floor/w4a16",
                "nvfp4/w4a16",
                "fp8",
            ],
        ),
        ({"formats": "mxfp8"}, ["mxfp8:e4m3:even", "mxfp8:e4m3:rceil"]),
        ({"formats": "nvfp4/w4a16"}, ["nvfp4:4over6/w4a16", "fp8/w8a16"]),
        ({"formats": "fp8"}, []),
        ({"all_quantized": ""}, []),
        ({"all_quantized": "hif4"}, ["hif4"]),
        ({"preset": "paper", "all_quantized": "auto", "formats": "hif4"}, ["hif4/w4a16", "fp8"]),
    ],
)
def test_whole_models_beside_what_is_swept(options, beside):
    study = Study.build(model="m", **options)
    assert _names(study.settings) == [*_names(study.swept), *beside]
    assert study.identity["all_quantized"] == Study.build(
        model="m", **options | {"all_quantized": ",".join(map(str, study.all_quantized))}
    ).identity["all_quantized"]  # fmt: skip
    assert Study.build(**study.flat()) == study


def test_the_papers_study():
    study = Study.build(model="m", preset="paper")
    formats = ("mxfp4:floor", "mxfp4:rceil", "mxfp4:even", "nvfp4", "nvfp4:4over6")
    names = [f"{fmt}{own}" for fmt in formats for own in ("", "/w4a16")]
    assert sorted(_names(study.settings)) == sorted(names)
    assert _names(study.swept) == ["mxfp4:floor", "nvfp4"]
    assert (study.data.seq_len, study.data.windows) == (2048, None)
    assert study.numerics.dtype is Dtype.FLOAT16
    bf16 = Study.build(model="m", preset="paper", dtype="bfloat16")
    assert bf16 == study.but(dtype="bf16")
    assert bf16.numerics.dtype is Dtype.BFLOAT16


def test_a_study_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Study.build(model="m").data.windows = 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windws": 3}, r"unknown option 'windws'; did you mean windows"),
        ({"windows": 0}, "windows is 0"),
        ({"windows": -4}, "windows is -4"),
        ({"windows": "many"}, "windows is 'many'"),
        ({"sweep": "cell"}, "sweep: unknown 'cell'; choices: projections, blocks, layers"),
        ({"direction": "keeps"}, "direction: unknown 'keeps'; did you mean keep"),
        ({"operands": "w"}, "operands: unknown 'w'; choices: w4a4, w4a16, w16a4"),
        ({"formats": ""}, "formats is"),
        (
            {"all_quantized": "nvfp4/weight"},
            "unknown 'weight' in 'nvfp4/weight'; a format's name is followed by operands or",
        ),
        ({"formats": "nvfp4/nvpf4"}, "unknown 'nvpf4' in 'nvfp4/nvpf4'.* did you mean nvfp4"),
        ({"formats": "nvfp4/fp8/w4a16"}, "unknown 'fp8/w4a16' in"),
        ({"preset": "papers"}, "unknown preset 'papers'; did you mean paper"),
        ({"text": "a", "dataset": "wikitext2"}, "give one of them"),
        ({"dtype": "fp8"}, "dtype: unknown 'fp8'; choices: auto, float32"),
        ({"version": 3}, "version is 3; this fp4scope reads versions 1 and 2"),
        (
            {"sweep": "layers:isolated"},
            "unknown direction 'isolated' in 'layers:isolated'; choices",
        ),
        ({"sweep": "layers,:only"}, "sweep: unknown ''; choices: projections, blocks, layers"),
        ({"sweep": "cell:only"}, "sweep: unknown 'cell'; choices: projections, blocks, layers"),
        ({"sweep": "layers:only:keep"}, "unknown direction 'only:keep' in 'layers:"),
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
    assert Study.build(model="m", memory=text).run.memory == size


def test_a_number_of_bytes_need_not_be_quoted(tmp_path):
    (tmp_path / "study.yaml").write_text("model: m\nmemory: 8000000000\n")
    study = Study.build(**read_options(tmp_path / "study.yaml"))
    assert study == Study.build(model="m", memory=8 * 10**9)
    assert study.run.memory == 8 * 10**9


@pytest.mark.parametrize("text", ["", "GB", "-8GB", "8 GB of it", "8PB", "8iB", "1,5GB", "50%"])
def test_what_is_no_size_of_memory(text):
    with pytest.raises(StudyError) as caught:
        Study.build(model="m", memory=text)
    assert str(caught.value) == (f"memory is {text!r}; give a size such as 8GB, 1.5GiB or 500MB")


BOTH = (Direction.KEEP, Direction.ONLY)


@pytest.mark.parametrize(
    ("sweep", "direction", "expected"),
    [
        ("projections,layers", "keep,only", {"projections": BOTH, "layers": BOTH}),
        ("projections,layers", "only", {"projections": BOTH[1:], "layers": BOTH[1:]}),
        ("projections,layers:only", BOTH, {"projections": BOTH, "layers": BOTH[1:]}),
        ("layers:only", "keep", {"layers": BOTH[1:]}),
        ("layers:only,layers:keep", "keep", {"layers": BOTH[::-1]}),
        ("layers:only,layers", "keep,only", {"layers": BOTH[::-1]}),
        ("blocks:keep", "only", {"blocks": BOTH[:1]}),
        ("", "only", {}),
    ],
)
def test_a_level_is_swept_in_its_own_direction_or_in_the_studys(sweep, direction, expected):
    study = Study.build(model="m", sweep=sweep, direction=direction)
    found = {level.value: study.question.directions(level) for level in Level}
    assert {level: directions for level, directions in found.items() if directions} == expected
    assert study.question.directions(None) == study.question.direction  # patterns
    assert Study.build(**study.model_dump(mode="json")) == study


def test_layers_are_patterns_as_words_or_a_list():
    study = Study.build(model="m", layers="down_proj, *.0.*,down_proj")
    assert study.question.layers == ("down_proj", "*.0.*")
    assert Study.build(model="m", layers=["down_proj", "*.0.*"]) == study
    assert Study.build(model="m").question.layers == ()


def test_jitter_is_automatic_or_a_number():
    assert Study.build(model="m").numerics.jitter == "auto"
    assert Study.build(model="m", jitter="auto").numerics.jitter == "auto"
    assert Study.build(model="m", jitter="3").numerics.jitter == 3


def test_replicas_and_jitter():
    study = Study.build(model="m", replicas="4", jitter=2)
    assert (study.numerics.replicas, study.numerics.jitter) == (4, 2)


def test_an_unknown_format_is_a_format_error():
    with pytest.raises(FormatError, match="did you mean mxfp4:floor or "):
        Study.build(model="m", formats="mxfp4:flor")


def test_a_model_is_needed():
    with pytest.raises(StudyError, match="model is missing"):
        Study.build()
