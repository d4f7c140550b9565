"""Values that options give as text: parsed once, at the door, and written as text again."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fp4scope.errors import StudyError, nearest, shown
from fp4scope.formats import (
    FORMATS,
    BlockFormat,
    cache_format_name,
    get_cache_format,
)
from fp4scope.study.given import Given, apart
from fp4scope.study.given import listed as _listed
from fp4scope.study.goals import Goal, parse_goal
from fp4scope.study.places import Place
from fp4scope.study.words import Choice, Direction, Level, Method, Operands
from fp4scope.treatments import Configuration

_MOST_MEMORY = 2**63 - 1
_MOST = 2**64 - 1
"""The largest seed that torch takes, and more than there is of anything else."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Written:
    """For a field's annotation: how what is no value yet becomes one, and a value text."""

    parse: Callable[[Any], Any]
    write: Callable[[Any], str] = str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:  # noqa: ANN401
        def read(value: Any) -> Any:  # noqa: ANN401
            return value if isinstance(value, source) else self.parse(value)

        written = core_schema.plain_serializer_function_ser_schema(self.write)
        return core_schema.no_info_plain_validator_function(read, serialization=written)


@dataclass(frozen=True)
class Swept:
    """A level that is swept, and in which direction; None: in those of the study."""

    level: Level
    direction: Direction | None = None

    def __str__(self) -> str:
        return self.level.value + (f":{self.direction.value}" if self.direction else "")

    @classmethod
    def parse(cls, item: Any) -> "Swept":  # noqa: ANN401
        """What `layers:only` and `layers` say.

        Raises:
            StudyError: It is neither.
        """
        name, colon, own = str(item).partition(":")
        level, direction = Level.find(name), Direction.find(own)
        if level is None:
            raise StudyError(f"sweep: unknown {shown(name)}; {nearest(name, Level.words())}")
        if colon and direction is None:
            hint = nearest(own, Direction.words())
            raise StudyError(f"sweep: unknown direction {shown(own)} in {shown(item)}; {hint}")
        return cls(level, direction)


def parse_memory(text: Any, what: str = "memory") -> int:  # noqa: ANN401
    """`8GB`, `1.5 GiB` or a number of bytes, in bytes.

    Args:
        text: It.
        what: What a message calls it.

    Raises:
        StudyError: It is none of these.

    Example:
        >>> parse_memory("1.5GB"), parse_memory("2GiB")
        (1500000000, 2147483648)
    """
    said = text if isinstance(text, str) else shown(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", said.lower())
    if match is None or (match[3] and not match[2]):
        raise StudyError(f"{what} is {shown(said)}; give a size such as 8GB, 1.5GiB or 500MB")
    size = Decimal(match[1]) * (_BINARY if match[3] else _UNITS)[match[2]]
    if size > _MOST_MEMORY:
        raise StudyError(
            f"{what} is {shown(said)}, more than any machine has; give one such as 8GB"
        )
    return int(size)


def written_memory(size: int) -> str:
    """Bytes as `parse_memory` reads them, in the largest unit that they are whole in.

    Example:
        >>> written_memory(8 * 10**9), written_memory(1_500_000_001)
        ('8GB', '1500000001')
    """
    for prefix, unit in reversed(_UNITS.items()):
        if prefix and size and size % unit == 0:
            return f"{size // unit}{prefix.upper()}B"
    return str(size)


def _goal(value: Any) -> Goal:  # noqa: ANN401
    if not isinstance(value, str):
        raise ValueError("give words")
    return parse_goal(value)


def _items(value: Any) -> Any:  # noqa: ANN401
    """`a,b` and a list mean the same."""
    if isinstance(value, str) and not isinstance(value, Choice):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    known = str, BlockFormat, Configuration, Swept
    if isinstance(value, list | tuple) and all(isinstance(item, known) for item in value):
        return tuple(value)
    raise ValueError("give names with commas between them, or a list of names")


def _configuration(item: Any) -> Configuration:  # noqa: ANN401
    """A format, or what a name says."""
    return Configuration(item, item) if isinstance(item, BlockFormat) else Configuration.parse(item)


def _once(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is given twice is one."""
    return tuple(dict.fromkeys(value))


def _some_of(choices: Iterable[str]) -> AfterValidator:
    listed = ", ".join(choices)

    def check(value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise PydanticCustomError("none", "give one or more of {known}", {"known": listed})
        return value

    return AfterValidator(check)


def _swept(value: tuple[Configuration, ...]) -> tuple[Configuration, ...]:
    """Formats of weights alone are measured as wholes: nothing is known of their single errors."""
    for one in value:
        if one.weight.is_for_weights:
            raise PydanticCustomError(
                "whole",
                "{name} is measured as a whole; give it to --all-quantized",
                {"name": str(one)},
            )
    return value


def _number(value: Any) -> Any:  # noqa: ANN401
    """A truth is not taken for 0 or 1."""
    if isinstance(value, bool):
        raise ValueError("give a number")
    return value


def _named(value: str) -> str:
    if not value:
        raise ValueError("give a name")
    return value


def _expressions(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern.removeprefix("re:"))
            except re.error as error:
                said = {"pattern": shown(pattern), "error": str(error)}
                message = "{pattern} is no regular expression: {error}"
                raise PydanticCustomError("word", message, said) from None
    return patterns


Name = Annotated[
    str, AfterValidator(_named)
]  # pydantic's own length wants UTF-8, paths need not be
Number = Annotated[int, BeforeValidator(_number), Field(le=_MOST)]
Bytes = Annotated[int, BeforeValidator(parse_memory), PlainSerializer(written_memory)]
GoalText = Annotated[Goal, Written(_goal)]
Workers = Annotated[Place, Written(Place.parse)]
CacheFormat = Annotated[BlockFormat, Written(get_cache_format, cache_format_name)]
_Configuration = Annotated[Configuration, Written(_configuration)]
_Swept = Annotated[Swept, Written(Swept.parse)]
_ITEMS, _ONCE = BeforeValidator(_items), AfterValidator(_once)

Patterns = Annotated[tuple[Name, ...], _ITEMS, _ONCE, AfterValidator(_expressions)]
Formats = Annotated[
    tuple[_Configuration, ...], _ITEMS, _ONCE, _some_of(FORMATS), AfterValidator(_swept)
]
Configurations = Annotated[tuple[_Configuration, ...], _ITEMS, _ONCE]
Recipes = Annotated[
    tuple[Annotated[Given, Written(Given.parse)], ...],
    BeforeValidator(_listed),
    AfterValidator(apart),
]
Levels = Annotated[tuple[_Swept, ...], _ITEMS, _ONCE]
SomeOperands = Annotated[tuple[Operands, ...], _ITEMS, _ONCE, _some_of(Operands.words())]
Directions = Annotated[tuple[Direction, ...], _ITEMS, _ONCE, _some_of(Direction.words())]
Methods = Annotated[tuple[Method, ...], _ITEMS, _ONCE, _some_of(Method.words())]
