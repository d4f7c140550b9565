"""Recipes as the option of tasks names them: words that a run knows, and files."""

from collections.abc import Sequence
from pathlib import Path

from fp4scope.errors import FormatError, StudyError, shown
from fp4scope.study import Dtype, Given
from fp4scope.treatments import Setting

FULL = "full precision"
_FULL = ("full", *(word for dtype in Dtype for word in dtype.spellings if dtype is not Dtype.AUTO))
_SUFFIXES = (".yaml", ".yml", ".json")

Asked = Setting | Given | None
"""A setting of every linear, a recipe from a file, or nothing that is quantized."""


def parse_recipes(words: Sequence[str]) -> dict[str, Asked]:
    """What is asked for, by name; the full-precision model first, named or not.

    Args:
        words: `fp16` and the like for the full-precision model, formats as `--formats` takes them
            (`nvfp4`, `mxfp4:even/w4a16`), and files or folders that hold a recipe.

    Raises:
        StudyError: One is none of these, or two have one name.
        FormatError: An unknown format.

    Example:
        >>> list(parse_recipes(["bf16", "nvfp4", "mxfp4/w4a16"]))
        ['full precision', 'nvfp4', 'mxfp4:floor/w4a16']
    """
    found: dict[str, Asked] = {FULL: None}
    for word in words:
        name, asked = _parsed(word)
        if name in found and found[name] != asked:
            raise StudyError(f"two recipes are called {shown(name)}; rename one of the files")
        found[name] = asked
    if len(found) == 1:
        raise StudyError(
            "only the full-precision model is asked for; name what to hold against it: --recipes "
            "nvfp4,mxfp4:even,recipe.yaml"
        )
    return found


def _parsed(word: str) -> tuple[str, Asked]:
    if word.lower() in _FULL:
        return FULL, None
    try:
        setting = Setting.from_json(word)
        return setting.name, setting
    except (FormatError, StudyError):
        if not (Path(word).expanduser().exists() or word.endswith(_SUFFIXES)):
            raise
    given = Given.read(word)
    return given.name, given
