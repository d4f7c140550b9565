"""What a recipe may cost or store, as a user says it."""

from collections.abc import Sequence
from dataclasses import dataclass

from fp4scope.deploy.bar import Bar
from fp4scope.deploy.decide import Decider, Decision
from fp4scope.deploy.palette import Choice
from fp4scope.errors import StudyError


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
