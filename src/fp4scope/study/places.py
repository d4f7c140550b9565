"""Where windows are measured: in this process alone, or with workers that Ray starts."""

import re
from dataclasses import dataclass
from typing import Any

from fp4scope.errors import StudyError, shown

_MOST = 4096
_CLIENT = "ray://"
_WAYS = "give 1, ray (a worker a GPU), ray:N, or the address of a Ray cluster such as HOST:6379"


@dataclass(frozen=True)
class Place:
    """Workers of a run.

    Attributes:
        count: How many, this process among them; None: one a GPU.
        address: Of a Ray cluster that is there; None: Ray is started on this host.
    """

    count: int | None = 1
    address: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether this process does everything itself."""
        return self.count == 1 and self.address is None

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port of the address."""
        assert self.address is not None, "no cluster is named"
        host, _, port = self.address.removeprefix(_CLIENT).rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def takes_client(self) -> bool:
        """Whether the address is of Ray Client."""
        return self.address is not None and self.address.startswith(_CLIENT)

    def __str__(self) -> str:
        if self.address is not None:
            return self.address
        return "ray" if self.count is None else "1" if self.count == 1 else f"ray:{self.count}"

    @classmethod
    def parse(cls, text: Any) -> "Place":  # noqa: ANN401
        """What `1`, `4`, `ray`, `ray:4`, `HOST:PORT` and `ray://HOST:PORT` say.

        Raises:
            StudyError: It is none of these.

        Example:
            >>> Place.parse("ray:4")
            Place(count=4, address=None)
            >>> str(Place.parse("head:6379")), str(Place.parse(2))
            ('head:6379', 'ray:2')
        """
        said = "" if isinstance(text, bool) or not isinstance(text, str | int) else str(text)
        said = said.strip()
        if said == "ray":
            return cls(None)
        if match := re.fullmatch(r"(?:ray:)?(\d{1,9})", said):
            if 1 <= (count := int(match[1])) <= _MOST:
                return cls(count)
            raise StudyError(f"workers is {shown(text)}; give 1 to {_MOST}")
        if re.fullmatch(rf"({_CLIENT})?([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{{1,5}}", said):
            return cls(None, said)
        raise StudyError(f"workers is {shown(text)}; {_WAYS}")
