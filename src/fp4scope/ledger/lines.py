"""The lines of a journal: JSON with a checksum, and what each kind of them may hold.

A line is an object whose last field is the CRC-32 of the object without it, so that a digit that
rots on a disk is noticed, and not only damage that breaks the JSON.
"""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fp4scope.ledger.checks import first_problem
from fp4scope.ledger.schema import (
    STRICT,
    Count,
    Name,
    Options,
    Positive,
    Replica,
    SelfCheckFields,
    Session,
    ShapeFields,
    Text,
    Values,
)

LOG_VERSION = 5
_CHECKED = re.compile(rb'(\{.*), "crc32": (\d{1,10})\}', re.DOTALL)


@STRICT
class Head(TypedDict):
    fp4scope_journal: int
    study: Options


@STRICT
class Note(TypedDict):
    note: Name
    data: Any


@STRICT
class Recipes(TypedDict):
    recipes: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]


@STRICT
class JobLine(TypedDict):
    """A job: its windows, their targets, and what each recipe and replica gave there."""

    job: Annotated[list[Count], Field(min_length=1)]
    tokens: list[Positive]
    session: Count
    shape: ShapeFields | None
    rows: Annotated[list[tuple[Name, Replica, Values]], Field(min_length=1)]


_KINDS: dict[bytes, TypeAdapter[Any]] = {
    b'{"fp4scope_journal"': TypeAdapter(Head),
    b'{"note"': TypeAdapter(Note),
    b'{"recipes"': TypeAdapter(Recipes),
    b'{"job"': TypeAdapter(JobLine),
}
"""By how a line begins."""
_NOTES: dict[str, TypeAdapter[Any]] = {
    "self_check": TypeAdapter(SelfCheckFields),
    "sessions": TypeAdapter(list[Session]),
    "notes": TypeAdapter(list[Text]),
}
"""What is taken into the results as it stands."""


def encode(record: Mapping[str, Any]) -> bytes:
    """A record as a line.

    Raises:
        ValueError: It holds NaN, Inf, or a name that is not UTF-8.
    """
    text = json.dumps(record, allow_nan=False, ensure_ascii=False).encode()
    return b'%b, "crc32": %d}\n' % (text[:-1], zlib.crc32(text))


def decode(line: bytes) -> dict[str, Any]:
    """What `encode` was given.

    Raises:
        ValueError: The checksum is missing or another one, or it is no record of a journal.
    """
    parts = _CHECKED.fullmatch(line)
    if parts is None:
        raise ValueError("no checksum")
    text = parts[1] + b"}"
    if zlib.crc32(text) != int(parts[2]):
        raise ValueError("the checksum is another one")
    kind = next((known for begin, known in _KINDS.items() if line.startswith(begin)), None)
    if kind is None:
        raise ValueError("no record of a journal")
    try:
        record = kind.validate_json(text)
        if record.get("note") in _NOTES:
            _NOTES[record["note"]].validate_python(record["data"])
        return record
    except ValidationError as error:
        raise ValueError(first_problem(error.errors(include_url=False))) from None


def version_of(line: bytes) -> int | None:
    """Which version a journal's first line says it has, checksum or not."""
    found = re.match(rb'\{"fp4scope_journal": (\d{1,9}),', line)
    return int(found[1]) if found else None
