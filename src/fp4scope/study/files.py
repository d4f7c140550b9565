"""Studies in files: of this version in sections, of the one before flat."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp4scope.errors import Fp4ScopeError, StudyError
from fp4scope.files import read_bytes
from fp4scope.study.study import PLACES, Study, flatten


def read_options(path: Path | str) -> dict[str, Any]:
    """The options in a YAML file by flat name, their values not yet validated.

    Values are words as they stand there: the field that a word is for says what it means, so
    that a commit of digits is no number, a date no date, and `bos: yes` is not a truth.

    Raises:
        StudyError: It cannot be read, holds no options, or one that there is not.
    """
    import yaml

    content = read_bytes(path, "study", StudyError)
    try:
        options = yaml.load(content.decode("utf-8-sig"), _loader())
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StudyError(f"{path} is not valid YAML: {reason}") from None
    except RecursionError:
        raise StudyError(f"{path} is nested too deeply; a study has sections of options") from None
    if not isinstance(options, dict):
        raise StudyError(f"{path} holds no options; a study is a mapping such as `model: NAME`")
    return flatten(options)


def is_run(path: str | Path) -> bool:
    """Whether a path is a folder that a run has written, and no model's."""
    try:
        folder = Path(path).expanduser()
        return (folder / "study.yaml").is_file() and not (folder / "config.json").is_file()
    except (OSError, RuntimeError, ValueError):  # no path can be so; a name may
        return False


def in_sections(options: Any) -> Any:  # noqa: ANN401
    """The study that a results file holds, in sections, whichever version wrote it.

    A study that this version could not run, of a later one perhaps, keeps its values.
    """
    if not isinstance(options, Mapping):
        return options
    try:
        return Study.build(**options).model_dump(mode="json")
    except (Fp4ScopeError, TypeError):
        pass
    found: dict[Any, Any] = {}
    for name, value in options.items():
        section, field = PLACES.get(name, (None, name))
        if section is None or isinstance(value, Mapping):
            found[field] = value
        else:
            found.setdefault(section, {})[field] = value
    return found


def _loader() -> Any:  # noqa: ANN401
    """A YAML loader that knows words and nothing else, but for `null`."""
    import yaml

    class Words(yaml.BaseLoader):
        pass

    null = "tag:yaml.org,2002:null"
    Words.add_implicit_resolver(null, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
    Words.add_constructor(null, lambda loader, node: None)
    return Words
