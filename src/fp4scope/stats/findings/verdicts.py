"""What a hypothesis comes to: a verdict, a sentence, and the numbers behind them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from fp4scope.table import Table


class Verdict(str, Enum):
    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "not decided by this data"


class Form(Enum):
    """How a column's values are written; an interval in `NAME_low` and `NAME_high` comes along."""

    TEXT = "as it is"
    FAMILY = "format, direction and operands of the row"
    CORRELATION = "two decimals"
    SHARE = "percent"
    MILLI = "thousand times the value, with a sign"
    PROBABILITY = "a p-value"


@dataclass(frozen=True)
class Column:
    """A column of the evidence as a reader sees it."""

    heading: str
    name: str
    form: Form = Form.TEXT


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What the paper claims, what this study says of it, and the numbers behind that.

    `explanation` says what the columns of `evidence` are and which rule made the verdict.
    """

    name: str
    claim: str
    verdict: Verdict
    sentence: str
    explanation: str = ""
    columns: tuple[Column, ...] = ()
    evidence: Table = field(default_factory=lambda: Table((), []))


def span(values: Iterable[float], digits: int = 2) -> str:
    """From the least to the most, as one number where both read alike.

    Example:
        >>> span([0.5, 0.25]), span([0.5])
        ('0.25 to 0.50', '0.50')
    """
    known = sorted(values)
    ends = (f"{value:.{digits}f}".replace("-", "\u2212") for value in (known[0], known[-1]))
    least, most = ends
    return least if least == most else f"{least} to {most}"
