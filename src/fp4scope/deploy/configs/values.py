"""What a configuration holds, of the type that it should be."""

from collections.abc import Mapping
from typing import Any

from fp4scope.errors import StudyError, shown


def mapping(value: Any, place: str) -> Mapping[str, Any]:  # noqa: ANN401
    """A mapping.

    Raises:
        StudyError: It is none.
    """
    if not isinstance(value, Mapping):
        raise StudyError(f"{place} is {shown(value)}; it has to be a mapping")
    return value


def texts(value: Any, place: str) -> list[str]:  # noqa: ANN401
    """A list of texts; one alone is one.

    Raises:
        StudyError: It is none.
    """
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise StudyError(f"{place} is {shown(value)}; it has to be a list of names")
    return list(found)
