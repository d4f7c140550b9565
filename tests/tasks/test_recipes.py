"""What stands for a recipe: words that a run knows, and files."""

import pytest

from fp4scope.errors import FormatError, StudyError
from fp4scope.study import Given
from fp4scope.tasks import FULL, parse_recipes
from fp4scope.treatments import Setting


def test_words_are_those_of_a_run(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: nvfp4\n")
    found = parse_recipes(["nvfp4", "fp16", "mxfp4:even/w4a16", str(path)])
    assert list(found) == [FULL, "nvfp4", "mxfp4:even/w4a16", "mine"]
    assert found[FULL] is None
    assert found["nvfp4"] == Setting.from_json("nvfp4")
    assert found["mine"] == Given.of("mine", {"base": "nvfp4"})


def test_what_is_none_is_refused(tmp_path):
    with pytest.raises(FormatError, match="did you mean nvfp4"):
        parse_recipes(["nvpf4"])
    with pytest.raises(StudyError, match="only the full-precision model"):
        parse_recipes(["bf16"])
    with pytest.raises(StudyError, match=r"missing\.yaml"):
        parse_recipes([str(tmp_path / "missing.yaml")])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_text(f"base: {'nvfp4' if folder == 'a' else 'fp8'}")
    with pytest.raises(StudyError, match="two recipes are called 'mine'"):
        parse_recipes([str(tmp_path / folder / "mine.yaml") for folder in ("a", "b")])
