"""What a recipe may cost or store, as a user says it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from fp4scope.deploy.bar import Bar, parse_bar, with_companions
from fp4scope.deploy.decide import Decider, Decision
from fp4scope.deploy.palette import Choice
from fp4scope.errors import StudyError
from fp4scope.study import parse_memory

_BOUNDS = "--accept 'ppl<2%', --max-bits 5 or --max-size 4GB"


@dataclass(frozen=True)
class Bound:
    """What a recipe may cost or store: one of these.

    Attributes:
        bars: That it has to meet.
        bits: Of its linears, on average, at most.
        size: Of its checkpoint, bytes at most.
    """

    bars: tuple[Bar, ...] = ()
    bits: float | None = None
    size: float | None = None

    def require(self, palette: Sequence[Choice]) -> None:
        """Refuse, before anything is measured, what no recipe of a palette can be under.

        Raises:
            StudyError: Even all of the smallest format has more bits.
        """
        smallest = min(palette, key=lambda choice: choice.least_bits)
        if self.bits is not None and smallest.least_bits > self.bits:
            raise StudyError(
                f"no recipe has {self.bits:.4g} bits on average: with this palette the smallest "
                f"has {smallest.least_bits:.4g}; allow more, or give a palette with smaller formats"
            )

    def choose(self, found: Decider) -> Decision:
        """What is predicted to be best under it.

        Raises:
            StudyError: Nothing is under it.
        """
        if self.bars:
            return found.within([bar for bar in self.bars if bar.measure != "top1"])
        return found.under(self.most_bits(found))

    def most_bits(self, found: Decider) -> float:
        """Average bits of the linears at most, where it is no bar.

        Raises:
            StudyError: What is not quantized takes all of a checkpoint.
        """
        bits = found.bits_of(self.size) if self.size is not None else self.bits
        assert bits is not None
        return bits


def bound_of(
    accept: str | Sequence[str] = (), max_bits: float | None = None, max_size: str | None = None
) -> Bound | None:
    """The one bound that is given; None without any.

    Args:
        accept: Bars, such as `ppl<2%`.
        max_bits: Average bits of the linears.
        max_size: Of the checkpoint, such as `4GB`.

    Raises:
        StudyError: There are several, or one makes no sense.
    """
    bars = [accept] if isinstance(accept, str) else accept
    options = {"--accept": bars or None, "--max-bits": max_bits, "--max-size": max_size}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise StudyError(f"{' and '.join(given)} are two bounds; give one of {_BOUNDS}")
    if max_bits is not None and not 0 < max_bits < inf:
        raise StudyError(f"max_bits is {max_bits:g}; give a number such as 5.0")
    size = None if max_size is None else float(parse_memory(max_size, "max_size"))
    for bar in map(parse_bar, bars):
        if bar.task is not None:
            raise StudyError(
                f"accept is {bar.text}, but no recipe can be chosen by what a task loses; choose "
                "one by 'ppl<2%' or the like, then score it: fp4scope tasks"
            )
    return Bound(tuple(with_companions(map(parse_bar, bars))), max_bits, size) if given else None


def required(bound: Bound | None) -> Bound:
    """The bound.

    Raises:
        StudyError: There is none.
    """
    if bound is None:
        raise StudyError(f"what may the recipe cost or store? give one of {_BOUNDS}")
    return bound
